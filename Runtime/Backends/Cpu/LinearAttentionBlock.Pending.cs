namespace LaspNative.Runtime.Cpu;

internal sealed partial class CpuBackend
{
    public void DecayWeights(Tensor? decay, bool toEnd, Tensor? between, Tensor weights) => throw new InvalidOperationException("DecayWeights");

    public void LinearAttentionBlock(Tensor q, Tensor k, Tensor v, Tensor? queryWeights, Tensor? keyWeights, double scale, Tensor o) => throw new InvalidOperationException("LinearAttentionBlock");

    public void LinearAttentionBlockBackward(Tensor q, Tensor k, Tensor v, Tensor dO, Tensor? queryWeights, Tensor? keyWeights, double scale, Tensor dq, Tensor dk, Tensor dv) => throw new InvalidOperationException("LinearAttentionBlockBackward");

    public void AddDecayPaths(Tensor x, Tensor dx, bool fromEntry, Tensor dDecay) => throw new InvalidOperationException("AddDecayPaths");
}
