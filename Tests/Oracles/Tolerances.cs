using LaspNative.Runtime;

namespace LaspNative.Tests.Oracles;

/// <summary>The one table of relative tolerances (<see cref="Errors.Relative"/>) of results against fp64.</summary>
public static class Tolerances
{
    /// <summary>Of one op. A BF16 result has no fixed tolerance: twice the error of the naive op in bf16 (<see cref="Bf16"/>).</summary>
    public static double Of(DType dtype) => dtype switch
    {
        DType.F64 => 1e-12,
        DType.F32 => 5e-6,
        _ => throw new ArgumentException("a BF16 result is judged by the naive op in bf16", nameof(dtype)),
    };

    /// <summary>Twice the naive error; never below what fp32 sums may differ by.</summary>
    public static double Bf16(double naiveError) => Math.Max(2 * naiveError, Of(DType.F32));

    /// <summary>Of a gradient against central differences in fp64.</summary>
    public const double GradientCheck = 1e-6;
}
