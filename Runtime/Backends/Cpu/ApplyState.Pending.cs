namespace LaspNative.Runtime.Cpu;

internal sealed partial class CpuBackend
{
    public void ApplyState(Tensor x, Tensor state, bool transpose, double scale, Tensor y) => throw new InvalidOperationException("ApplyState");
}
