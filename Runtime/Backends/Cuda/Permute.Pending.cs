namespace LaspNative.Runtime.Cuda;

internal sealed partial class CudaBackend
{
    public void Permute(Tensor x, ReadOnlySpan<int> axes, Tensor y) => throw new InvalidOperationException("Permute");
}
