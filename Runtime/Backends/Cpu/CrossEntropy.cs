using System.Numerics;
using System.Runtime.Intrinsics;

namespace LaspNative.Runtime.Cpu;

/// <summary>Softmax cross-entropy and its gradient, row by row; the gradient may overwrite the logits.</summary>
internal sealed unsafe partial class CpuBackend
{
    public void CrossEntropy(Tensor logits, Tensor labels, Tensor gradientScale, Tensor losses, Tensor gradient)
    {
        RequireType(labels, DType.I32);
        RequireType(losses, logits.DType.Accumulator());
        RequireScalar(gradientScale, losses.DType);
        RequireSameCount(labels, losses);
        RequireSameCount(logits, gradient);
        RequireLabels(labels, logits.Shape[-1]);
        switch (logits.DType, gradient.DType)
        {
            case (DType.F64, DType.F64): CrossEntropy<double, double, double>(logits, labels, gradientScale, losses, gradient); break;
            case (DType.F32, DType.F32): CrossEntropy<float, float, float>(logits, labels, gradientScale, losses, gradient); break;
            case (DType.F32, DType.BF16): CrossEntropy<float, float, BF16>(logits, labels, gradientScale, losses, gradient); break;
            case (DType.BF16, DType.BF16): CrossEntropy<BF16, float, BF16>(logits, labels, gradientScale, losses, gradient); break;
            default: throw new LaspException($"logits of {logits.DType} have no gradient of {gradient.DType}; it is of their type, or BF16 for F32");
        }
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

    private void CrossEntropy<T, A, TG>(Tensor logits, Tensor labels, Tensor gradientScale, Tensor losses, Tensor gradient)
        where T : unmanaged where TG : unmanaged where A : unmanaged, IBinaryFloatingPointIeee754<A>
    {
        T* p = (T*)logits.Pointer;
        TG* g = (TG*)gradient.Pointer;
        A scale = *(A*)gradientScale.Pointer;
        int* label = (int*)labels.Pointer;
        A* loss = (A*)losses.Pointer;
        int width = checked((int)logits.Shape[-1]);
        ForRanges(labels.Count, Math.Max(1, Grain / 4 / Math.Max(1, width)), (start, length) =>
        {
            for (long r = start; r < start + length; r++) loss[r] = CrossEntropyRow<T, A, TG>(p + (r * width), width, label[r], scale, g + (r * width));
        });
    }

    private static A CrossEntropyRow<T, A, TG>(T* row, int width, int label, A scale, TG* gradient)
        where T : unmanaged where TG : unmanaged where A : unmanaged, IBinaryFloatingPointIeee754<A>
    {
        if (label < 0)
        {
            new Span<TG>(gradient, width).Clear();
            return A.Zero;
        }
        A maximum = Maximum<T, A>(row, width);
        A sum = SumOfExponentials<T, A>(row, width, maximum);
        A target = Element.Widen<T, A>(row[label]);
        WriteSoftmax<T, A, TG>(row, width, maximum, scale / sum, gradient);
        A probability = A.Exp(target - maximum) / sum;
        gradient[label] = Element.Narrow<TG, A>(scale * (probability - A.One));
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

    /// <summary>y = factor * exp(row - maximum); y may be the row.</summary>
    private static void WriteSoftmax<T, A, TG>(T* row, int width, A maximum, A factor, TG* y) where T : unmanaged where TG : unmanaged where A : unmanaged, IBinaryFloatingPointIeee754<A>
    {
        int lanes = Vector512<A>.Count, i = 0;
        Vector512<A> shift = Vector512.Create(maximum);
        for (; i <= width - lanes; i += lanes) Element.Store(VectorMath.Exp(Element.Load<T, A>(row + i) - shift) * factor, y + i);
        if (i < width) Element.Store(VectorMath.Exp(Element.Load<T, A>(row + i, width - i) - shift) * factor, y + i, width - i);
    }
}
