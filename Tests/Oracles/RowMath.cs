using System.Numerics;
using System.Runtime.InteropServices;

namespace LaspNative.Tests.Oracles;

/// <summary>The inner loops of the oracles, several elements at a time: they walk all pairs of thousands of tokens.</summary>
internal static class RowMath
{
    public static T Dot<T>(ReadOnlySpan<T> x, ReadOnlySpan<T> y) where T : struct, INumber<T>
    {
        ReadOnlySpan<Vector<T>> left = MemoryMarshal.Cast<T, Vector<T>>(x), right = MemoryMarshal.Cast<T, Vector<T>>(y);
        Vector<T> sums = Vector<T>.Zero;
        for (int i = 0; i < left.Length; i++) sums += left[i] * right[i];
        T sum = Vector.Sum(sums);
        for (int i = left.Length * Vector<T>.Count; i < x.Length; i++) sum += x[i] * y[i];
        return sum;
    }

    /// <summary>y += alpha x.</summary>
    public static void AddScaled<T>(T alpha, ReadOnlySpan<T> x, Span<T> y) where T : struct, INumber<T>
    {
        ReadOnlySpan<Vector<T>> terms = MemoryMarshal.Cast<T, Vector<T>>(x);
        Span<Vector<T>> sums = MemoryMarshal.Cast<T, Vector<T>>(y);
        for (int i = 0; i < sums.Length; i++) sums[i] += terms[i] * alpha;
        for (int i = sums.Length * Vector<T>.Count; i < y.Length; i++) y[i] += alpha * x[i];
    }

    /// <summary>y *= alpha.</summary>
    public static void Scale<T>(T alpha, Span<T> y) where T : struct, INumber<T>
    {
        Span<Vector<T>> values = MemoryMarshal.Cast<T, Vector<T>>(y);
        for (int i = 0; i < values.Length; i++) values[i] *= alpha;
        for (int i = values.Length * Vector<T>.Count; i < y.Length; i++) y[i] *= alpha;
    }
}
