namespace LaspNative.Runtime.Cpu;

/// <summary>The backend on host memory. One partial file per op family.</summary>
internal sealed partial class CpuBackend(CpuDevice device)
{
    private readonly CpuDevice _device = device;
}
