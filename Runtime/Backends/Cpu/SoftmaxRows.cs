using System.Numerics;
using System.Runtime.CompilerServices;
using System.Runtime.Intrinsics;

namespace LaspNative.Runtime.Cpu;

/// <summary>
/// What softmax attention does per query and head, a row of E numbers each. Two partial results over disjoint keys merge under the larger of their maxima:
///     L = log(exp(L1) + exp(L2))        o = exp(L1 - L) o1 + exp(L2 - L) o2
/// where a row without a visible key has L = -infinity and counts for nothing. delta_i = sum_e o_ie dO_ie is what the softmax takes off every gradient of its row.
/// </summary>
internal sealed unsafe partial class CpuBackend
{
    public void MergeSoftmax(Tensor partial, Tensor partialLogSumExp, Tensor o, Tensor logSumExp)
    {
        RequireSame(partial, o);
        RequireSame(partialLogSumExp, logSumExp);
        RequireType(logSumExp, o.DType);
        RequireRows(o, logSumExp);
        if (o.DType == DType.F64) MergeSoftmax<double>(partial, partialLogSumExp, o, logSumExp);
        else MergeSoftmax<float>(partial, partialLogSumExp, o, logSumExp);
    }

    public void SoftmaxDelta(Tensor o, Tensor dO, Tensor delta)
    {
        RequireSameCount(o, dO);
        if (o.DType != dO.DType) RequireType(o, dO.DType.Accumulator());
        RequireType(delta, dO.DType.Accumulator());
        RequireRows(dO, delta);
        if (dO.DType == DType.F64) SoftmaxDelta<double, double, double>(o, dO, delta);
        else if (dO.DType == DType.F32) SoftmaxDelta<float, float, float>(o, dO, delta);
        else if (o.DType == DType.BF16) SoftmaxDelta<BF16, BF16, float>(o, dO, delta);
        else SoftmaxDelta<float, BF16, float>(o, dO, delta);
    }

    private static void RequireRows(Tensor o, Tensor rows)
    {
        if (o.Shape.Rows != rows.Count) throw new LaspException($"the shape {rows.Shape} does not hold one number for each row of {o.Shape}");
    }

    private void MergeSoftmax<A>(Tensor partial, Tensor partialLogSumExp, Tensor o, Tensor logSumExp) where A : unmanaged, IBinaryFloatingPointIeee754<A>
    {
        int width = checked((int)o.Shape[-1]);
        A* y = (A*)partial.Pointer, yLog = (A*)partialLogSumExp.Pointer, x = (A*)o.Pointer, xLog = (A*)logSumExp.Pointer;
        ForRanges(logSumExp.Count, Math.Max(1, Grain / Math.Max(1, width)), (start, count) =>
        {
            for (long row = start; row < start + count; row++) xLog[row] = MergeRow(y + (row * width), yLog[row], x + (row * width), xLog[row], width);
        });
    }

    /// <summary>Merges row y into x; returns the log of the sum of both.</summary>
    private static A MergeRow<A>(A* y, A yLog, A* x, A xLog, int width) where A : unmanaged, IBinaryFloatingPointIeee754<A>
    {
        if (A.IsNegativeInfinity(yLog)) return xLog;
        if (A.IsNegativeInfinity(xLog))
        {
            new ReadOnlySpan<A>(y, width).CopyTo(new Span<A>(x, width));
            return yLog;
        }
        A maximum = A.Max(xLog, yLog), xWeight = A.Exp(xLog - maximum), yWeight = A.Exp(yLog - maximum), sum = xWeight + yWeight;
        Vector512<A> left = Vector512.Create(xWeight / sum), right = Vector512.Create(yWeight / sum);
        int i = 0;
        for (; i <= width - Vector512<A>.Count; i += Vector512<A>.Count) Step(i, Vector512<A>.Count);
        if (i < width) Step(i, width - i);
        return maximum + A.Log(sum);

        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        void Step(int at, int count) => Element.Store(VectorMath.Fma(left, Element.Load<A, A>(x + at, count), right * Element.Load<A, A>(y + at, count)), x + at, count);
    }

    private void SoftmaxDelta<TO, T, A>(Tensor o, Tensor dO, Tensor delta) where TO : unmanaged where T : unmanaged where A : unmanaged, IBinaryFloatingPointIeee754<A>
    {
        int width = checked((int)dO.Shape[-1]);
        TO* x = (TO*)o.Pointer;
        T* y = (T*)dO.Pointer;
        A* result = (A*)delta.Pointer;
        ForRanges(delta.Count, Math.Max(1, Grain / Math.Max(1, width)), (start, count) =>
        {
            for (long row = start; row < start + count; row++) result[row] = RowProduct<TO, T, A>(x + (row * width), y + (row * width), width);
        });
    }

    private static A RowProduct<TX, TY, A>(TX* x, TY* y, int width) where TX : unmanaged where TY : unmanaged where A : unmanaged, IBinaryFloatingPointIeee754<A>
    {
        Vector512<A> sum = Vector512<A>.Zero;
        int i = 0;
        for (; i <= width - Vector512<A>.Count; i += Vector512<A>.Count) sum = VectorMath.Fma(Element.Load<TX, A>(x + i), Element.Load<TY, A>(y + i), sum);
        if (i < width) sum = VectorMath.Fma(Element.Load<TX, A>(x + i, width - i), Element.Load<TY, A>(y + i, width - i), sum);
        return A.CreateTruncating(VectorMath.Total(sum));
    }
}
