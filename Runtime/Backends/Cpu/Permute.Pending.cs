namespace LaspNative.Runtime.Cpu;

internal sealed partial class CpuBackend
{
    public void Permute(Tensor x, ReadOnlySpan<int> axes, Tensor y) => throw new InvalidOperationException("Permute");
}
