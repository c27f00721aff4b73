using LaspNative.Runtime;

namespace LaspNative.Autograd;

/// <summary>
/// h = x + residual        y = h r w        r = 1 / sqrt(mean(h^2) + eps) per row of h [.., C]; w [C], or none (SimpleRMSNorm)
/// dx = dresidual = dh + r (w dy - h r^2 mean(w dy h))        dw = sum over rows of dy h r
/// Both sums and the norm cross memory once. Saves h and r; y is made again for its readers in backward. x and residual share one gradient until one of them must be written.
/// Without a residual h is x itself, handed through so that its gradient is summed here all the same.
/// </summary>
public sealed class AddRmsNorm : Function
{
    private readonly Tensor _h;
    private readonly SavedValue? _weight;
    private readonly Tensor _inverseRms;
    private readonly double _eps;
    private readonly bool _hasResidual;

    private AddRmsNorm(Tensor h, Variable? weight, double eps, Tensor inverseRms, bool hasResidual)
    {
        (_eps, _hasResidual) = (eps, hasResidual);
        _h = Save(h);
        _weight = SaveOptional(weight);
        _inverseRms = Keep(inverseRms);
    }

    /// <summary>The sum, which a later sum continues, and its norm.</summary>
    public static (Variable Sum, Variable Normed) Apply(Variable x, Variable? residual, Variable? weight, double eps)
    {
        ArgumentNullException.ThrowIfNull(x);
        if (residual is not null && (x.Shape != residual.Shape || x.DType != residual.DType))
            throw new LaspException($"a sum takes two tensors of one shape and type, got {x.DType} {x.Shape} and {residual.DType} {residual.Shape}");
        if (x.Shape.Rank == 0 || (weight is not null && (weight.Shape != [x.Shape[-1]] || weight.DType != x.DType)))
            throw new LaspException($"RMSNorm takes x [.., C] and weight [C] of one type, got {x.DType} {x.Shape} and {weight?.DType} {weight?.Shape}");
        Tensor h = residual is null ? x.Value.Share() : Tensor.Empty(x.Shape, x.DType, x.Device), y = Tensor.Empty(x.Shape, x.DType, x.Device);
        Tensor inverseRms = Tensor.Empty([x.Shape.Rows], x.DType.Accumulator(), x.Device);
        if (residual is null) x.Device.Backend.RmsNorm(h, weight?.Value, eps, y, inverseRms);
        else x.Device.Backend.AddRmsNorm(x.Value, residual.Value, weight?.Value, eps, h, y, inverseRms);
        var function = new AddRmsNorm(h, weight, eps, inverseRms, residual is not null);
        Variable[] outputs = function.Record([x, residual, weight], [h, y]);
        return (outputs[0], function.MakeAgain(outputs[1]));
    }

    protected internal override Tensor MakeOutput()
    {
        Tensor y = Tensor.Empty(_h.Shape, _h.DType, _h.Device);
        _h.Device.Backend.RmsNorm(_h, _weight?.Tensor, _eps, y, _inverseRms);
        return y;
    }

    protected internal override void Backward(BackwardPass pass)
    {
        Tensor? dh = pass.Output(0);
        if (pass.Output(1) is not { } dy)
        {
            Give(pass, pass.RequiredOutput(0).Share());
            return;
        }
        Tensor dx = pass.Empty(0);
        using Tensor? dWeight = _weight is null ? null : pass.AddingBufferOrScratch(2);
        _h.Device.Backend.AddRmsNormBackward(_h, _weight?.Tensor, _inverseRms, dy, dh, dx, dWeight);
        Give(pass, dx);
    }

    private void Give(BackwardPass pass, Tensor gradient)
    {
        if (_hasResidual) pass.Give(1, gradient.Share());
        pass.Give(0, gradient);
    }
}
