using System.Numerics;

namespace LaspNative.Runtime.Cpu;

/// <summary>
/// The backward walks of linear attention, from the last sub-chunk to the first. They carry D [D, E], the gradient of the state that leaves the sub-chunk:
///     dk_j = exp(G_C - G_j) v_j D^T + sum_{s>=j} P_sj (do_s.v_j) q_s        dv_j = exp(G_C - G_j) k_j D + sum_{s>=j} P_sj (q_s.k_j) do_s
///     D &lt;- exp(C g) D + sum_s scale exp(G_s) q_s^T do_s                    with P_sj = scale exp((s-j) g).
/// dk is dv with the roles (k, q, dO) played by (v, dO, q) and D transposed, so one walk serves both.
/// </summary>
internal sealed unsafe partial class CpuBackend
{
    public void LinearAttentionBackwardState(Tensor q, Tensor dO, Tensor? decay, double scale, Tensor dState)
    {
        AttentionExtents extents = AttentionExtents.Of(q, q, dO, dO);
        RequireAttention(extents, decay, dState, q, dO);
        if (q.DType == DType.F64) LinearAttentionBackwardState<double, double>(extents, q, dO, decay, scale, dState);
        else if (q.DType == DType.F32) LinearAttentionBackwardState<float, float>(extents, q, dO, decay, scale, dState);
        else LinearAttentionBackwardState<BF16, float>(extents, q, dO, decay, scale, dState);
    }

    public void LinearAttentionBackwardKeyValue(Tensor q, Tensor k, Tensor v, Tensor dO, Tensor? decay, Tensor? dFinalState, double scale, Tensor dk, Tensor dv)
    {
        AttentionExtents extents = AttentionExtents.Of(q, k, v, dO);
        RequireAttention(extents, decay, dFinalState, q, k, v, dO, dk, dv);
        RequireSameCount(k, dk);
        RequireSameCount(v, dv);
        ForEach(extents.Batches * extents.KeyHeads * 2, task =>
        {
            (long batch, long keyHead) = Math.DivRem(task / 2, extents.KeyHeads);
            if (task % 2 == 0) BackwardWalk(extents, batch, keyHead, k, q, dO, decay, dFinalState, transposeState: false, scale, dv);
            else BackwardWalk(extents, batch, keyHead, v, dO, q, decay, dFinalState, transposeState: true, scale, dk);
        });
    }

    private void LinearAttentionBackwardState<T, A>(AttentionExtents extents, Tensor q, Tensor dO, Tensor? decay, double scale, Tensor dState)
        where T : unmanaged where A : unmanaged, IBinaryFloatingPointIeee754<A>
    {
        const int length = ChunkDecay<A>.Length;
        int d = extents.KeyWidth, e = extents.ValueWidth;
        A* states = (A*)dState.Pointer;
        ForEach(extents.Batches * extents.Heads, task =>
        {
            (long batch, long head) = Math.DivRem(task, extents.Heads);
            using Workspace scratch = Workspace.Rent<A>(ChunkDecay<A>.Scratch + (length * (long)(d + e)));
            var chunkDecay = new ChunkDecay<A>(decay, head, scratch);
            A* queries = scratch.Take<A>(length * (long)d), gradients = scratch.Take<A>(length * (long)e);
            HeadRows<T> queryRows = HeadRows<T>.Of(q, batch, head), gradientRows = HeadRows<T>.Of(dO, batch, head);
            A* s = states + (task * d * e);
            new Span<A>(s, d * e).Clear();
            for (long start = LastChunk(extents.Tokens); start >= 0; start -= length)
            {
                int count = (int)Math.Min(length, extents.Tokens - start);
                queryRows.Gather(start, count, queries);
                gradientRows.Gather(start, count, gradients);
                chunkDecay.ScaleFromStart(queries, count, d, A.CreateTruncating(scale));
                MatrixProduct.Dense(queries, true, gradients, false, d, e, count, A.One, chunkDecay.Power(count), s);
            }
        });
    }

    /// <summary>The first token of the last sub-chunk; negative when there is no token.</summary>
    private static long LastChunk(long tokens) => tokens == 0 ? -1 : (tokens - 1) / ChunkDecay<double>.Length * ChunkDecay<double>.Length;

    private static void BackwardWalk(
        AttentionExtents extents, long batch, long keyHead, Tensor x, Tensor y, Tensor z, Tensor? decay, Tensor? dFinalState, bool transposeState, double scale, Tensor dx)
    {
        if (x.DType == DType.F64) BackwardWalk<double, double>(extents, batch, keyHead, x, y, z, decay, dFinalState, transposeState, scale, dx);
        else if (x.DType == DType.F32) BackwardWalk<float, float>(extents, batch, keyHead, x, y, z, decay, dFinalState, transposeState, scale, dx);
        else BackwardWalk<BF16, float>(extents, batch, keyHead, x, y, z, decay, dFinalState, transposeState, scale, dx);
    }

    /// <summary>result_j = sum over the group's query heads of exp(G_C - G_j) x_j D + sum_{s>=j} P_sj (x_j.y_s) z_s; x and result have key heads, y and z query heads.</summary>
    private static void BackwardWalk<T, A>(
        AttentionExtents extents, long batch, long keyHead, Tensor x, Tensor y, Tensor z, Tensor? decay, Tensor? dFinalState, bool transposeState, double scale, Tensor result)
        where T : unmanaged where A : unmanaged, IBinaryFloatingPointIeee754<A>
    {
        const int length = ChunkDecay<A>.Length;
        HeadRows<T> xRows = HeadRows<T>.Of(x, batch, keyHead), resultRows = HeadRows<T>.Of(result, batch, keyHead);
        int d = (int)x.Shape[3], e = (int)z.Shape[3], group = (int)(extents.Heads / extents.KeyHeads);
        using Workspace scratch = Workspace.Rent<A>(ChunkDecay<A>.Scratch + (length * (2L * (d + e))) + (length * length) + ((long)group * d * e));
        A* xs = scratch.Take<A>(length * (long)d), ys = scratch.Take<A>(length * (long)d), zs = scratch.Take<A>(length * (long)e);
        A* results = scratch.Take<A>(length * (long)e), scores = scratch.Take<A>(length * length), states = scratch.Take<A>((long)group * d * e);
        var tables = new ChunkDecay<A>(scratch);
        A factor = A.CreateTruncating(scale);
        for (int member = 0; member < group; member++)
            LoadState(dFinalState, (batch * extents.Heads) + (keyHead * group) + member, d, e, transposeState, states + ((long)member * d * e));
        for (long start = LastChunk(extents.Tokens); start >= 0; start -= length)
        {
            int count = (int)Math.Min(length, extents.Tokens - start);
            for (int member = 0; member < group; member++)
            {
                long head = (keyHead * group) + member;
                if (group > 1 || start == LastChunk(extents.Tokens)) tables.Fill(decay, head);
                A* s = states + ((long)member * d * e);
                xRows.Gather(start, count, xs);
                HeadRows<T>.Of(y, batch, head).Gather(start, count, ys);
                HeadRows<T>.Of(z, batch, head).Gather(start, count, zs);
                MatrixProduct.Dense(ys, false, xs, true, count, count, d, factor, A.Zero, scores); // [s, j]
                tables.Weigh(scores, count);
                MatrixProduct.Dense(scores, true, zs, false, count, e, count, A.One, member == 0 ? A.Zero : A.One, results);
                tables.ScaleToEnd(xs, count, d);
                MatrixProduct.Dense(xs, false, s, false, count, e, d, A.One, A.One, results);
                tables.ScaleFromStart(ys, count, d, factor);
                MatrixProduct.Dense(ys, true, zs, false, d, e, count, A.One, tables.Power(count), s);
            }
            resultRows.Scatter(results, start, count);
        }
    }
}
