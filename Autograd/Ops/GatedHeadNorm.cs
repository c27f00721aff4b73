using LaspNative.Runtime;

namespace LaspNative.Autograd;

/// <summary>
/// The output of a linear-attention head, one fused pass:
/// y = n w silu(gate)        n = x r, r = 1 / sqrt(mean(x^2) + eps) per row of E; w [E] or none; gate like x or none
/// with u = dy w silu(gate):  dx = r (u - n mean(u n)),  dgate = dy n w silu'(gate),  dw = sum over rows and heads of dy n silu(gate)
/// Saves x, gate and r; y is made again for its readers in backward. dx and dgate take the places of x and gate.
/// </summary>
public sealed class GatedHeadNorm : Function
{
    private readonly SavedValue _x;
    private readonly SavedValue? _weight;
    private readonly SavedValue? _gate;
    private readonly Tensor _inverseRms;
    private readonly double _eps;

    private GatedHeadNorm(Variable x, Variable? weight, Variable? gate, double eps, Tensor inverseRms)
    {
        _x = Save(x);
        _weight = SaveOptional(weight);
        _gate = SaveOptional(gate);
        _inverseRms = Keep(inverseRms);
        _eps = eps;
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
        var function = new GatedHeadNorm(x, weight, gate, eps, inverseRms);
        return function.MakeAgain(function.Record([x, weight, gate], y));
    }

    protected internal override Tensor MakeOutput()
    {
        Tensor x = _x.Tensor, y = Tensor.Empty(x.Shape, x.DType, x.Device);
        x.Device.Backend.GatedHeadNorm(x, _weight?.Tensor, _gate?.Tensor, _eps, y, _inverseRms);
        return y;
    }

    protected internal override void Backward(BackwardPass pass)
    {
        Tensor dx = BackwardPass.InPlaceOf(_x);
        using Tensor? dWeight = _weight is null ? null : pass.AddingBufferOrScratch(1);
        Tensor? dgate = _gate is null ? null : BackwardPass.InPlaceOf(_gate);
        dx.Device.Backend.GatedHeadNormBackward(_x.Tensor, _weight?.Tensor, _gate?.Tensor, _inverseRms, pass.RequiredOutput(0), dx, dgate, dWeight);
        pass.Give(0, dx);
        if (dgate is not null) pass.Give(2, dgate);
    }
}
