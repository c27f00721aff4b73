using System.Numerics;
using System.Runtime.Intrinsics;

namespace LaspNative.Runtime.Cpu;

/// <summary>Softmax cross-entropy whose gradient overwrites the logits, row by row.</summary>
internal sealed unsafe partial class CpuBackend
{
    public void CrossEntropyInPlace(Tensor logits, Tensor labels, Tensor gradientScale, Tensor losses)
    {
        RequireType(labels, DType.I32);
        RequireType(losses, logits.DType.Accumulator());
        RequireScalar(gradientScale, losses.DType);
        RequireSameCount(labels, losses);
        RequireLabels(labels, logits.Shape[-1]);
        if (logits.DType == DType.F64) CrossEntropyInPlace<double, double>(logits, labels, gradientScale, losses);
        else if (logits.DType == DType.F32) CrossEntropyInPlace<float, float>(logits, labels, gradientScale, losses);
        else CrossEntropyInPlace<BF16, float>(logits, labels, gradientScale, losses);
    }

    public void CountReciprocal(Tensor count, Tensor reciprocal)
    {
        RequireType(count, DType.F32);
        RequireScalar(reciprocal, reciprocal.DType);
        float* digits = (float*)count.Pointer;
        SetScalar(reciprocal, 1 / Math.Max(1, ((double)digits[0] * IBackend.CountDigit) + digits[1]));
    }

    private static void RequireLabels(Tensor labels, long vocabulary)
    {
        foreach (int label in labels.Span<int>())
            if (label >= vocabulary) throw new LaspException($"label {label} is not in the vocabulary of {vocabulary}; labels are below it, or negative to be ignored");
    }

    private void CrossEntropyInPlace<T, A>(Tensor logits, Tensor labels, Tensor gradientScale, Tensor losses)
        where T : unmanaged where A : unmanaged, IBinaryFloatingPointIeee754<A>
    {
        T* p = (T*)logits.Pointer;
        A scale = *(A*)gradientScale.Pointer;
        int* label = (int*)labels.Pointer;
        A* loss = (A*)losses.Pointer;
        int width = checked((int)logits.Shape[-1]);
        ForRanges(labels.Count, Math.Max(1, Grain / 4 / Math.Max(1, width)), (start, length) =>
        {
            for (long r = start; r < start + length; r++) loss[r] = CrossEntropyRow<T, A>(p + (r * width), width, label[r], scale);
        });
    }

    private static A CrossEntropyRow<T, A>(T* row, int width, int label, A scale)
        where T : unmanaged where A : unmanaged, IBinaryFloatingPointIeee754<A>
    {
        if (label < 0)
        {
            new Span<T>(row, width).Clear();
            return A.Zero;
        }
        A maximum = Maximum<T, A>(row, width);
        A sum = SumOfExponentials<T, A>(row, width, maximum);
        A target = Element.Widen<T, A>(row[label]);
        WriteSoftmax<T, A>(row, width, maximum, scale / sum);
        A probability = A.Exp(target - maximum) / sum;
        row[label] = Element.Narrow<T, A>(scale * (probability - A.One));
        return A.Log(sum) + maximum - target;
    }

    private static A Maximum<T, A>(T* row, int width) where T : unmanaged where A : unmanaged, IBinaryFloatingPointIeee754<A>
    {
        int lanes = Vector512<A>.Count, i = 0;
        Vector512<A> best = Vector512.Create(A.NegativeInfinity);
        for (; i <= width - lanes; i += lanes) best = Vector512.Max(best, Element.Load<T, A>(row + i));
        A maximum = A.NegativeInfinity;
        for (; i < width; i++) maximum = A.Max(maximum, Element.Widen<T, A>(row[i]));
        for (int lane = 0; lane < lanes; lane++) maximum = A.Max(maximum, best.GetElement(lane));
        return maximum;
    }

    private static A SumOfExponentials<T, A>(T* row, int width, A maximum) where T : unmanaged where A : unmanaged, IBinaryFloatingPointIeee754<A>
    {
        int lanes = Vector512<A>.Count, i = 0;
        Vector512<A> shift = Vector512.Create(maximum), sum = Vector512<A>.Zero;
        for (; i <= width - lanes; i += lanes) sum += VectorMath.Exp(Element.Load<T, A>(row + i) - shift);
        A total = Vector512.Sum(sum);
        for (; i < width; i++) total += A.Exp(Element.Widen<T, A>(row[i]) - maximum);
        return total;
    }

    /// <summary>row = factor * exp(row - maximum).</summary>
    private static void WriteSoftmax<T, A>(T* row, int width, A maximum, A factor) where T : unmanaged where A : unmanaged, IBinaryFloatingPointIeee754<A>
    {
        int lanes = Vector512<A>.Count, i = 0;
        Vector512<A> shift = Vector512.Create(maximum);
        for (; i <= width - lanes; i += lanes) Element.Store(VectorMath.Exp(Element.Load<T, A>(row + i) - shift) * factor, row + i);
        if (i < width) Element.Store(VectorMath.Exp(Element.Load<T, A>(row + i, width - i) - shift) * factor, row + i, width - i);
    }
}
