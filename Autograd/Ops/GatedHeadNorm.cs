using LaspNative.Runtime;

namespace LaspNative.Autograd;

/// <summary>
/// The output of a linear-attention head, one fused pass:
/// y = n w silu(gate)        n = x r, r = 1 / sqrt(mean(x^2) + eps) per row of E; w [E] or none; gate like x or none
/// with u = dy w silu(gate):  dx = r (u - n mean(u n)),  dgate = dy n w silu'(gate),  dw = sum over rows and heads of dy n silu(gate)
/// Saves x, gate and r; n and silu(gate) are recomputed.
/// </summary>
public sealed class GatedHeadNorm : Function
{
    private readonly Tensor _x;
    private readonly Tensor? _weight;
    private readonly Tensor? _gate;
    private readonly Tensor _inverseRms;

    private GatedHeadNorm(Variable x, Variable? weight, Variable? gate, Tensor inverseRms)
    {
        _x = Save(x.Value);
        _weight = SaveOptional(weight?.Value);
        _gate = SaveOptional(gate?.Value);
        _inverseRms = Keep(inverseRms);
    }

    public static Variable Apply(Variable x, Variable? weight, Variable? gate, double eps)
    {
        ArgumentNullException.ThrowIfNull(x);
        if (x.Shape.Rank < 2 || (weight is not null && (weight.Shape != [x.Shape[-1]] || weight.DType != x.DType)))
            throw new LaspException($"the head norm takes x [.., H, E] and weight [E] of one type, got {x.DType} {x.Shape} and {weight?.DType} {weight?.Shape}");
        if (gate is not null && (gate.Shape != x.Shape || gate.DType != x.DType))
            throw new LaspException($"the head norm's gate is shaped and typed like its input {x.DType} {x.Shape}, got {gate.DType} {gate.Shape}");
        Tensor y = Tensor.Empty(x.Shape, x.DType, x.Device);
        Tensor inverseRms = Tensor.Empty([x.Shape.Rows], x.DType.Accumulator(), x.Device);
        x.Device.Backend.GatedHeadNorm(x.Value, weight?.Value, gate?.Value, eps, y, inverseRms);
        return new GatedHeadNorm(x, weight, gate, inverseRms).Record([x, weight, gate], y);
    }

    protected internal override void Backward(BackwardPass pass)
    {
        Tensor dx = pass.Empty(0);
        using Tensor? dWeight = _weight is null ? null : pass.AddingBufferOrScratch(1);
        Tensor? dgate = _gate is null ? null : pass.Empty(2);
        _x.Device.Backend.GatedHeadNormBackward(_x, _weight, _gate, _inverseRms, pass.RequiredOutput(0), dx, dgate, dWeight);
        pass.Give(0, dx);
        if (dgate is not null) pass.Give(2, dgate);
    }
}
