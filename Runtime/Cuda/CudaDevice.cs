namespace LaspNative.Runtime.Cuda;

/// <summary>A GPU. Being built.</summary>
public static class CudaDevice
{
    internal static Device Open(int index) => throw new LaspException($"cuda:{index} cannot be opened: CUDA support is being built");

    internal static Device FromContext(nint context) => throw new LaspException($"context {context} cannot be used: CUDA support is being built");
}
