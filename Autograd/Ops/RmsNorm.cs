using LaspNative.Runtime;

namespace LaspNative.Autograd;

/// <summary>
/// y = x r w        r = 1 / sqrt(mean(x^2) + eps) per row of x [.., C]; w [C], or none (SimpleRMSNorm)
/// dx = r (w dy - x r^2 mean(w dy x))        dw = sum over rows of dy x r
/// Saves x and r; y is made again for its readers in backward. The sum for dw is added straight into the parameter's fp32 gradient.
/// </summary>
public sealed class RmsNorm : Function
{
    private readonly SavedValue _x;
    private readonly SavedValue? _weight;
    private readonly Tensor _inverseRms;
    private readonly double _eps;

    private RmsNorm(Variable x, Variable? weight, double eps, Tensor inverseRms)
    {
        _x = Save(x);
        _weight = SaveOptional(weight);
        _inverseRms = Keep(inverseRms);
        _eps = eps;
    }

    public static Variable Apply(Variable x, Variable? weight, double eps)
    {
        ArgumentNullException.ThrowIfNull(x);
        if (x.Shape.Rank == 0 || (weight is not null && (weight.Shape != [x.Shape[-1]] || weight.DType != x.DType)))
            throw new LaspException($"RMSNorm takes x [.., C] and weight [C] of one type, got {x.DType} {x.Shape} and {weight?.DType} {weight?.Shape}");
        Tensor y = Tensor.Empty(x.Shape, x.DType, x.Device);
        Tensor inverseRms = Tensor.Empty([x.Shape.Rows], x.DType.Accumulator(), x.Device);
        x.Device.Backend.RmsNorm(x.Value, weight?.Value, eps, y, inverseRms);
        var function = new RmsNorm(x, weight, eps, inverseRms);
        return function.MakeAgain(function.Record([x, weight], y));
    }

    protected internal override Tensor MakeOutput()
    {
        Tensor x = _x.Tensor, y = Tensor.Empty(x.Shape, x.DType, x.Device);
        x.Device.Backend.RmsNorm(x, _weight?.Tensor, _eps, y, _inverseRms);
        return y;
    }

    protected internal override void Backward(BackwardPass pass)
    {
        Tensor dx = pass.Empty(0);
        using Tensor? dWeight = _weight is null ? null : pass.AddingBufferOrScratch(1);
        dx.Device.Backend.RmsNormBackward(_x.Tensor, _weight?.Tensor, _inverseRms, pass.RequiredOutput(0), dx, dWeight);
        pass.Give(0, dx);
    }
}
