namespace LaspNative.Runtime.Cuda;

/// <summary>Softmax cross-entropy whose gradient overwrites the logits (cross_entropy.cu).</summary>
internal sealed partial class CudaBackend
{
    private const uint CrossEntropyThreads = 512;

    /// <summary>A label beyond the vocabulary cannot be named here, for the labels are on the GPU: it makes the loss NaN.</summary>
    public void CrossEntropyInPlace(Tensor logits, Tensor labels, double gradientScale, Tensor losses)
    {
        RequireElement(logits);
        RequireType(labels, DType.I32);
        RequireType(losses, DType.F32);
        RequireSameCount(labels, losses);
        if (logits.Shape.Rows != labels.Count) throw new LaspException($"{labels.Count} labels do not fit logits of shape {logits.Shape}");
        Launch(
            "cross_entropy", "cross_entropy_in_place", logits.DType, Blocks(labels.Count, CrossEntropyThreads),
            logits.Pointer, labels.Pointer, logits.Shape[-1], (float)gradientScale, losses.Pointer);
    }
}
