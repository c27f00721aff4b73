namespace LaspNative.Runtime.Cuda;

/// <summary>Softmax cross-entropy and its gradient (cross_entropy.cu; cross_entropy_cluster.cu for large vocabularies on Hopper).</summary>
internal sealed partial class CudaBackend
{
    /// <summary>The most threads of a block: THREADS of cross_entropy.cu.</summary>
    private const long CrossEntropyThreads = 1024;

    /// <summary>How much of a row waits in shared memory for the second pass: more would take from the cache that the loads in flight go through, and was slower.</summary>
    private const long CrossEntropyKeptBytes = 80 << 10;

    /// <summary>A row that a cluster takes: more columns than fit one multiprocessor's memory, no more than BLOCKS x THREADS x HELD packs of cross_entropy_cluster.cu.</summary>
    private const long LeastClusterColumns = 64 << 10;
    private const long MostClusterColumns = 128 << 10;
    private const uint ClusterBlocks = 8;
    private const uint ClusterThreads = 512;

    /// <summary>A label beyond the vocabulary cannot be named here, for the labels are on the GPU: it makes the loss NaN.</summary>
    public void CrossEntropy(Tensor logits, Tensor labels, Tensor gradientScale, Tensor losses, Tensor gradient)
    {
        RequireElement(logits);
        RequireType(labels, DType.I32);
        RequireType(losses, DType.F32);
        RequireNumber(gradientScale);
        RequireSameCount(labels, losses);
        RequireSameCount(logits, gradient);
        if (logits.Shape.Rows != labels.Count) throw new LaspException($"{labels.Count} labels do not fit logits of shape {logits.Shape}");
        if (gradient.DType != DType.BF16 && gradient.DType != logits.DType) throw new LaspException($"logits of {logits.DType} have no gradient of {gradient.DType}; it is of their type, or BF16");
        long columns = logits.Shape[-1], kept = Math.Min(columns, CrossEntropyKeptBytes / logits.DType.Size()) / Pack * Pack;
        if (FitsCluster(logits, gradient))
        {
            Launch(
                "cross_entropy_cluster", gradient.DType == DType.BF16 ? "cross_entropy_cluster_to_bf16" : "cross_entropy_cluster_to_f32", logits.DType, Blocks(labels.Count * ClusterBlocks, ClusterThreads),
                logits.Pointer, labels.Pointer, columns, gradientScale.Pointer, losses.Pointer, gradient.Pointer);
            return;
        }
        uint threads = (uint)Math.Clamp(RoundUp(CeilDivide(columns, Pack), WarpThreads), WarpThreads, CrossEntropyThreads);
        Launch(
            "cross_entropy", gradient.DType == DType.BF16 ? "cross_entropy_to_bf16" : "cross_entropy_to_f32", logits.DType, Blocks(labels.Count, threads, kept * logits.DType.Size()),
            logits.Pointer, labels.Pointer, columns, kept, gradientScale.Pointer, losses.Pointer, gradient.Pointer);
    }

    private bool FitsCluster(Tensor logits, Tensor gradient) =>
        _device.Kernels.Architecture == "sm_90a" && logits.DType == DType.F32 && logits.Shape[-1] is > LeastClusterColumns and <= MostClusterColumns && logits.Shape[-1] % Pack == 0
        && logits.Pointer % 16 == 0 && gradient.Pointer % 16 == 0;

    public void CountReciprocal(Tensor count, Tensor reciprocal)
    {
        RequireType(count, DType.F32);
        RequireNumber(reciprocal);
        Launch("cross_entropy", "count_reciprocal", DType.F32, Blocks(1, 1), count.Pointer, (double)IBackend.CountDigit, reciprocal.Pointer);
    }
}
