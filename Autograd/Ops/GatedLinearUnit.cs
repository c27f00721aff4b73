using LaspNative.Runtime;

namespace LaspNative.Autograd;

/// <summary>
/// y = act(gate) up                                  act = silu (SwiGLU) or identity
/// dgate = dy up act'(gate)        dup = dy act(gate)
/// Saves gate and up; y is made again for its readers in backward. dgate and dup take the places of gate and up.
/// </summary>
public sealed class GatedLinearUnit : Function
{
    private readonly SavedValue _gate;
    private readonly SavedValue _up;
    private readonly GateActivation _activation;

    private GatedLinearUnit(Variable gate, Variable up, GateActivation activation)
    {
        _gate = Save(gate);
        _up = Save(up);
        _activation = activation;
    }

    public static Variable Apply(Variable gate, Variable up, GateActivation activation)
    {
        ArgumentNullException.ThrowIfNull(gate);
        ArgumentNullException.ThrowIfNull(up);
        if (gate.Shape != up.Shape || gate.DType != up.DType)
            throw new LaspException($"a gated linear unit takes gate and up of one shape and type, got {gate.DType} {gate.Shape} and {up.DType} {up.Shape}");
        var function = new GatedLinearUnit(gate, up, activation);
        return function.MakeAgain(function.Record([gate, up], Make(gate.Value, up.Value, activation)));
    }

    protected internal override Tensor MakeOutput() => Make(_gate.Tensor, _up.Tensor, _activation);

    private static Tensor Make(Tensor gate, Tensor up, GateActivation activation)
    {
        Tensor y = Tensor.Empty(gate.Shape, gate.DType, gate.Device);
        gate.Device.Backend.GatedLinearUnit(gate, up, activation, y);
        return y;
    }

    protected internal override void Backward(BackwardPass pass)
    {
        Tensor dgate = BackwardPass.InPlaceOf(_gate), dup = BackwardPass.InPlaceOf(_up);
        dgate.Device.Backend.GatedLinearUnitBackward(_gate.Tensor, _up.Tensor, pass.RequiredOutput(0), _activation, dgate, dup);
        pass.Give(0, dgate);
        pass.Give(1, dup);
    }
}
