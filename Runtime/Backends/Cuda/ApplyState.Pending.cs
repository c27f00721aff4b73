namespace LaspNative.Runtime.Cuda;

internal sealed partial class CudaBackend
{
    public void ApplyState(Tensor x, Tensor state, bool transpose, double scale, Tensor y) => throw new InvalidOperationException("ApplyState");
}
