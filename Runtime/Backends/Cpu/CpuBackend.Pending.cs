namespace LaspNative.Runtime.Cpu;

/// <summary>Op families that are not built yet; each leaves this file for one of its own.</summary>
internal sealed partial class CpuBackend
{
    public void Rope(Tensor x, long firstPosition, double theta, bool inverse, Tensor y) => throw new InvalidOperationException("Rope");
    public void LinearAttentionState(Tensor k, Tensor v, Tensor? decay, Tensor state) => throw new InvalidOperationException("LinearAttentionState");
    public void LinearAttention(Tensor q, Tensor k, Tensor v, Tensor? decay, Tensor? initialState, double scale, Tensor o) => throw new InvalidOperationException("LinearAttention");
    public void LinearAttentionBackwardState(Tensor q, Tensor dO, Tensor? decay, double scale, Tensor dState) => throw new InvalidOperationException("LinearAttentionBackwardState");
    public void LinearAttentionBackwardQuery(Tensor k, Tensor v, Tensor dO, Tensor? decay, Tensor? initialState, double scale, Tensor dq) => throw new InvalidOperationException("LinearAttentionBackwardQuery");
    public void LinearAttentionBackwardKeyValue(Tensor q, Tensor k, Tensor v, Tensor dO, Tensor? decay, Tensor? dFinalState, double scale, Tensor dk, Tensor dv) => throw new InvalidOperationException("LinearAttentionBackwardKeyValue");
    public void LinearAttentionBackwardDecay(Tensor q, Tensor k, Tensor v, Tensor dO, Tensor decay, Tensor? initialState, Tensor? dFinalState, double scale, Tensor dDecay) => throw new InvalidOperationException("LinearAttentionBackwardDecay");
    public void RunDecay(Tensor? decay, ReadOnlySpan<long> lengths, Tensor factors) => throw new InvalidOperationException("RunDecay");
    public void CombineStates(Tensor states, Tensor factors, int first, int count, int step, Tensor? initial, Tensor destination) => throw new InvalidOperationException("CombineStates");
}
