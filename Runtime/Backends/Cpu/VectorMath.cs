using System.Runtime.CompilerServices;
using System.Runtime.Intrinsics;

namespace LaspNative.Runtime.Cpu;

/// <summary>The few functions that the framework's vectors lack for a generic element type: fused multiply-add, and an exponential fast in fp32.</summary>
internal static class VectorMath
{
    /// <summary>a * b + c with one rounding.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Vector512<A> Fma<A>(Vector512<A> a, Vector512<A> b, Vector512<A> c) where A : unmanaged =>
        typeof(A) == typeof(float)
            ? Vector512.FusedMultiplyAdd(a.As<A, float>(), b.As<A, float>(), c.As<A, float>()).As<float, A>()
            : Vector512.FusedMultiplyAdd(a.As<A, double>(), b.As<A, double>(), c.As<A, double>()).As<double, A>();

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Vector256<A> Fma<A>(Vector256<A> a, Vector256<A> b, Vector256<A> c) where A : unmanaged =>
        typeof(A) == typeof(float)
            ? Vector256.FusedMultiplyAdd(a.As<A, float>(), b.As<A, float>(), c.As<A, float>()).As<float, A>()
            : Vector256.FusedMultiplyAdd(a.As<A, double>(), b.As<A, double>(), c.As<A, double>()).As<double, A>();

    /// <summary>The sum of the lanes, in fp64.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static double Total<A>(Vector512<A> x) where A : unmanaged => typeof(A) == typeof(float)
        ? Vector512.Sum(Vector512.WidenLower(x.As<A, float>()) + Vector512.WidenUpper(x.As<A, float>()))
        : Vector512.Sum(x.As<A, double>());

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Vector512<A> Exp<A>(Vector512<A> x) where A : unmanaged =>
        typeof(A) == typeof(float)
            ? Exp(x.As<A, float>()).As<float, A>()
            : Vector512.Exp(x.As<A, double>()).As<double, A>();

    /// <summary>a - b, taken in fp64.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static unsafe Vector512<A> Difference<A>(double* a, double* b) where A : unmanaged =>
        typeof(A) == typeof(float)
            ? Vector512.Narrow(Vector512.Load(a) - Vector512.Load(b), Vector512.Load(a + 8) - Vector512.Load(b + 8)).As<float, A>()
            : (Vector512.Load(a) - Vector512.Load(b)).As<double, A>();

    /// <summary>1 / (1 + exp(-x)).</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Vector512<A> Sigmoid<A>(Vector512<A> x) where A : unmanaged => Vector512<A>.One / (Vector512<A>.One + Exp(-x));

    /// <summary>d/dx x sigmoid(x) = s (1 + x (1 - s)).</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Vector512<A> SiluDerivative<A>(Vector512<A> x) where A : unmanaged
    {
        Vector512<A> s = Sigmoid(x);
        return s * Fma(x, Vector512<A>.One - s, Vector512<A>.One);
    }

    /// <summary>
    /// exp(x) = 2^n exp(r) with n = round(x / ln 2), |r| &lt;= ln 2 / 2: Taylor's polynomial of degree 7 is good to 5e-9 there.
    /// 2^n is applied in two factors, so that results reach into the subnormals; below them 0, above the largest float infinity, NaN stays NaN.
    /// </summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static Vector512<float> Exp(Vector512<float> x)
    {
        const float roundingShift = 12582912f; // 1.5 * 2^23: adding it leaves round(t) in the low bits
        Vector512<float> low = Vector512.Create(-104f), high = Vector512.Create(89f);
        x = Vector512.ConditionalSelect(Vector512.LessThan(x, low), low, x);
        x = Vector512.ConditionalSelect(Vector512.GreaterThan(x, high), high, x);
        Vector512<float> shifted = Fma(x, Vector512.Create(1.44269504f), Vector512.Create(roundingShift));
        Vector512<float> n = shifted - Vector512.Create(roundingShift);
        Vector512<float> r = Fma(n, Vector512.Create(-0.693147182f), x);
        r = Fma(n, Vector512.Create(1.90465421e-9f), r); // ln 2 as the sum of two floats

        Vector512<float> p = Vector512.Create(1f / 5040);
        p = Fma(p, r, Vector512.Create(1f / 720));
        p = Fma(p, r, Vector512.Create(1f / 120));
        p = Fma(p, r, Vector512.Create(1f / 24));
        p = Fma(p, r, Vector512.Create(1f / 6));
        p = Fma(p, r, Vector512.Create(0.5f));
        p = Fma(p, r, Vector512<float>.One);
        p = Fma(p, r, Vector512<float>.One);

        Vector512<int> exponent = shifted.AsInt32() - Vector512.Create(roundingShift).AsInt32();
        Vector512<int> half = exponent >> 1;
        return p * PowerOfTwo(half) * PowerOfTwo(exponent - half);
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static Vector512<float> PowerOfTwo(Vector512<int> n) => ((n + Vector512.Create(127)) << 23).AsSingle();
}
