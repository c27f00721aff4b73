using LaspNative.Runtime;

namespace LaspNative.Autograd;

/// <summary>Clipping by the global norm: all gradients are scaled by one factor so that the norm over all of them is at most a bound.</summary>
public static class GradientClipping
{
    /// <summary>min(1, bound / norm); 1 where <paramref name="bound"/> is 0, which means no clipping.</summary>
    /// <param name="squaredNorm">Sum of squares over all gradients (<see cref="AdamW.GlobalSquaredNorm"/>).</param>
    public static double Factor(double squaredNorm, double bound)
    {
        if (!double.IsFinite(squaredNorm)) throw new LaspException($"the squared gradient norm is {squaredNorm}; lower the learning rate or look for a bad batch");
        if (!(bound >= 0)) throw new LaspException($"the bound of gradient clipping is {bound}; use a positive norm, or 0 for none");
        double norm = Math.Sqrt(squaredNorm);
        return bound == 0 || norm <= bound ? 1 : bound / norm;
    }
}
