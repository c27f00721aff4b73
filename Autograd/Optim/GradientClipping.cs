using LaspNative.Runtime;

namespace LaspNative.Autograd;

/// <summary>Clipping by the global norm: all gradients are scaled by one factor so that the norm over all of them is at most a bound. The host sees neither.</summary>
public static class GradientClipping
{
    /// <summary>
    /// min(1, bound / norm), [1], the caller's; 1 where <paramref name="bound"/> is 0, which means no clipping. NaN where norm or loss is not finite: an update with it changes nothing.
    /// </summary>
    /// <param name="squaredNorm">Sum of squares over all gradients, [1] in fp32 (fp64): <see cref="AdamW.AddSquaredNorm"/>.</param>
    /// <param name="loss">[1] of the same type.</param>
    public static Tensor Factor(Tensor squaredNorm, Tensor loss, double bound)
    {
        ArgumentNullException.ThrowIfNull(squaredNorm);
        ArgumentNullException.ThrowIfNull(loss);
        if (!(bound >= 0)) throw new LaspException($"the bound of gradient clipping is {bound}; use a positive norm, or 0 for none");
        Tensor factor = Tensor.Empty([1], squaredNorm.DType, squaredNorm.Device, MemoryCategory.Workspace);
        squaredNorm.Device.Backend.ClipFactor(squaredNorm, loss, bound, factor);
        return factor;
    }
}
