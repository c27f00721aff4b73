namespace LaspNative.Runtime.Cuda;

/// <summary>Softmax cross-entropy whose gradient overwrites the logits (cross_entropy.cu).</summary>
internal sealed partial class CudaBackend
{
    /// <summary>The most threads of a block: THREADS of cross_entropy.cu.</summary>
    private const long CrossEntropyThreads = 1024;

    /// <summary>How much of a row waits in shared memory for the second pass: more would take from the cache that the loads in flight go through, and was slower.</summary>
    private const long CrossEntropyKeptBytes = 80 << 10;

    /// <summary>A label beyond the vocabulary cannot be named here, for the labels are on the GPU: it makes the loss NaN.</summary>
    public void CrossEntropyInPlace(Tensor logits, Tensor labels, Tensor gradientScale, Tensor losses)
    {
        RequireElement(logits);
        RequireType(labels, DType.I32);
        RequireType(losses, DType.F32);
        RequireNumber(gradientScale);
        RequireSameCount(labels, losses);
        if (logits.Shape.Rows != labels.Count) throw new LaspException($"{labels.Count} labels do not fit logits of shape {logits.Shape}");
        long columns = logits.Shape[-1], kept = Math.Min(columns, CrossEntropyKeptBytes / logits.DType.Size()) / Pack * Pack;
        uint threads = (uint)Math.Clamp(RoundUp(CeilDivide(columns, Pack), WarpThreads), WarpThreads, CrossEntropyThreads);
        Launch(
            "cross_entropy", "cross_entropy_in_place", logits.DType, Blocks(labels.Count, threads, kept * logits.DType.Size()),
            logits.Pointer, labels.Pointer, columns, kept, gradientScale.Pointer, losses.Pointer);
    }

    public void CountReciprocal(Tensor count, Tensor reciprocal)
    {
        RequireType(count, DType.F32);
        RequireNumber(reciprocal);
        Launch("cross_entropy", "count_reciprocal", DType.F32, Blocks(1, 1), count.Pointer, (double)IBackend.CountDigit, reciprocal.Pointer);
    }
}
