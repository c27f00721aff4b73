using System.Numerics;

namespace LaspNative.Runtime.Cpu;

/// <summary>
/// The gradients of linear attention's rows. dq is walked forwards with the entering state S, dk and dv backwards with D [D, E], the gradient of the state that leaves a sub-chunk. With
/// X_ij = scale (do_i.v_j), P_ij = scale (q_i . E . k_j) for j &lt;= i:
///     dq_i = sum_{j&lt;=i} X_ij E . k_j + scale E(from entry) . (do_i S^T)        dM: D &lt;- E(all) . D + (scale E(from entry) . q)^T dO
///     dk_j = sum_{i>=j} X_ij E . q_i + E(to end) . (v_j D^T)                    dv_j = sum_{i>=j} P_ij do_i + (E(to end) . k_j) D.
/// </summary>
internal sealed unsafe partial class CpuBackend
{
    public void LinearAttentionBackwardState(Tensor q, Tensor dO, Tensor? decay, double scale, Tensor? dState, Tensor? segments = null, Tensor? dFinalState = null, PackedRuns? runs = null)
    {
        if (dState is null) return;
        if (runs is not null)
        {
            RunByRun.BackwardState(this, runs, q, dO, decay, scale, dState, dFinalState);
            return;
        }
        AttentionExtents extents = AttentionExtents.Of(q, q, dO, dO);
        RequireAttention(extents, decay, dState, q, dO);
        if (dFinalState is not null) RequireAttention(extents, decay, dFinalState, q, dO);
        ForEach(extents.Batches * extents.Heads, task =>
        {
            (long batch, long head) = Math.DivRem(task, extents.Heads);
            if (q.DType == DType.F64) BackwardState<double, double>(extents, batch, head, q, dO, decay, dFinalState, scale, dState);
            else if (q.DType == DType.F32) BackwardState<float, float>(extents, batch, head, q, dO, decay, dFinalState, scale, dState);
            else BackwardState<BF16, float>(extents, batch, head, q, dO, decay, dFinalState, scale, dState);
        });
    }

    public void LinearAttentionBackwardQuery(
        Tensor k, Tensor v, Tensor dO, Tensor? decay, Tensor? initialState, double scale, Tensor dq, Tensor? segments = null, Tensor? q = null, Tensor? paths = null,
        PackedRuns? runs = null)
    {
        if (runs is not null)
        {
            RunByRun.BackwardQuery(this, runs, k, v, dO, decay, initialState, scale, dq);
            return;
        }
        AttentionExtents extents = AttentionExtents.Of(dq, k, v, dO);
        RequireAttention(extents, decay, initialState, k, v, dO, dq);
        ForEach(extents.Batches * extents.Heads, task =>
        {
            (long batch, long head) = Math.DivRem(task, extents.Heads);
            if (k.DType == DType.F64) BackwardQuery<double, double>(extents, batch, head, k, v, dO, decay, initialState, scale, dq);
            else if (k.DType == DType.F32) BackwardQuery<float, float>(extents, batch, head, k, v, dO, decay, initialState, scale, dq);
            else BackwardQuery<BF16, float>(extents, batch, head, k, v, dO, decay, initialState, scale, dq);
        });
    }

    public void LinearAttentionBackwardKeyValue(Tensor q, Tensor k, Tensor v, Tensor dO, Tensor? decay, Tensor? dFinalState, double scale, Tensor dk, Tensor dv, Tensor? segments = null, PackedRuns? runs = null)
    {
        if (runs is not null)
        {
            RunByRun.BackwardKeyValue(this, runs, q, k, v, dO, decay, dFinalState, scale, dk, dv);
            return;
        }
        AttentionExtents extents = AttentionExtents.Of(q, k, v, dO);
        RequireAttention(extents, decay, dFinalState, q, k, v, dO, dk, dv);
        RequireSameCount(k, dk);
        RequireSameCount(v, dv);
        ForEach(extents.Batches * extents.KeyHeads, task =>
        {
            (long batch, long keyHead) = Math.DivRem(task, extents.KeyHeads);
            if (q.DType == DType.F64) BackwardKeyValue<double, double>(extents, batch, keyHead, q, k, v, dO, decay, dFinalState, scale, dk, dv);
            else if (q.DType == DType.F32) BackwardKeyValue<float, float>(extents, batch, keyHead, q, k, v, dO, decay, dFinalState, scale, dk, dv);
            else BackwardKeyValue<BF16, float>(extents, batch, keyHead, q, k, v, dO, decay, dFinalState, scale, dk, dv);
        });
    }

    private static void BackwardState<T, A>(AttentionExtents extents, long batch, long head, Tensor q, Tensor dO, Tensor? decay, Tensor? dFinalState, double scale, Tensor dState)
        where T : unmanaged where A : unmanaged, IBinaryFloatingPointIeee754<A>
    {
        int d = extents.KeyWidth, e = extents.ValueWidth;
        using var chunk = ChunkDecay<A>.Of(decay, d);
        int length = chunk.Length;
        using Workspace scratch = Workspace.Rent<A>(length * (long)(d + e));
        A* queries = scratch.Take<A>(length * (long)d), gradients = scratch.Take<A>(length * (long)e);
        HeadRows<T> queryRows = HeadRows<T>.Of(q, batch, head), gradientRows = HeadRows<T>.Of(dO, batch, head);
        A* s = (A*)dState.Pointer + (((batch * extents.Heads) + head) * d * e);
        LoadState(dFinalState, (batch * extents.Heads) + head, d * e, s);
        for (long start = chunk.LastStart(extents.Tokens); start >= 0; start -= length)
        {
            int count = (int)Math.Min(length, extents.Tokens - start);
            chunk.Load(batch, head, start, count);
            queryRows.Gather(start, count, queries);
            gradientRows.Gather(start, count, gradients);
            chunk.StepBackward(queries, gradients, e, A.CreateTruncating(scale), s);
        }
    }

    private static void BackwardQuery<T, A>(AttentionExtents extents, long batch, long head, Tensor k, Tensor v, Tensor dO, Tensor? decay, Tensor? initialState, double scale, Tensor dq)
        where T : unmanaged where A : unmanaged, IBinaryFloatingPointIeee754<A>
    {
        int d = extents.KeyWidth, e = extents.ValueWidth;
        HeadRows<T> gradientRows = HeadRows<T>.Of(dO, batch, head), resultRows = HeadRows<T>.Of(dq, batch, head);
        HeadRows<T> keyRows = HeadRows<T>.Of(k, batch, extents.KeyHead(head)), valueRows = HeadRows<T>.Of(v, batch, extents.KeyHead(head));
        using var chunk = ChunkDecay<A>.Of(decay, d);
        int length = chunk.Length;
        using Workspace scratch = Workspace.Rent<A>((length * (2L * (d + e))) + (length * length) + ((long)d * e));
        A* keys = scratch.Take<A>(length * (long)d), results = scratch.Take<A>(length * (long)d);
        A* values = scratch.Take<A>(length * (long)e), gradients = scratch.Take<A>(length * (long)e);
        A* gains = scratch.Take<A>(length * length), s = scratch.Take<A>((long)d * e);
        A factor = A.CreateTruncating(scale);
        LoadState(initialState, (batch * extents.Heads) + head, d * e, s);
        for (long start = 0; start < extents.Tokens; start += length)
        {
            int count = (int)Math.Min(length, extents.Tokens - start);
            chunk.Load(batch, head, start, count);
            keyRows.Gather(start, count, keys);
            valueRows.Gather(start, count, values);
            gradientRows.Gather(start, count, gradients);
            MatrixProduct.Dense(gradients, false, s, true, count, d, e, A.One, A.Zero, results);
            chunk.ScaleFromStart(results, factor);
            MatrixProduct.Dense(gradients, false, values, true, count, count, e, factor, A.Zero, gains);
            chunk.AddOverKeys(gains, keys, results);
            resultRows.Scatter(results, start, count);
            chunk.StepForward(keys, values, e, s);
        }
    }

    /// <summary>The query heads of a group add to their key head's rows in order; each carries a state of its own.</summary>
    private static void BackwardKeyValue<T, A>(
        AttentionExtents extents, long batch, long keyHead, Tensor q, Tensor k, Tensor v, Tensor dO, Tensor? decay, Tensor? dFinalState, double scale, Tensor dk, Tensor dv)
        where T : unmanaged where A : unmanaged, IBinaryFloatingPointIeee754<A>
    {
        int d = extents.KeyWidth, e = extents.ValueWidth, group = extents.Group;
        HeadRows<T> keyRows = HeadRows<T>.Of(k, batch, keyHead), valueRows = HeadRows<T>.Of(v, batch, keyHead);
        HeadRows<T> keyResults = HeadRows<T>.Of(dk, batch, keyHead), valueResults = HeadRows<T>.Of(dv, batch, keyHead);
        using var chunk = ChunkDecay<A>.Of(decay, d);
        int length = chunk.Length;
        using Workspace scratch = Workspace.Rent<A>((length * ((4L * d) + (3L * e))) + (length * length) + ((long)group * d * e));
        A* queries = scratch.Take<A>(length * (long)d), keys = scratch.Take<A>(length * (long)d), values = scratch.Take<A>(length * (long)e);
        A* gradients = scratch.Take<A>(length * (long)e), scores = scratch.Take<A>(length * length), inter = scratch.Take<A>(length * (long)d);
        A* keySums = scratch.Take<A>(length * (long)d), valueSums = scratch.Take<A>(length * (long)e), states = scratch.Take<A>((long)group * d * e);
        A factor = A.CreateTruncating(scale);
        for (int member = 0; member < group; member++)
            LoadState(dFinalState, (batch * extents.Heads) + (keyHead * group) + member, d * e, states + ((long)member * d * e));
        for (long start = chunk.LastStart(extents.Tokens); start >= 0; start -= length)
        {
            int count = (int)Math.Min(length, extents.Tokens - start);
            valueRows.Gather(start, count, values);
            new Span<A>(keySums, count * d).Clear();
            new Span<A>(valueSums, count * e).Clear();
            for (int member = 0; member < group; member++)
            {
                long head = (keyHead * group) + member;
                A* s = states + ((long)member * d * e);
                chunk.Load(batch, head, start, count);
                keyRows.Gather(start, count, keys);
                HeadRows<T>.Of(q, batch, head).Gather(start, count, queries);
                HeadRows<T>.Of(dO, batch, head).Gather(start, count, gradients);

                chunk.Scores(queries, keys, factor, scores);
                MatrixProduct.Dense(scores, true, gradients, false, count, e, count, A.One, A.One, valueSums);
                chunk.ScaleToEnd(keys);
                MatrixProduct.Dense(keys, false, s, false, count, e, d, A.One, A.One, valueSums);

                MatrixProduct.Dense(gradients, false, values, true, count, count, e, factor, A.Zero, scores);
                chunk.AddOverQueries(scores, queries, keySums);
                MatrixProduct.Dense(values, false, s, true, count, d, e, A.One, A.Zero, inter);
                chunk.ScaleToEnd(inter);
                Rows.Add(inter, keySums, count * d);
                chunk.StepBackward(queries, gradients, e, factor, s);
            }
            keyResults.Scatter(keySums, start, count);
            valueResults.Scatter(valueSums, start, count);
        }
    }
}
