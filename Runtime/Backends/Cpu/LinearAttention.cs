using System.Numerics;

namespace LaspNative.Runtime.Cpu;

/// <summary>
/// Chunked linear attention: sub-chunks of C tokens carry the state S [D, E], and all work inside one is small matrix products. With (i, j) inside a sub-chunk and E the decay between
/// positions (<see cref="ChunkDecay{A}"/>)
///     P_ij = scale (q_i . E . k_j) for j &lt;= i        o = P V + (scale E(from entry) . q) S        S &lt;- E(all) . S + (E(to end) . k)^T V.
/// Heads run in parallel; each is walked in token order by one thread.
/// </summary>
internal sealed unsafe partial class CpuBackend
{
    /// <summary>One: heads run in parallel, and each is walked whole, so segments passed by a caller are neither read nor written.</summary>
    public long LinearAttentionSegments(long batches, long tokens, long heads, long keyWidth, long valueWidth) => 1;

    public void LinearAttentionState(Tensor k, Tensor v, Tensor? decay, Tensor? state, Tensor? segments = null, Tensor? initialState = null, PackedRuns? runs = null)
    {
        if (state is null) return;
        if (runs is not null)
        {
            RunByRun.State(this, runs, k, v, decay, state, initialState);
            return;
        }
        AttentionExtents extents = AttentionExtents.Of(k, v, state);
        RequireAttention(extents, decay, state, k, v);
        if (initialState is not null) RequireAttention(extents, decay, initialState, k, v);
        ForEach(extents.Batches * extents.Heads, task =>
        {
            (long batch, long head) = Math.DivRem(task, extents.Heads);
            if (k.DType == DType.F64) State<double, double>(extents, batch, head, k, v, decay, initialState, state);
            else if (k.DType == DType.F32) State<float, float>(extents, batch, head, k, v, decay, initialState, state);
            else State<BF16, float>(extents, batch, head, k, v, decay, initialState, state);
        });
    }

    public void LinearAttention(Tensor q, Tensor k, Tensor v, Tensor? decay, Tensor? initialState, double scale, Tensor o, Tensor? segments = null, PackedRuns? runs = null)
    {
        if (runs is not null)
        {
            RunByRun.Output(this, runs, q, k, v, decay, initialState, scale, o);
            return;
        }
        AttentionExtents extents = AttentionExtents.Of(q, k, v, o);
        RequireAttention(extents, decay, initialState, q, k, v, o);
        ForEach(extents.Batches * extents.Heads, task =>
        {
            (long batch, long head) = Math.DivRem(task, extents.Heads);
            if (q.DType == DType.F64) Output<double, double>(extents, batch, head, q, k, v, decay, initialState, scale, o);
            else if (q.DType == DType.F32) Output<float, float>(extents, batch, head, q, k, v, decay, initialState, scale, o);
            else Output<BF16, float>(extents, batch, head, q, k, v, decay, initialState, scale, o);
        });
    }

    private static void State<T, A>(AttentionExtents extents, long batch, long head, Tensor k, Tensor v, Tensor? decay, Tensor? initialState, Tensor state)
        where T : unmanaged where A : unmanaged, IBinaryFloatingPointIeee754<A>
    {
        int d = extents.KeyWidth, e = extents.ValueWidth;
        using var chunk = ChunkDecay<A>.Of(decay, d);
        int length = chunk.Length;
        using Workspace scratch = Workspace.Rent<A>(length * (long)(d + e));
        A* keys = scratch.Take<A>(length * (long)d), values = scratch.Take<A>(length * (long)e);
        HeadRows<T> keyRows = HeadRows<T>.Of(k, batch, extents.KeyHead(head)), valueRows = HeadRows<T>.Of(v, batch, extents.KeyHead(head));
        A* s = (A*)state.Pointer + (((batch * extents.Heads) + head) * d * e);
        LoadState(initialState, (batch * extents.Heads) + head, d * e, s);
        for (long start = 0; start < extents.Tokens; start += length)
        {
            int count = (int)Math.Min(length, extents.Tokens - start);
            chunk.Load(batch, head, start, count);
            keyRows.Gather(start, count, keys);
            valueRows.Gather(start, count, values);
            chunk.StepForward(keys, values, e, s);
        }
    }

    private static void Output<T, A>(AttentionExtents extents, long batch, long head, Tensor q, Tensor k, Tensor v, Tensor? decay, Tensor? initialState, double scale, Tensor o)
        where T : unmanaged where A : unmanaged, IBinaryFloatingPointIeee754<A>
    {
        int d = extents.KeyWidth, e = extents.ValueWidth;
        HeadRows<T> queryRows = HeadRows<T>.Of(q, batch, head), outputRows = HeadRows<T>.Of(o, batch, head);
        HeadRows<T> keyRows = HeadRows<T>.Of(k, batch, extents.KeyHead(head)), valueRows = HeadRows<T>.Of(v, batch, extents.KeyHead(head));
        using var chunk = ChunkDecay<A>.Of(decay, d);
        int length = chunk.Length;
        using Workspace scratch = Workspace.Rent<A>((length * (2L * (d + e))) + (length * length) + ((long)d * e));
        A* queries = scratch.Take<A>(length * (long)d), keys = scratch.Take<A>(length * (long)d);
        A* values = scratch.Take<A>(length * (long)e), outputs = scratch.Take<A>(length * (long)e);
        A* scores = scratch.Take<A>(length * length), s = scratch.Take<A>((long)d * e);
        A factor = A.CreateTruncating(scale);
        LoadState(initialState, (batch * extents.Heads) + head, d * e, s);
        for (long start = 0; start < extents.Tokens; start += length)
        {
            int count = (int)Math.Min(length, extents.Tokens - start);
            chunk.Load(batch, head, start, count);
            queryRows.Gather(start, count, queries);
            keyRows.Gather(start, count, keys);
            valueRows.Gather(start, count, values);
            chunk.Scores(queries, keys, factor, scores);
            MatrixProduct.Dense(scores, false, values, false, count, e, count, A.One, A.Zero, outputs);
            chunk.ScaleFromStart(queries, factor);
            MatrixProduct.Dense(queries, false, s, false, count, e, d, A.One, A.One, outputs);
            outputRows.Scatter(outputs, start, count);
            chunk.StepForward(keys, values, e, s);
        }
    }

    /// <summary>Copies state number <paramref name="index"/>; zero when there is none.</summary>
    private static void LoadState<A>(Tensor? state, long index, int size, A* s) where A : unmanaged
    {
        if (state is null) new Span<A>(s, size).Clear();
        else new ReadOnlySpan<A>((A*)state.Pointer + (index * size), size).CopyTo(new Span<A>(s, size));
    }

    /// <summary>Throws unless all rows are of one type and decay and state are of its accumulator and have the call's extents.</summary>
    private static void RequireAttention(AttentionExtents extents, Tensor? decay, Tensor? state, params ReadOnlySpan<Tensor> rows)
    {
        foreach (Tensor tensor in rows) RequireType(tensor, rows[0].DType);
        DType accumulator = rows[0].DType.Accumulator();
        if (decay is not null)
        {
            RequireType(decay, accumulator);
            if (!extents.Fits(decay.Shape))
                throw new LaspException($"a decay of shape {decay.Shape} does not fit; expected [H], [B,N,H] or [B,N,H,D] with B={extents.Batches}, N={extents.Tokens}, H={extents.Heads}, D={extents.KeyWidth}");
        }
        if (state is null) return;
        RequireType(state, accumulator);
        Shape expected = [extents.Batches, extents.Heads, extents.KeyWidth, extents.ValueWidth];
        if (state.Shape != expected) throw new LaspException($"a state of shape {state.Shape} does not fit; expected {expected}");
    }
}
