namespace LaspNative.Runtime.Cuda;

/// <summary>The backend on a GPU. One partial file per op family.</summary>
internal sealed partial class CudaBackend(CudaDevice device)
{
    private readonly CudaDevice _device = device;
}
