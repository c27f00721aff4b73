using System.Numerics;

namespace LaspNative.Runtime.Cpu;

/// <summary>
/// What one head's decay does inside a sub-chunk. Positions count from 0, the sub-chunk's entry; token i (from 0) lies between positions i and i + 1, and
///     E(i, j) = exp(G_i - G_j), 0 &lt;= j &lt;= i &lt;= C,       G_0 = 0
/// is the decay from position j to position i. Sums G restart at every sub-chunk and are fp64; only their differences are exponentiated, so that with g &lt;= 0 no exponent is positive.
/// Rows are packed: queries, keys [C, D], values [C, E], scores [C, C], a state [D, E].
/// </summary>
internal abstract unsafe class ChunkDecay<A>(int keyWidth, long scratch) : IDisposable where A : unmanaged, IBinaryFloatingPointIeee754<A>
{
    protected Workspace Scratch { get; } = Workspace.Rent<double>(scratch);

    protected int KeyWidth { get; } = keyWidth;

    /// <summary>Tokens of a whole sub-chunk.</summary>
    public abstract int Length { get; }

    /// <summary>Tokens of the loaded sub-chunk.</summary>
    protected int Count { get; private set; }

    /// <summary>The decay of a call, by its shape: null, [H], [B,N,H] or [B,N,H,D].</summary>
    public static ChunkDecay<A> Of(Tensor? decay, int keyWidth) => decay?.Shape.Rank == 4 ? new ChannelDecay<A>(decay, keyWidth) : new ScalarDecay<A>(decay, keyWidth);

    /// <summary>Makes tokens [start, start + count) of a head the current sub-chunk.</summary>
    public void Load(long batch, long head, long start, int count)
    {
        Count = count;
        Load(batch, head, start);
    }

    /// <summary>The first token of the last sub-chunk of so many; negative when there is none.</summary>
    public long LastStart(long tokens) => tokens == 0 ? -Length : (tokens - 1) / Length * Length;

    /// <summary>S = E(C, 0) . S + sum_j (E(C, j + 1) . k_j)^T v_j; the keys are overwritten.</summary>
    public void StepForward(A* keys, A* values, int valueWidth, A* state)
    {
        ScaleToEnd(keys);
        ScaleState(state, valueWidth);
        MatrixProduct.Dense(keys, true, values, false, KeyWidth, valueWidth, Count, A.One, A.One, state);
    }

    /// <summary>D = E(C, 0) . D + sum_i scale (E(i + 1, 0) . q_i)^T do_i; the queries are overwritten.</summary>
    public void StepBackward(A* queries, A* gradients, int valueWidth, A scale, A* state)
    {
        ScaleFromStart(queries, scale);
        ScaleState(state, valueWidth);
        MatrixProduct.Dense(queries, true, gradients, false, KeyWidth, valueWidth, Count, A.One, A.One, state);
    }

    /// <summary>x_i = scale E(i + 1, 0) . x_i: the decay from the sub-chunk's entry through token i.</summary>
    public abstract void ScaleFromStart(A* x, A scale);

    /// <summary>x_j = E(C, j + 1) . x_j: the decay from after token j to the sub-chunk's end.</summary>
    public abstract void ScaleToEnd(A* x);

    /// <summary>S = E(C, 0) . S.</summary>
    public abstract void ScaleState(A* state, int valueWidth);

    /// <summary>P_ij = scale sum_d q_id k_jd E(i + 1, j + 1)_d for j &lt;= i, else zero.</summary>
    public abstract void Scores(A* queries, A* keys, A scale, A* scores);

    /// <summary>Adds: y_i += sum_{j&lt;=i} x_ij E(i + 1, j + 1) . k_j.</summary>
    public abstract void AddOverKeys(A* x, A* keys, A* y);

    /// <summary>Adds: y_j += sum_{i&gt;=j} x_ij E(i + 1, j + 1) . q_i.</summary>
    public abstract void AddOverQueries(A* x, A* queries, A* y);

    /// <summary>
    /// dg_i of every token by counting the paths that cross it, [C], or [C, D] per channel:
    ///     sum_{s>=i} q_s . dq_s + sum_{j&lt;i} k_j . dk_j + &lt;E(C, 0) . P, D&gt; + sum_{j&lt;i&lt;=s} scale (E(s + 1, j + 1) . q_s . k_j) gain_sj
    /// with P the entering state, D the gradient of the leaving one, dq and dk what they alone give, gain_sj = do_s.v_j.
    /// </summary>
    public abstract void Gradient(in DecayPaths<A> paths, A* dDecay);

    public void Dispose() => Scratch.Dispose();

    protected abstract void Load(long batch, long head, long start);
}

/// <summary>The paths through one sub-chunk: see <see cref="ChunkDecay{A}.Gradient"/>.</summary>
internal unsafe ref struct DecayPaths<A> where A : unmanaged
{
    public A* Queries;
    public A* Keys;
    public A* QueryGradients; // through the entering state only
    public A* KeyGradients;   // through the leaving state only
    public A* Gains;          // [C, C]
    public A* Entering;
    public A* Leaving;
    public int ValueWidth;
    public A Scale;
}
