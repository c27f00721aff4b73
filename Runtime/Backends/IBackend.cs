namespace LaspNative.Runtime;

/// <summary>What a gated linear unit does to its gate before the product.</summary>
public enum GateActivation
{
    /// <summary>x * sigmoid(x): SwiGLU.</summary>
    Silu,

    /// <summary>No activation: the gated linear unit of TransNormerLLM.</summary>
    Identity,
}

/// <summary>What all tensors of one AdamW update share (bias correction by <paramref name="Step"/>, which counts from 1).</summary>
public readonly record struct AdamWStep(double LearningRate, double Beta1, double Beta2, double Epsilon, long Step);

/// <summary>One tensor's part in an AdamW update, all of one number of elements.</summary>
/// <param name="Gradient">Of Acc, or BF16.</param>
/// <param name="M">First moment, of Acc.</param>
/// <param name="V">Second moment, of Acc.</param>
/// <param name="Master">The weights, of Acc.</param>
/// <param name="Parameter">The weights rounded to T; may be the same tensor as the master.</param>
public readonly record struct AdamWRow(Tensor Gradient, Tensor M, Tensor V, Tensor Master, Tensor Parameter, double WeightDecay);

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

    /// <summary>y = factor[0] * x, with a factor [1] of Acc that the device knows.</summary>
    void Scale(Tensor x, Tensor factor, Tensor y);

    /// <summary>Adds: y += alpha * x. x and y may differ in dtype (bf16 into fp32).</summary>
    void AddScaled(Tensor x, double alpha, Tensor y);

    /// <summary>y = x * sigmoid(x).</summary>
    void Silu(Tensor x, Tensor y);

    /// <summary>dx = dy * d silu(x)/dx.</summary>
    void SiluBackward(Tensor x, Tensor dy, Tensor dx);

    /// <summary>y = act(gate) * up, all of one shape.</summary>
    void GatedLinearUnit(Tensor gate, Tensor up, GateActivation activation, Tensor y);

    /// <summary>dgate = dy * up * act'(gate); dup = dy * act(gate); and y again, where it is given: it may be dy.</summary>
    void GatedLinearUnitBackward(Tensor gate, Tensor up, Tensor dy, GateActivation activation, Tensor dgate, Tensor dup, Tensor? y = null);

    // ---- Reductions (Reductions.cs): fixed order, so the same bits on every run ----

    /// <summary>result[0] = sum of x, in Acc; result is [1] of Acc.</summary>
    void Sum(Tensor x, Tensor result);

    /// <summary>Adds: result[0] += sum of x*x over all elements of all tensors, each of Acc or BF16; result is [1] of Acc.</summary>
    void AddSumOfSquares(ReadOnlySpan<Tensor> tensors, Tensor result);

    /// <summary>y = a + b, all of one shape and element type (y may be a or b), and adds: squares, [n] of Acc, gain together the sum of y*y, of y as it was rounded. Which of them gains what is the backend's, the same in every run; n is at least Count / <see cref="SquaresGrain"/>, rounded up.</summary>
    void AddSquaring(Tensor a, Tensor b, Tensor y, Tensor squares);

    /// <summary>Elements whose squares may go to one number.</summary>
    const int SquaresGrain = 2048;

    // ---- Matrix product (Gemm.cs) ----

    /// <summary>
    /// c = alpha * op(a) op(b) + beta * c with op(x) = x or its transpose over the last two dimensions.
    /// a, b, c are matrices [M,K], [K,N], [M,N] after op, or batches of them with one leading dimension [G, ...], contiguous; tensors of any shape are with <see cref="Matrix.Of"/>. a and b share T; c is T or Acc.
    /// beta = 0 never reads c.
    /// Accumulates in Acc.
    /// </summary>
    void Gemm(Matrix a, bool transposeA, Matrix b, bool transposeB, double alpha, double beta, Matrix c);

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
    /// The residual sum and the norm that reads it, in one pass: h = x + residual, y = h * r * weight with r = 1 / sqrt(mean(h^2) + eps) per row.
    /// x, residual, h, y [.., C]; weight [C] of T or null; inverseRms [rows] of Acc receives r. h is rounded to T before it is normed.
    /// </summary>
    void AddRmsNorm(Tensor x, Tensor residual, Tensor? weight, double eps, Tensor h, Tensor y, Tensor inverseRms);

    /// <summary>
    /// The gradient of x and of residual alike: dx = dh + r * (w*dy - h * r^2 * mean(w*dy*h)), where dh (null: zero) is what the other readers of h gave;
    /// adds dWeight += sum over rows of dy * h * r, dWeight [C] of Acc, null exactly when weight is.
    /// </summary>
    void AddRmsNormBackward(Tensor h, Tensor? weight, Tensor inverseRms, Tensor dy, Tensor? dh, Tensor dx, Tensor? dWeight);

    /// <summary>
    /// The output of a linear-attention head: y = rmsnorm_E(x) * weight * silu(gate). x, gate, y [.., H, E]; weight [E] of T or null; gate null means no gate;
    /// inverseRms [rows*H] of Acc.
    /// </summary>
    void GatedHeadNorm(Tensor x, Tensor? weight, Tensor? gate, double eps, Tensor y, Tensor inverseRms);

    /// <summary>Gradients of <see cref="GatedHeadNorm"/>; dgate null exactly when gate is; adds into dWeight [E] of Acc, null exactly when weight is. dx may be x and dgate may be gate.</summary>
    void GatedHeadNormBackward(Tensor x, Tensor? weight, Tensor? gate, Tensor inverseRms, Tensor dy, Tensor dx, Tensor? dgate, Tensor? dWeight);

    // ---- Rotary position embedding (Rope.cs) ----

    /// <summary>
    /// Rotates the pairs (x[d], x[d + D/2]) of x [B,N,H,D] by the angle (firstPosition + n) * theta^(-2d/D); D even. inverse rotates back: it is the backward pass.
    /// Angles are computed in fp64, so that positions in the millions stay exact.
    /// </summary>
    void Rope(Tensor x, long firstPosition, double theta, bool inverse, Tensor y);

    /// <summary>The feature map and the rotation of a query or key in one pass: y = R silu(x), where R is what <see cref="Rope"/> does to x [B,N,H,D].</summary>
    void SiluRope(Tensor x, long firstPosition, double theta, Tensor y);

    /// <summary>dx = silu'(x) * R^-1 dy. dx may be x or dy.</summary>
    void SiluRopeBackward(Tensor x, Tensor dy, long firstPosition, double theta, Tensor dx);

    // ---- Linear attention (LinearAttention.cs): S_i = a_i . S_{i-1} + k_i^T v_i,  o_i = scale q_i S_i,  a_i = exp(g_i) ----
    // q, o, dO [B,N,H,D|E]; k [B,N,Hk,D]; v [B,N,Hk,E]; states [B,H,D,E] of Acc.
    // decay: the log decay g of Acc, told apart by its shape: null (none), [H] per head, [B,N,H] per token and head, [B,N,H,D] per token, head and key channel (a multiplies the rows of S).
    // N may be 0. G_i below is the sum of g over tokens 1..i; it restarts at every sub-chunk of at most 64 tokens, which carries the state, so no exponent spans the run.

    // A device may cut a run into segments that it walks side by side: one pass leaves each segment's own state, an ordered scan makes of them the states that enter, a walk makes the outputs.
    // What one call has found out another can use: "segments" is null (then the call makes its own pass), or [LinearAttentionSegments(..),B,H,D,E] of Acc, which the device alone writes and reads.

    // runs: several packed runs beside each other, in one call; then B is 1, segments and paths are null, and states (initial, final and their gradients) are [runs,H,D,E], one for each.

    /// <summary>Into how many segments this device cuts a run of these extents, the same for all calls of one run. With 1 nothing is gained by passing segments.</summary>
    long LinearAttentionSegments(long batches, long tokens, long heads, long keyWidth, long valueWidth);

    /// <summary>
    /// state = A initialState + M with M = sum_i exp(G_N - G_i) . k_i^T v_i: what this run leaves; without initialState M alone. segments receives each segment's own;
    /// with them state may be null, where only they are wanted.
    /// </summary>
    void LinearAttentionState(Tensor k, Tensor v, Tensor? decay, Tensor? state, Tensor? segments = null, Tensor? initialState = null, PackedRuns? runs = null);

    /// <summary>
    /// o_i = scale * q_i S_i with S_0 = initialState [B,H,D,E] (null: zero). Intra and inter part in one pass.
    /// segments: as <see cref="LinearAttentionState"/> left them; they become the states that enter.
    /// </summary>
    void LinearAttention(Tensor q, Tensor k, Tensor v, Tensor? decay, Tensor? initialState, double scale, Tensor o, Tensor? segments = null, PackedRuns? runs = null);

    /// <summary>
    /// dState = A dFinalState + dM with dM = sum_i scale * exp(G_i) q_i^T dO_i: the gradient of the entering state, without dFinalState as far as it comes from this run's own outputs.
    /// segments receives each segment's own; with them dState may be null.
    /// </summary>
    void LinearAttentionBackwardState(Tensor q, Tensor dO, Tensor? decay, double scale, Tensor? dState, Tensor? segments = null, Tensor? dFinalState = null, PackedRuns? runs = null);

    /// <summary>
    /// dq_i = scale * dO_i S_i^T, the states S_i rebuilt from initialState, k and v. segments: as <see cref="LinearAttention"/> left them; they stay as they are, and initialState is not read.
    /// q and paths, both or neither: paths [LinearAttentionPaths(..)] of F32 receives what <see cref="LinearAttentionBackwardKeyValueDecay"/> can use, and dq then starts on 16 bytes.
    /// </summary>
    void LinearAttentionBackwardQuery(
        Tensor k, Tensor v, Tensor dO, Tensor? decay, Tensor? initialState, double scale, Tensor dq, Tensor? segments = null, Tensor? q = null, Tensor? paths = null,
        PackedRuns? runs = null);

    /// <summary>
    /// Elements of F32 that <see cref="LinearAttentionBackwardQuery"/> can leave for <see cref="LinearAttentionBackwardKeyValueDecay"/>, so that the decay's gradient needs no passes of its own: as much
    /// memory as q and k where D = E = 128. 0: this device, or such a call, has no use for it, or the run is so long that they are not kept.
    /// </summary>
    long LinearAttentionPaths(Tensor q, Tensor k, Tensor v, Tensor dO, Tensor decay) => 0;

    /// <summary>
    /// dk_i = v_i D_i^T, dv_i = k_i D_i with D_N = dFinalState [B,H,D,E] (null: zero) and D_{i-1} = exp(g) (D_i) + ..., where D_i includes scale q_i^T dO_i of token i itself.
    /// With Hk &lt; H the query heads of a group are summed. segments: as <see cref="LinearAttentionBackwardState"/> left them; they become the gradients of the states that leave.
    /// </summary>
    void LinearAttentionBackwardKeyValue(Tensor q, Tensor k, Tensor v, Tensor dO, Tensor? decay, Tensor? dFinalState, double scale, Tensor dk, Tensor dv, Tensor? segments = null, PackedRuns? runs = null);

    /// <summary>
    /// dDecay, shaped like decay: for every position the sum over the paths that cross it (dg_i = sum_{s&gt;=i} q_s.dq_s^inter + sum_{j&lt;i} k_j.dk_j^inter + &lt;A.P, D&gt; + sum_{j&lt;i&lt;=s} ...),
    /// without subtraction. Per head [H] it is computed forward-mode: with T = dS/dg of this run (zero on entry), dg = sum_i scale * q_i T_i . dO_i + &lt;T_N, dFinalState&gt;.
    /// entering, leaving: segments as <see cref="LinearAttention"/> and <see cref="LinearAttentionBackwardKeyValue"/> left them, both or neither; they stay as they are.
    /// </summary>
    void LinearAttentionBackwardDecay(
        Tensor q, Tensor k, Tensor v, Tensor dO, Tensor decay, Tensor? initialState, Tensor? dFinalState, double scale, Tensor dDecay, Tensor? entering = null, Tensor? leaving = null,
        PackedRuns? runs = null);

    /// <summary>
    /// One step of generation, the run of one token with its state in place: S = exp(g) . S + k^T v, then o = scale * q S. q [B,H,D], k [B,Hk,D], v [B,Hk,E], o [B,H,E]; state [B,H,D,E] of Acc.
    /// decay: null, [H], [B,H] or [B,H,D] of Acc. On a GPU D and E are at most 256.
    /// </summary>
    void LinearAttentionDecode(Tensor q, Tensor k, Tensor v, Tensor? decay, Tensor state, double scale, Tensor o);

    /// <summary>
    /// <see cref="LinearAttentionBackwardKeyValue"/> and <see cref="LinearAttentionBackwardDecay"/> in one call, whose passes a device may share. entering: segments as <see cref="LinearAttention"/>
    /// left them; leaving: as <see cref="LinearAttentionBackwardState"/> left them, and they become the gradients of the states that leave. Both or neither.
    /// paths: as <see cref="LinearAttentionBackwardQuery"/> left them; they are used up, dk and dv then start on 16 bytes, and initialState and entering are not read.
    /// </summary>
    void LinearAttentionBackwardKeyValueDecay(
        Tensor q, Tensor k, Tensor v, Tensor dO, Tensor decay, Tensor? initialState, Tensor? dFinalState, double scale, Tensor dk, Tensor dv, Tensor dDecay,
        Tensor? entering = null, Tensor? leaving = null, Tensor? paths = null, PackedRuns? runs = null)
    {
        LinearAttentionBackwardKeyValue(q, k, v, dO, decay, dFinalState, scale, dk, dv, leaving, runs);
        LinearAttentionBackwardDecay(q, k, v, dO, decay, initialState, dFinalState, scale, dDecay, entering, leaving, runs);
    }

    /// <summary>
    /// <see cref="LinearAttentionBackwardQuery"/> and <see cref="LinearAttentionBackwardKeyValueDecay"/> in one call, for whoever knows both ends of the run: a device may make dq, dk and dDecay in one pass.
    /// entering and leaving as there; a device may find what leaves the segments (leaving null) beside what it needs anyway.
    /// </summary>
    void LinearAttentionBackward(
        Tensor q, Tensor k, Tensor v, Tensor dO, Tensor decay, Tensor? initialState, Tensor? dFinalState, double scale, Tensor dq, Tensor dk, Tensor dv, Tensor dDecay,
        Tensor? entering = null, Tensor? leaving = null, PackedRuns? runs = null)
    {
        LinearAttentionBackwardQuery(k, v, dO, decay, initialState, scale, dq, entering, runs: runs);
        LinearAttentionBackwardKeyValueDecay(q, k, v, dO, decay, initialState, dFinalState, scale, dk, dv, dDecay, entering, leaving, runs: runs);
    }

    /// <summary>
    /// factor = A of a run of this many tokens: 1 (decay null), exp(tokens * g) (per head), exp(sum of g over the run's N = tokens) otherwise. factor is [B,H], or [B,H,D] for a decay per channel, of Acc.
    /// </summary>
    void RunDecay(Tensor? decay, long tokens, Tensor factor);

    /// <summary>
    /// Horner's rule over the runs' pairs (A_j, M_j): P = initial (null: zero); for j = first, first + step, ... (count times): P = fma(A_j, P, M_j); of a factor of 0 nothing passes, not even an infinity.
    /// states [W, ...] with R rows of E elements each (usually [W, B,H,D,E], R = B*H*D); factors [W, ...] with F elements each, F a divisor of R: row r takes factor r / (R/F), so [W,B,H] is a factor
    /// per head and [W,B,H,D] one per channel. initial and destination have a state's size; destination may be initial. All of Acc; step is +1 or -1.
    /// The one kernel of every strategy, so that all give the same bits.
    /// </summary>
    void CombineStates(Tensor states, Tensor factors, int first, int count, int step, Tensor? initial, Tensor destination);

    /// <summary>
    /// y = scale * x S (transpose: x S^T) per batch row and head, no decay and no mask: what bidirectional attention does with its one state. state [B,H,D,E] of Acc; x [B,N,Hx,D] (transpose: E),
    /// y [B,N,Hy,E] (transpose: D). Hx is H or Hk (query head h reads x head h / (H/Hx)); Hy is H or Hk (the query heads of a group are summed, in order).
    /// </summary>
    void ApplyState(Tensor x, Tensor state, bool transpose, double scale, Tensor y);

    // ---- Left products of linear attention between two runs (LinearAttentionBlock.cs): for ring attention, which passes no state ----

    /// <summary>
    /// weights = between * exp(G_i) (toEnd false) or between * exp(G_N - G_i) (toEnd true), the decay from a run's entry to token i or from token i to its exit. weights [B,N,H], or [B,N,H,D] for a decay per
    /// channel, of Acc; between [B,H] or [B,H,D], or null: 1. Sums are taken in fp64, because here they span the run.
    /// </summary>
    void DecayWeights(Tensor? decay, bool toEnd, Tensor? between, Tensor weights);

    /// <summary>Adds: o_i += scale * sum_j ((wq_i q_i) . (wk_j k_j)) v_j over all pairs, no mask. q [B,C,H,D], k [B,M,Hk,D], v [B,M,Hk,E] of T; weights [B,.,H] or [B,.,H,D] of Acc, or null: 1; o [B,C,H,E] of Acc.</summary>
    void LinearAttentionBlock(Tensor q, Tensor k, Tensor v, Tensor? queryWeights, Tensor? keyWeights, double scale, Tensor o);

    /// <summary>Adds the gradients of <see cref="LinearAttentionBlock"/>: dq [B,C,H,D], and per QUERY head dk [B,M,H,D] and dv [B,M,H,E], all of Acc (weights included: they are gradients of q, k, v themselves).</summary>
    void LinearAttentionBlockBackward(Tensor q, Tensor k, Tensor v, Tensor dO, Tensor? queryWeights, Tensor? keyWeights, double scale, Tensor dq, Tensor dk, Tensor dv);

    /// <summary>
    /// Adds the paths of x [B,N,H,D] (T) with dx [B,N,H,D] (Acc) that cross each position: dDecay_n += sum_{i&gt;=n} x_i.dx_i (fromEntry true: paths from before the run to token i) or sum_{j&lt;n} x_j.dx_j
    /// (fromEntry false: from token j to after the run). dDecay is [H], [B,N,H] or [B,N,H,D] of Acc; products are summed over D unless it is per channel, and over positions and batch where it is per head.
    /// x with Hk heads is read at h / (H/Hk).
    /// </summary>
    void AddDecayPaths(Tensor x, Tensor dx, bool fromEntry, Tensor dDecay);

    // ---- Softmax attention over a block of keys (SoftmaxAttention.cs) ----
    // q [B,C,H,D], k [B,M,Hk,D], v [B,M,Hk,E]. ranges I64 [C,2]: query i sees the keys whose global index lies in [ranges[i,0], ranges[i,1]] (causal, documents and their absence are all that);
    // key j of the block has global index firstKey + j. No [C,M] matrix is ever held.

    /// <summary>
    /// ranges of the queries at tokens firstToken, firstToken + 1, ..: from the first token of the query's document to the query itself (causal), or to the document's last token.
    /// bounds I64 [documents + 1]: where each packed document starts, from 0, and the end of the last, which is <paramref name="tokens"/>; null: the sequence of this many tokens is one.
    /// </summary>
    void KeyRanges(Tensor? bounds, long tokens, long firstToken, bool causal, Tensor ranges);

    /// <summary>o_i = sum_j softmax_j(scale q_i.k_j) v_j over the visible keys of this block, logSumExp [B,C,H] of Acc; a query that sees none has o = 0 and logSumExp = -infinity. o is T or Acc.</summary>
    void SoftmaxAttention(Tensor q, Tensor k, Tensor v, Tensor ranges, long firstKey, double scale, Tensor o, Tensor logSumExp);

    /// <summary>Merges a partial result over other keys into (o, logSumExp), by running maxima. o, partial [B,C,H,E] and both logSumExp [B,C,H] of Acc.</summary>
    void MergeSoftmax(Tensor partial, Tensor partialLogSumExp, Tensor o, Tensor logSumExp);

    /// <summary>delta_i = sum_e o_ie dO_ie, [B,C,H] of Acc. o is T or Acc, dO is T.</summary>
    void SoftmaxDelta(Tensor o, Tensor dO, Tensor delta);

    /// <summary>
    /// Adds the gradients that pass through this block: with p_ij = exp(scale q_i.k_j - logSumExp_i) and ds_ij = p_ij (dO_i.v_j - delta_i): dq_i += scale sum_j ds_ij k_j, dk_j += scale sum_i ds_ij q_i,
    /// dv_j += sum_i p_ij dO_i. logSumExp and delta are the whole row's. dq [B,C,H,D], dk [B,M,Hk,D], dv [B,M,Hk,E] of Acc; heads of a group are summed in a fixed order.
    /// </summary>
    void SoftmaxAttentionBackward(Tensor q, Tensor k, Tensor v, Tensor dO, Tensor logSumExp, Tensor delta, Tensor ranges, long firstKey, double scale, Tensor dq, Tensor dk, Tensor dv);

    // ---- Layout (Permute.cs) ----

    /// <summary>y = x with its dimensions in another order: y.Shape[i] = x.Shape[axes[i]]; any dtype, up to five dimensions.</summary>
    void Permute(Tensor x, ReadOnlySpan<int> axes, Tensor y);

    // ---- Loss (CrossEntropy.cs) ----

    /// <summary>
    /// Per row r of logits [R, V]: losses[r] = logsumexp(logits[r]) - logits[r, label] and gradient[r, :] = gradientScale[0] * (softmax(logits[r]) - onehot(label)).
    /// labels I32 [R]; a negative label is ignored: loss 0, gradient 0. gradientScale [1] and losses [R] of Acc. logits is T or Acc; gradient is T, or the logits themselves.
    /// </summary>
    void CrossEntropy(Tensor logits, Tensor labels, Tensor gradientScale, Tensor losses, Tensor gradient);

    /// <summary>
    /// reciprocal[0] = 1 / max(1, count[0] * <see cref="CountDigit"/> + count[1]): what makes a mean of a sum over tokens. count F32 [2]: two digits in which a number of up to 2^40 labels
    /// is summed over ranks exactly. reciprocal [1] of Acc.
    /// </summary>
    void CountReciprocal(Tensor count, Tensor reciprocal);

    /// <summary>What the first digit of a count weighs.</summary>
    const int CountDigit = 1 << 20;

    // ---- Optimizer (AdamW.cs) ----

    /// <summary>
    /// factor[0] = min(1, bound / sqrt(squaredNorm[0])), 1 where bound is 0; NaN, which <see cref="AdamW"/> takes as "change nothing", where the squared norm or the loss is not finite.
    /// All [1] of Acc.
    /// </summary>
    void ClipFactor(Tensor squaredNorm, Tensor loss, double bound, Tensor factor);

    /// <summary>
    /// One AdamW step on the master weights of all rows, with g = gradientScale[0] * gradient (null: 1): m = b1 m + (1-b1) g; v = b2 v + (1-b2) g^2;
    /// master -= lr * (mhat / (sqrt(vhat) + eps) + wd * master); then parameter = master rounded to its dtype. A scale of NaN leaves everything as it is. gradientScale [1] of Acc.
    /// </summary>
    void AdamW(ReadOnlySpan<AdamWRow> rows, in AdamWStep step, Tensor? gradientScale);
}
