namespace LaspNative.Runtime.Cuda;

internal sealed partial class CudaBackend
{
    public void SoftmaxAttention(Tensor q, Tensor k, Tensor v, Tensor ranges, long firstKey, double scale, Tensor o, Tensor logSumExp) => throw new InvalidOperationException("SoftmaxAttention");

    public void MergeSoftmax(Tensor partial, Tensor partialLogSumExp, Tensor o, Tensor logSumExp) => throw new InvalidOperationException("MergeSoftmax");

    public void SoftmaxDelta(Tensor o, Tensor dO, Tensor delta) => throw new InvalidOperationException("SoftmaxDelta");

    public void SoftmaxAttentionBackward(Tensor q, Tensor k, Tensor v, Tensor dO, Tensor logSumExp, Tensor delta, Tensor ranges, long firstKey, double scale, Tensor dq, Tensor dk, Tensor dv) => throw new InvalidOperationException("SoftmaxAttentionBackward");
}
