namespace LaspNative.Runtime.Cuda;

/// <summary>Op families that are not built yet; each leaves this file for one of its own.</summary>
internal sealed partial class CudaBackend : IBackend
{
    public void Fill(double value, Tensor y) => throw new InvalidOperationException("Fill");
    public void Cast(Tensor x, Tensor y) => throw new InvalidOperationException("Cast");
    public void Add(Tensor a, Tensor b, Tensor y) => throw new InvalidOperationException("Add");
    public void AddScaled(Tensor x, double alpha, Tensor y) => throw new InvalidOperationException("AddScaled");
    public void Silu(Tensor x, Tensor y) => throw new InvalidOperationException("Silu");
    public void SiluBackward(Tensor x, Tensor dy, Tensor dx) => throw new InvalidOperationException("SiluBackward");
    public void GatedLinearUnit(Tensor gate, Tensor up, GateActivation activation, Tensor y) => throw new InvalidOperationException("GatedLinearUnit");
    public void GatedLinearUnitBackward(Tensor gate, Tensor up, Tensor dy, GateActivation activation, Tensor dgate, Tensor dup) => throw new InvalidOperationException("GatedLinearUnitBackward");
    public void Sum(Tensor x, Tensor result) => throw new InvalidOperationException("Sum");
    public void AddSumOfSquares(Tensor x, Tensor result) => throw new InvalidOperationException("AddSumOfSquares");
    public void Gemm(Tensor a, bool transposeA, Tensor b, bool transposeB, double alpha, double beta, Tensor c) => throw new InvalidOperationException("Gemm");
    public void Embedding(Tensor ids, Tensor table, Tensor y) => throw new InvalidOperationException("Embedding");
    public void EmbeddingBackward(Tensor ids, Tensor dy, Tensor dTable) => throw new InvalidOperationException("EmbeddingBackward");
    public void RmsNorm(Tensor x, Tensor? weight, double eps, Tensor y, Tensor inverseRms) => throw new InvalidOperationException("RmsNorm");
    public void RmsNormBackward(Tensor x, Tensor? weight, Tensor inverseRms, Tensor dy, Tensor dx, Tensor? dWeight) => throw new InvalidOperationException("RmsNormBackward");
    public void GatedHeadNorm(Tensor x, Tensor? weight, Tensor? gate, double eps, Tensor y, Tensor inverseRms) => throw new InvalidOperationException("GatedHeadNorm");
    public void GatedHeadNormBackward(Tensor x, Tensor? weight, Tensor? gate, Tensor inverseRms, Tensor dy, Tensor dx, Tensor? dgate, Tensor? dWeight) => throw new InvalidOperationException("GatedHeadNormBackward");
    public void Rope(Tensor x, long firstPosition, double theta, bool inverse, Tensor y) => throw new InvalidOperationException("Rope");
    public void LinearAttentionState(Tensor k, Tensor v, Tensor? decay, Tensor state) => throw new InvalidOperationException("LinearAttentionState");
    public void LinearAttention(Tensor q, Tensor k, Tensor v, Tensor? decay, Tensor? initialState, double scale, Tensor o) => throw new InvalidOperationException("LinearAttention");
    public void LinearAttentionBackwardState(Tensor q, Tensor dO, Tensor? decay, double scale, Tensor dState) => throw new InvalidOperationException("LinearAttentionBackwardState");
    public void LinearAttentionBackwardQuery(Tensor k, Tensor v, Tensor dO, Tensor? decay, Tensor? initialState, double scale, Tensor dq) => throw new InvalidOperationException("LinearAttentionBackwardQuery");
    public void LinearAttentionBackwardKeyValue(Tensor q, Tensor k, Tensor v, Tensor dO, Tensor? decay, Tensor? dFinalState, double scale, Tensor dk, Tensor dv) => throw new InvalidOperationException("LinearAttentionBackwardKeyValue");
    public void LinearAttentionBackwardDecay(Tensor q, Tensor k, Tensor v, Tensor dO, Tensor decay, Tensor? initialState, Tensor? dFinalState, double scale, Tensor dDecay) => throw new InvalidOperationException("LinearAttentionBackwardDecay");
    public void RunDecay(Tensor? decay, ReadOnlySpan<long> lengths, Tensor factors) => throw new InvalidOperationException("RunDecay");
    public void CombineStates(Tensor states, Tensor factors, int first, int count, int step, Tensor? initial, Tensor destination) => throw new InvalidOperationException("CombineStates");
    public void CrossEntropyInPlace(Tensor logits, Tensor labels, double gradientScale, Tensor losses) => throw new InvalidOperationException("CrossEntropyInPlace");
    public void AdamW(Tensor gradient, in AdamWStep step, Tensor m, Tensor v, Tensor master, Tensor parameter) => throw new InvalidOperationException("AdamW");
}
