using System.Numerics;

namespace LaspNative.Runtime.Cpu;

/// <summary>
/// Chunked linear attention: sub-chunks of 64 tokens carry the state S [D, E], and all work inside one is small matrix products. With (i, j) inside a sub-chunk of C tokens
///     P_ij = scale (q_i.k_j) exp((i-j) g) for j &lt;= i        o = P V + (scale exp(G_i) q_i) S        S &lt;- exp(C g) S + (exp(G_C - G_i) k_i)^T V.
/// Heads run in parallel; each is walked in token order by one thread.
/// </summary>
internal sealed unsafe partial class CpuBackend
{
    public void LinearAttentionState(Tensor k, Tensor v, Tensor? decay, Tensor state)
    {
        AttentionExtents extents = AttentionExtents.Of(k, v, state);
        RequireAttention(extents, decay, state, k, v);
        if (k.DType == DType.F64) LinearAttentionState<double, double>(extents, k, v, decay, state);
        else if (k.DType == DType.F32) LinearAttentionState<float, float>(extents, k, v, decay, state);
        else LinearAttentionState<BF16, float>(extents, k, v, decay, state);
    }

    public void LinearAttention(Tensor q, Tensor k, Tensor v, Tensor? decay, Tensor? initialState, double scale, Tensor o)
    {
        AttentionExtents extents = AttentionExtents.Of(q, k, v, o);
        RequireAttention(extents, decay, initialState, q, k, v, o);
        ForwardWalk(extents, q, k, v, decay, initialState, transposeState: false, scale, o);
    }

    /// <summary>dq_i = scale dO_i S_i^T is linear attention again, with dO as query, v as key, k as value and the state transposed.</summary>
    public void LinearAttentionBackwardQuery(Tensor k, Tensor v, Tensor dO, Tensor? decay, Tensor? initialState, double scale, Tensor dq)
    {
        AttentionExtents extents = AttentionExtents.Of(dq, k, v, dO);
        RequireAttention(extents, decay, initialState, k, v, dO, dq);
        ForwardWalk(extents, dO, v, k, decay, initialState, transposeState: true, scale, dq);
    }

    private void LinearAttentionState<T, A>(AttentionExtents extents, Tensor k, Tensor v, Tensor? decay, Tensor state)
        where T : unmanaged where A : unmanaged, IBinaryFloatingPointIeee754<A>
    {
        int d = extents.KeyWidth, e = extents.ValueWidth;
        A* states = (A*)state.Pointer;
        ForEach(extents.Batches * extents.Heads, task =>
        {
            (long batch, long head) = Math.DivRem(task, extents.Heads);
            using Workspace scratch = Workspace.Rent<A>(ChunkDecay<A>.Scratch + (ChunkDecay<A>.Length * (long)(d + e)));
            var chunkDecay = new ChunkDecay<A>(decay, head, scratch);
            A* keys = scratch.Take<A>(ChunkDecay<A>.Length * (long)d), values = scratch.Take<A>(ChunkDecay<A>.Length * (long)e);
            HeadRows<T> keyRows = HeadRows<T>.Of(k, batch, extents.KeyHead(head)), valueRows = HeadRows<T>.Of(v, batch, extents.KeyHead(head));
            A* s = states + (task * d * e);
            new Span<A>(s, d * e).Clear();
            for (long start = 0; start < extents.Tokens; start += ChunkDecay<A>.Length)
            {
                int count = (int)Math.Min(ChunkDecay<A>.Length, extents.Tokens - start);
                keyRows.Gather(start, count, keys);
                valueRows.Gather(start, count, values);
                chunkDecay.ScaleToEnd(keys, count, d);
                MatrixProduct.Dense(keys, true, values, false, d, e, count, A.One, chunkDecay.Power(count), s);
            }
        });
    }

    private void ForwardWalk(AttentionExtents extents, Tensor q, Tensor k, Tensor v, Tensor? decay, Tensor? state, bool transposeState, double scale, Tensor o)
    {
        ForEach(extents.Batches * extents.Heads, task =>
        {
            (long batch, long head) = Math.DivRem(task, extents.Heads);
            if (q.DType == DType.F64) ForwardWalk<double, double>(extents, batch, head, q, k, v, decay, state, transposeState, scale, o);
            else if (q.DType == DType.F32) ForwardWalk<float, float>(extents, batch, head, q, k, v, decay, state, transposeState, scale, o);
            else ForwardWalk<BF16, float>(extents, batch, head, q, k, v, decay, state, transposeState, scale, o);
        });
    }

    private static void ForwardWalk<T, A>(
        AttentionExtents extents, long batch, long head, Tensor q, Tensor k, Tensor v, Tensor? decay, Tensor? state, bool transposeState, double scale, Tensor o)
        where T : unmanaged where A : unmanaged, IBinaryFloatingPointIeee754<A>
    {
        const int length = ChunkDecay<A>.Length;
        HeadRows<T> queryRows = HeadRows<T>.Of(q, batch, head), outputRows = HeadRows<T>.Of(o, batch, head);
        HeadRows<T> keyRows = HeadRows<T>.Of(k, batch, extents.KeyHead(head)), valueRows = HeadRows<T>.Of(v, batch, extents.KeyHead(head));
        int d = queryRows.Width, e = valueRows.Width;
        using Workspace scratch = Workspace.Rent<A>(ChunkDecay<A>.Scratch + (length * (2L * (d + e))) + (length * length) + ((long)d * e));
        var chunkDecay = new ChunkDecay<A>(decay, head, scratch);
        A* queries = scratch.Take<A>(length * (long)d), keys = scratch.Take<A>(length * (long)d);
        A* values = scratch.Take<A>(length * (long)e), outputs = scratch.Take<A>(length * (long)e);
        A* scores = scratch.Take<A>(length * length), s = scratch.Take<A>((long)d * e);
        A factor = A.CreateTruncating(scale);
        LoadState(state, (batch * extents.Heads) + head, d, e, transposeState, s);
        for (long start = 0; start < extents.Tokens; start += length)
        {
            int count = (int)Math.Min(length, extents.Tokens - start);
            queryRows.Gather(start, count, queries);
            keyRows.Gather(start, count, keys);
            valueRows.Gather(start, count, values);
            MatrixProduct.Dense(queries, false, keys, true, count, count, d, factor, A.Zero, scores);
            chunkDecay.Weigh(scores, count);
            MatrixProduct.Dense(scores, false, values, false, count, e, count, A.One, A.Zero, outputs);
            chunkDecay.ScaleFromStart(queries, count, d, factor);
            MatrixProduct.Dense(queries, false, s, false, count, e, d, A.One, A.One, outputs);
            outputRows.Scatter(outputs, start, count);
            chunkDecay.ScaleToEnd(keys, count, d);
            MatrixProduct.Dense(keys, true, values, false, d, e, count, A.One, chunkDecay.Power(count), s);
        }
    }

    /// <summary>Copies state number <paramref name="index"/> into s [d, e], from [e, d] when transposed; zero when there is none.</summary>
    private static void LoadState<A>(Tensor? state, long index, int d, int e, bool transposed, A* s) where A : unmanaged
    {
        if (state is null)
        {
            new Span<A>(s, d * e).Clear();
            return;
        }
        A* source = (A*)state.Pointer + (index * d * e);
        if (!transposed)
        {
            new ReadOnlySpan<A>(source, d * e).CopyTo(new Span<A>(s, d * e));
            return;
        }
        for (int i = 0; i < d; i++)
            for (int j = 0; j < e; j++) s[(i * e) + j] = source[(j * d) + i];
    }

    /// <summary>Throws unless all rows are of one type and decay and state are of its accumulator and have the call's extents.</summary>
    private static void RequireAttention(AttentionExtents extents, Tensor? decay, Tensor? state, params ReadOnlySpan<Tensor> rows)
    {
        foreach (Tensor tensor in rows) RequireType(tensor, rows[0].DType);
        DType accumulator = rows[0].DType.Accumulator();
        if (decay is not null)
        {
            RequireType(decay, accumulator);
            if (decay.Count != extents.Heads) throw new LaspException($"a decay of shape {decay.Shape} does not fit {extents.Heads} heads");
        }
        if (state is null) return;
        RequireType(state, accumulator);
        Shape expected = [extents.Batches, extents.Heads, extents.KeyWidth, extents.ValueWidth];
        if (state.Shape != expected) throw new LaspException($"a state of shape {state.Shape} does not fit; expected {expected}");
    }

    /// <summary>B, N, H, Hk, D and E of a call.</summary>
    private readonly record struct AttentionExtents(long Batches, long Tokens, long Heads, long KeyHeads, int KeyWidth, int ValueWidth)
    {
        /// <summary>From query-like [B,N,H,D], k [B,N,Hk,D], v [B,N,Hk,E], output-like [B,N,H,E].</summary>
        public static AttentionExtents Of(Tensor q, Tensor k, Tensor v, Tensor o)
        {
            var extents = new AttentionExtents(q.Shape[0], q.Shape[1], q.Shape[2], k.Shape[2], checked((int)q.Shape[3]), checked((int)o.Shape[3]));
            Shape query = [extents.Batches, extents.Tokens, extents.Heads, extents.KeyWidth], key = [extents.Batches, extents.Tokens, extents.KeyHeads, extents.KeyWidth];
            bool fits = q.Shape == query && o.Shape == query.WithLast(extents.ValueWidth) && k.Shape == key && v.Shape == key.WithLast(extents.ValueWidth);
            if (!fits || extents.KeyHeads == 0 || extents.Heads % extents.KeyHeads != 0)
                throw new LaspException($"linear attention of q {q.Shape}, k {k.Shape}, v {v.Shape}, o {o.Shape}: expected [B,N,H,D], [B,N,Hk,D], [B,N,Hk,E], [B,N,H,E] with Hk dividing H");
            return extents;
        }

        /// <summary>From k, v and the state [B,H,D,E], which alone says how many query heads there are.</summary>
        public static AttentionExtents Of(Tensor k, Tensor v, Tensor state)
        {
            Shape key = [state.Shape[0], k.Shape[1], k.Shape[2], state.Shape[2]];
            if (k.Shape != key || v.Shape != key.WithLast(state.Shape[3]) || key[2] == 0 || state.Shape[1] % key[2] != 0)
                throw new LaspException($"the state {state.Shape} of k {k.Shape} and v {v.Shape}: expected [B,H,D,E], [B,N,Hk,D], [B,N,Hk,E] with Hk dividing H");
            return new AttentionExtents(state.Shape[0], k.Shape[1], state.Shape[1], k.Shape[2], checked((int)state.Shape[2]), checked((int)state.Shape[3]));
        }

        public long KeyHead(long head) => head / (Heads / KeyHeads);
    }
}
