using System.Runtime.Intrinsics;

namespace LaspNative.Model;

/// <summary>
/// Eight pairs of normal numbers at a time from uniform ones (Box and Muller 1958): r = sqrt(-2 ln(1 - u)), z0 = r cos(2 pi v), z1 = r sin(2 pi v). Logarithm, sine and cosine are polynomials of additions,
/// products and fused products, each rounded as IEEE 754 says, so that every machine gets the same bits whatever the width of its vectors; their errors are below 1e-13, far under what fp32 keeps.
/// </summary>
internal static class NormalNumbers
{
    /// <summary>Coefficients of 2 atanh(s) / s in s^2: 2 / (2 k + 1), for |s| up to (sqrt(2) - 1) / (sqrt(2) + 1) = 0.1716.</summary>
    private static readonly double[] s_logarithm = [2.0, 2.0 / 3, 2.0 / 5, 2.0 / 7, 2.0 / 9, 2.0 / 11, 2.0 / 13, 2.0 / 15, 2.0 / 17];

    /// <summary>Taylor's coefficients of sin(t) / t and cos(t) in t^2, for |t| up to pi / 4.</summary>
    private static readonly double[] s_sine = [1, -1.0 / 6, 1.0 / 120, -1.0 / 5040, 1.0 / 362880, -1.0 / 39916800, 1.0 / 6227020800];
    private static readonly double[] s_cosine = [1, -1.0 / 2, 1.0 / 24, -1.0 / 720, 1.0 / 40320, -1.0 / 3628800, 1.0 / 479001600, -1.0 / 87178291200];

    /// <param name="u">In [0, 1).</param>
    /// <param name="v">In [0, 1).</param>
    public static (Vector512<double> First, Vector512<double> Second) FromUniform(Vector512<double> u, Vector512<double> v)
    {
        Vector512<double> radius = Vector512.Sqrt(Vector512.Create(-2.0) * Logarithm(Vector512<double>.One - u));
        (Vector512<double> sine, Vector512<double> cosine) = SineCosineOfTurns(v);
        return (radius * cosine, radius * sine);
    }

    /// <summary>ln x for x in (0, 1] that is no denormal number: x = 2^e m with m in [sqrt(1/2), sqrt(2)), and ln m = 2 atanh((m - 1) / (m + 1)).</summary>
    private static Vector512<double> Logarithm(Vector512<double> x)
    {
        const long HalfOfRootBits = 0x3FE6A09E667F3BCD; // sqrt(1/2)
        const int MantissaBits = 52;
        Vector512<long> bits = x.AsInt64(), exponent = (bits - Vector512.Create(HalfOfRootBits)) >> MantissaBits;
        Vector512<double> m = (bits - (exponent << MantissaBits)).AsDouble();
        Vector512<double> s = (m - Vector512<double>.One) / (m + Vector512<double>.One);
        return Vector512.FusedMultiplyAdd(s, Polynomial(s_logarithm, s * s), Vector512.ConvertToDouble(exponent) * Vector512.Create(0.6931471805599453));
    }

    /// <summary>Of 2 pi x: x = k / 4 + f with |f| at most 1/8, exactly; then the quadrant k says which polynomial is which, and their signs.</summary>
    private static (Vector512<double> Sine, Vector512<double> Cosine) SineCosineOfTurns(Vector512<double> x)
    {
        Vector512<double> nearest = Vector512.Floor(Vector512.FusedMultiplyAdd(x, Vector512.Create(4.0), Vector512.Create(0.5)));
        Vector512<long> quadrant = Vector512.ConvertToInt64(nearest);
        Vector512<double> t = Vector512.FusedMultiplyAdd(nearest, Vector512.Create(-0.25), x) * Vector512.Create(2 * Math.PI), square = t * t;
        Vector512<double> sine = t * Polynomial(s_sine, square), cosine = Polynomial(s_cosine, square);
        Vector512<double> swapped = Vector512.Equals(quadrant & Vector512<long>.One, Vector512<long>.One).AsDouble();
        return (Negated(Vector512.ConditionalSelect(swapped, cosine, sine), quadrant), Negated(Vector512.ConditionalSelect(swapped, sine, cosine), quadrant + Vector512<long>.One));
    }

    /// <summary>The values, negative where bit 1 of the quadrant is set.</summary>
    private static Vector512<double> Negated(Vector512<double> values, Vector512<long> quadrant) => (values.AsInt64() ^ ((quadrant & Vector512.Create(2L)) << 62)).AsDouble();

    /// <summary>By Horner's rule.</summary>
    private static Vector512<double> Polynomial(double[] coefficients, Vector512<double> x)
    {
        Vector512<double> sum = Vector512.Create(coefficients[^1]);
        for (int i = coefficients.Length - 2; i >= 0; i--) sum = Vector512.FusedMultiplyAdd(sum, x, Vector512.Create(coefficients[i]));
        return sum;
    }
}
