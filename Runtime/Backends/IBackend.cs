namespace LaspNative.Runtime;

/// <summary>What a gated linear unit does to its gate before the product.</summary>
public enum GateActivation
{
    /// <summary>x * sigmoid(x): SwiGLU.</summary>
    Silu,

    /// <summary>No activation: the gated linear unit of TransNormerLLM.</summary>
    Identity,
}

/// <summary>One AdamW update's scalars (decoupled weight decay, bias correction by <paramref name="Step"/>, which counts from 1).</summary>
/// <param name="GradientScale">Multiplies the gradient before anything else: the clipping factor.</param>
public readonly record struct AdamWStep(double LearningRate, double Beta1, double Beta2, double Epsilon, double WeightDecay, long Step, double GradientScale);

/// <summary>
/// The narrow waist: all the mathematics that a model needs, once per device kind. Everything above it is device-blind.
/// Conventions, for every method:
/// sources first, then scalars, destinations last; destinations are written in full unless the text says "adds";
/// nothing is allocated (scratch comes from the device's workspace); work is queued on the device's compute stream and may not have run on return;
/// arithmetic is in fp32 (fp64 for F64 tensors) whatever the storage type, and results are the same bits on every run.
/// "T" below is the call's element type, one of F64 (CPU only), F32, BF16; "Acc" is <see cref="DTypes.Accumulator"/> of T.
/// Shapes use the glossary: B batch, N tokens of this run, H query heads, Hk key/value heads (Hk divides H; query head h reads key head h / (H/Hk)), D and E head widths.
/// A destination may be the same tensor as an elementwise source.
/// </summary>
public interface IBackend
{
    // ---- Fill, copy, elementwise (Elementwise.cs) ----

    /// <summary>y = value, any dtype.</summary>
    void Fill(double value, Tensor y);

    /// <summary>y = x, between any two floating-point types (also the same one); shapes of equal count.</summary>
    void Cast(Tensor x, Tensor y);

    /// <summary>y = a + b.</summary>
    void Add(Tensor a, Tensor b, Tensor y);

    /// <summary>Adds: y += alpha * x. x and y may differ in dtype (bf16 into fp32).</summary>
    void AddScaled(Tensor x, double alpha, Tensor y);

    /// <summary>y = x * sigmoid(x).</summary>
    void Silu(Tensor x, Tensor y);

    /// <summary>dx = dy * d silu(x)/dx.</summary>
    void SiluBackward(Tensor x, Tensor dy, Tensor dx);

    /// <summary>y = act(gate) * up, all of one shape.</summary>
    void GatedLinearUnit(Tensor gate, Tensor up, GateActivation activation, Tensor y);

    /// <summary>dgate = dy * up * act'(gate); dup = dy * act(gate).</summary>
    void GatedLinearUnitBackward(Tensor gate, Tensor up, Tensor dy, GateActivation activation, Tensor dgate, Tensor dup);

    // ---- Reductions (Reductions.cs): fixed order, so the same bits on every run ----

    /// <summary>result[0] = sum of x, in Acc; result is [1] of Acc.</summary>
    void Sum(Tensor x, Tensor result);

    /// <summary>Adds: result[0] += sum of x*x; result is [1] of Acc.</summary>
    void AddSumOfSquares(Tensor x, Tensor result);

    // ---- Matrix product (Gemm.cs) ----

    /// <summary>
    /// c = alpha * op(a) op(b) + beta * c with op(x) = x or its transpose over the last two dimensions.
    /// a, b, c are matrices [M,K], [K,N], [M,N] after op, or batches of them with one leading dimension [G, ...], contiguous. a and b share T; c is T or Acc. beta = 0 never reads c.
    /// Accumulates in Acc.
    /// </summary>
    void Gemm(Tensor a, bool transposeA, Tensor b, bool transposeB, double alpha, double beta, Tensor c);

    // ---- Embedding (Embedding.cs) ----

    /// <summary>y[r, :] = table[ids[r], :]; ids I32 or I64 of any shape with R elements, table [V, C], y has R*C elements. An id outside [0, V) gives a zero row.</summary>
    void Embedding(Tensor ids, Tensor table, Tensor y);

    /// <summary>Adds: dTable[ids[r], :] += dy[r, :], rows taken in ascending r; dTable is [V, C] of Acc.</summary>
    void EmbeddingBackward(Tensor ids, Tensor dy, Tensor dTable);

    // ---- Normalisation (Normalization.cs) ----

    /// <summary>y = x * r * weight with r = 1 / sqrt(mean(x^2) + eps) per row. x, y [.., C]; weight [C] of T or null (SimpleRMSNorm); inverseRms [rows] of Acc receives r.</summary>
    void RmsNorm(Tensor x, Tensor? weight, double eps, Tensor y, Tensor inverseRms);

    /// <summary>dx = r * (w*dy - x * r^2 * mean(w*dy*x)); adds dWeight += sum over rows of dy * x * r, dWeight [C] of Acc, null exactly when weight is.</summary>
    void RmsNormBackward(Tensor x, Tensor? weight, Tensor inverseRms, Tensor dy, Tensor dx, Tensor? dWeight);

    /// <summary>
    /// The output of a linear-attention head: y = rmsnorm_E(x) * weight * silu(gate). x, gate, y [.., H, E]; weight [E] of T or null; gate null means no gate;
    /// inverseRms [rows*H] of Acc.
    /// </summary>
    void GatedHeadNorm(Tensor x, Tensor? weight, Tensor? gate, double eps, Tensor y, Tensor inverseRms);

    /// <summary>Gradients of <see cref="GatedHeadNorm"/>; dgate null exactly when gate is; adds into dWeight [E] of Acc, null exactly when weight is.</summary>
    void GatedHeadNormBackward(Tensor x, Tensor? weight, Tensor? gate, Tensor inverseRms, Tensor dy, Tensor dx, Tensor? dgate, Tensor? dWeight);

    // ---- Rotary position embedding (Rope.cs) ----

    /// <summary>
    /// Rotates the pairs (x[d], x[d + D/2]) of x [B,N,H,D] by the angle (firstPosition + n) * theta^(-2d/D); D even. inverse rotates back: it is the backward pass.
    /// Angles are computed in fp64, so that positions in the millions stay exact.
    /// </summary>
    void Rope(Tensor x, long firstPosition, double theta, bool inverse, Tensor y);

    // ---- Linear attention (LinearAttention.cs): S_i = exp(g) S_{i-1} + k_i^T v_i,  o_i = scale q_i S_i ----
    // q, o, dO [B,N,H,D|E]; k [B,N,Hk,D]; v [B,N,Hk,E]; decay: log decay per head [H] of Acc, or null (none); states [B,H,D,E] of Acc.
    // N may be 0. G_i below is i*g for i = 1..N; sub-chunks of 64 tokens carry the state, so no exponent spans the run.

    /// <summary>M = sum_i exp(G_N - G_i) k_i^T v_i: the state that this run leaves when it enters with zero.</summary>
    void LinearAttentionState(Tensor k, Tensor v, Tensor? decay, Tensor state);

    /// <summary>o_i = scale * q_i S_i with S_0 = initialState [B,H,D,E] (null: zero). Intra and inter part in one pass.</summary>
    void LinearAttention(Tensor q, Tensor k, Tensor v, Tensor? decay, Tensor? initialState, double scale, Tensor o);

    /// <summary>dM = sum_i scale * exp(G_i) q_i^T dO_i: the gradient of the entering state that comes from this run's own outputs.</summary>
    void LinearAttentionBackwardState(Tensor q, Tensor dO, Tensor? decay, double scale, Tensor dState);

    /// <summary>dq_i = scale * dO_i S_i^T, the states S_i rebuilt from initialState, k and v.</summary>
    void LinearAttentionBackwardQuery(Tensor k, Tensor v, Tensor dO, Tensor? decay, Tensor? initialState, double scale, Tensor dq);

    /// <summary>
    /// dk_i = v_i D_i^T, dv_i = k_i D_i with D_N = dFinalState [B,H,D,E] (null: zero) and D_{i-1} = exp(g) (D_i) + ..., where D_i includes scale q_i^T dO_i of token i itself.
    /// With Hk &lt; H the query heads of a group are summed.
    /// </summary>
    void LinearAttentionBackwardKeyValue(Tensor q, Tensor k, Tensor v, Tensor dO, Tensor? decay, Tensor? dFinalState, double scale, Tensor dk, Tensor dv);

    /// <summary>
    /// dDecay_h = sum over this run's positions of the paths that cross them, [H] of Acc. Computed forward-mode, without subtraction: with T = dS/dg of this run
    /// (zero on entry), dg = sum_i scale * q_i T_i . dO_i + &lt;T_N, dFinalState&gt;.
    /// </summary>
    void LinearAttentionBackwardDecay(Tensor q, Tensor k, Tensor v, Tensor dO, Tensor decay, Tensor? initialState, Tensor? dFinalState, double scale, Tensor dDecay);

    /// <summary>factors[j, h] = exp(lengths[j] * decay[h]): the A of a run of lengths[j] tokens, [lengths.Length, H] of Acc; 1 where decay is null.</summary>
    void RunDecay(Tensor? decay, ReadOnlySpan<long> lengths, Tensor factors);

    /// <summary>
    /// Horner's rule over the runs' pairs (A_j, M_j): P = initial (null: zero); for j = first, first + step, ... (count times): P = fma(A_j, P, M_j).
    /// states [W, B,H,D,E], factors [W, H], initial and destination [B,H,D,E], all of Acc; step is +1 or -1. The one kernel of every strategy, so that all give the same bits.
    /// </summary>
    void CombineStates(Tensor states, Tensor factors, int first, int count, int step, Tensor? initial, Tensor destination);

    // ---- Loss (CrossEntropy.cs) ----

    /// <summary>
    /// Per row r of logits [R, V]: losses[r] = logsumexp(logits[r]) - logits[r, label], and in place logits[r, :] = gradientScale * (softmax(logits[r]) - onehot(label)).
    /// labels I32 [R]; a negative label is ignored: loss 0, gradient 0. losses [R] of Acc. logits is T or Acc.
    /// </summary>
    void CrossEntropyInPlace(Tensor logits, Tensor labels, double gradientScale, Tensor losses);

    // ---- Optimizer (AdamW.cs) ----

    /// <summary>
    /// One AdamW step on fp32 (Acc) master weights: m = b1 m + (1-b1) g; v = b2 v + (1-b2) g^2; master -= lr * (mhat / (sqrt(vhat) + eps) + wd * master); then parameter = master rounded to its dtype
    /// (parameter may be the same tensor as master). gradient, m, v, master are of Acc.
    /// </summary>
    void AdamW(Tensor gradient, in AdamWStep step, Tensor m, Tensor v, Tensor master, Tensor parameter);
}
