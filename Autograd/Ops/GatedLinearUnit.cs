using LaspNative.Runtime;

namespace LaspNative.Autograd;

/// <summary>
/// y = act(gate) up                                  act = silu (SwiGLU) or identity
/// dgate = dy up act'(gate)        dup = dy act(gate)
/// Saves gate and up; the activation is recomputed in backward.
/// </summary>
public sealed class GatedLinearUnit : Function
{
    private readonly Tensor _gate;
    private readonly Tensor _up;
    private readonly GateActivation _activation;

    private GatedLinearUnit(Variable gate, Variable up, GateActivation activation)
    {
        _gate = Save(gate.Value);
        _up = Save(up.Value);
        _activation = activation;
    }

    public static Variable Apply(Variable gate, Variable up, GateActivation activation)
    {
        ArgumentNullException.ThrowIfNull(gate);
        ArgumentNullException.ThrowIfNull(up);
        if (gate.Shape != up.Shape || gate.DType != up.DType)
            throw new LaspException($"a gated linear unit takes gate and up of one shape and type, got {gate.DType} {gate.Shape} and {up.DType} {up.Shape}");
        Tensor y = Tensor.Empty(gate.Shape, gate.DType, gate.Device);
        gate.Device.Backend.GatedLinearUnit(gate.Value, up.Value, activation, y);
        return new GatedLinearUnit(gate, up, activation).Record([gate, up], y);
    }

    protected internal override void Backward(BackwardPass pass)
    {
        Tensor dgate = pass.Empty(0);
        Tensor dup = pass.Empty(1);
        _gate.Device.Backend.GatedLinearUnitBackward(_gate, _up, pass.RequiredOutput(0), _activation, dgate, dup);
        pass.Give(0, dgate);
        pass.Give(1, dup);
    }
}
