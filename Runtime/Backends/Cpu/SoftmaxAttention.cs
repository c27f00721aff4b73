using System.Numerics;
using System.Runtime.Intrinsics;

namespace LaspNative.Runtime.Cpu;

/// <summary>
/// Softmax attention over a block of keys, tile by tile with running maxima (Milakov and Gimelshein 2018; Dao et al. 2022). A tile of queries keeps m_i, l_i and o_i; every tile of keys gives
///     s_ij = scale q_i.k_j    m' = max(m, max_j s_ij)    p_ij = exp(s_ij - m')    l &lt;- exp(m - m') l + sum_j p_ij    o &lt;- exp(m - m') o + sum_j p_ij v_j
/// and at the end o_i / l_i and logSumExp_i = m_i + log l_i. Tiles without a visible pair are skipped. Query tiles of all heads run in parallel, each walked by one thread.
/// </summary>
internal sealed unsafe partial class CpuBackend
{
    /// <summary>Extents of a tile: whole panels of <see cref="GemmKernel"/>, and a tile of scores fits the second-level cache.</summary>
    internal const int QueryTile = 96;
    internal const int KeyTile = 256;

    public void SoftmaxAttention(Tensor q, Tensor k, Tensor v, Tensor ranges, long firstKey, double scale, Tensor o, Tensor logSumExp)
    {
        SoftmaxExtents extents = SoftmaxExtents.Of(q, k, v, ranges, o, logSumExp);
        if (o.DType != q.DType) RequireType(o, q.DType.Accumulator());
        var visible = new VisibleKeys(ranges, firstKey, extents.Keys);
        long tiles = extents.QueryTiles;
        ForEach(extents.Batches * extents.Heads * tiles, task =>
        {
            (long row, long tile) = Math.DivRem(task, tiles);
            (long batch, long head) = Math.DivRem(row, extents.Heads);
            if (q.DType == DType.F64) AttendTile<double, double, double>(extents, batch, head, tile, visible, q, k, v, scale, o, logSumExp);
            else if (q.DType == DType.F32) AttendTile<float, float, float>(extents, batch, head, tile, visible, q, k, v, scale, o, logSumExp);
            else if (o.DType == DType.BF16) AttendTile<BF16, float, BF16>(extents, batch, head, tile, visible, q, k, v, scale, o, logSumExp);
            else AttendTile<BF16, float, float>(extents, batch, head, tile, visible, q, k, v, scale, o, logSumExp);
        });
    }

    private static void AttendTile<T, A, TO>(
        SoftmaxExtents extents, long batch, long head, long tile, VisibleKeys visible, Tensor q, Tensor k, Tensor v, double scale, Tensor o, Tensor logSumExp)
        where T : unmanaged where TO : unmanaged where A : unmanaged, IBinaryFloatingPointIeee754<A>
    {
        long first = tile * QueryTile;
        int count = extents.TileLength(tile), d = extents.KeyWidth, e = extents.ValueWidth;
        HeadRows<T> keyRows = HeadRows<T>.Of(k, batch, extents.KeyHead(head)), valueRows = HeadRows<T>.Of(v, batch, extents.KeyHead(head));
        using Workspace scratch = Workspace.Rent<A>(((QueryTile + KeyTile) * (long)(d + e)) + (QueryTile * KeyTile) + (2 * QueryTile));
        A* queries = scratch.Take<A>(QueryTile * (long)d), keys = scratch.Take<A>(KeyTile * (long)d), values = scratch.Take<A>(KeyTile * (long)e);
        A* outputs = scratch.Take<A>(QueryTile * (long)e), scores = scratch.Take<A>(QueryTile * KeyTile);
        A* maxima = scratch.Take<A>(QueryTile), sums = scratch.Take<A>(QueryTile);
        HeadRows<T>.Of(q, batch, head).Gather(first, count, queries);
        new Span<A>(outputs, count * e).Clear();
        new Span<A>(maxima, count).Fill(A.NegativeInfinity);
        new Span<A>(sums, count).Clear();
        (long start, long end) = visible.OfBlock(first, count);
        for (long key = start; key < end; key += KeyTile)
        {
            int width = (int)Math.Min(KeyTile, end - key);
            if (!visible.Any(first, count, key, width)) continue;
            keyRows.Gather(key, width, keys);
            valueRows.Gather(key, width, values);
            MatrixProduct.Dense(queries, false, keys, true, count, width, d, A.CreateTruncating(scale), A.Zero, scores);
            for (int i = 0; i < count; i++)
                ExponentiateRow(scores + (i * width), width, visible.Of(first + i, key, width), ref maxima[i], ref sums[i], outputs + ((long)i * e), e);
            MatrixProduct.Dense(scores, false, values, false, count, e, width, A.One, A.One, outputs);
        }
        HeadRows<A> statistics = HeadRows<A>.Of(logSumExp, batch, head);
        for (int i = 0; i < count; i++)
        {
            if (sums[i] > A.Zero) Rows.Scale(A.One / sums[i], outputs + ((long)i * e), e);
            *statistics.At(first + i) = maxima[i] + A.Log(sums[i]);
        }
        HeadRows<TO>.Of(o, batch, head).Scatter(outputs, first, count);
    }

    /// <summary>One query against one tile of keys: scores become weights under the new maximum, zero outside the visible ones, and what was summed under the old maximum is brought to the new.</summary>
    private static void ExponentiateRow<A>(A* scores, int width, (int Start, int End) seen, ref A maximum, ref A sum, A* output, int e)
        where A : unmanaged, IBinaryFloatingPointIeee754<A>
    {
        if (seen.Start >= seen.End)
        {
            new Span<A>(scores, width).Clear();
            return;
        }
        int count = seen.End - seen.Start;
        A raised = A.Max(maximum, Maximum<A, A>(scores + seen.Start, count));
        A kept = A.Exp(maximum - raised);
        sum = (kept * sum) + Exponentiate(scores + seen.Start, count, raised);
        if (kept != A.One) Rows.Scale(kept, output, e);
        maximum = raised;
        ClearOutside(scores, width, seen);
    }

    private static void ClearOutside<A>(A* row, int width, (int Start, int End) seen) where A : unmanaged
    {
        new Span<A>(row, seen.Start).Clear();
        new Span<A>(row + seen.End, width - seen.End).Clear();
    }

    /// <summary>row = exp(row - shift); returns the sum.</summary>
    private static A Exponentiate<A>(A* row, int count, A shift) where A : unmanaged, IBinaryFloatingPointIeee754<A>
    {
        int lanes = Vector512<A>.Count, i = 0;
        Vector512<A> shifts = Vector512.Create(shift), sum = Vector512<A>.Zero;
        for (; i <= count - lanes; i += lanes)
        {
            Vector512<A> weights = VectorMath.Exp(Vector512.Load(row + i) - shifts);
            weights.Store(row + i);
            sum += weights;
        }
        A total = Vector512.Sum(sum);
        if (i == count) return total;
        Element.Store(VectorMath.Exp(Element.Load<A, A>(row + i, count - i) - shifts), row + i, count - i);
        for (; i < count; i++) total += row[i];
        return total;
    }

    /// <summary>B, C, M, H, Hk, D and E of a call.</summary>
    private readonly record struct SoftmaxExtents(long Batches, long Queries, long Keys, long Heads, long KeyHeads, int KeyWidth, int ValueWidth)
    {
        public long QueryTiles => (Queries + QueryTile - 1) / QueryTile;

        public int TileLength(long tile) => (int)Math.Min(QueryTile, Queries - (tile * QueryTile));

        /// <summary>From q [B,C,H,D], k [B,M,Hk,D], v [B,M,Hk,E], ranges [C,2], output-like [B,C,H,E] and what there is per query and head [B,C,H] of Acc.</summary>
        public static SoftmaxExtents Of(Tensor q, Tensor k, Tensor v, Tensor ranges, Tensor o, Tensor rows)
        {
            if (q.Shape.Rank != 4 || k.Shape.Rank != 4 || o.Shape.Rank != 4) throw Mismatch(q, k, v, o);
            var extents = new SoftmaxExtents(q.Shape[0], q.Shape[1], k.Shape[1], q.Shape[2], k.Shape[2], checked((int)q.Shape[3]), checked((int)o.Shape[3]));
            Shape query = [extents.Batches, extents.Queries, extents.Heads, extents.KeyWidth], key = [extents.Batches, extents.Keys, extents.KeyHeads, extents.KeyWidth];
            bool fits = o.Shape == query.WithLast(extents.ValueWidth) && k.Shape == key && v.Shape == key.WithLast(extents.ValueWidth);
            if (!fits || extents.KeyHeads == 0 || extents.Heads % extents.KeyHeads != 0) throw Mismatch(q, k, v, o);
            RequireType(k, q.DType);
            RequireType(v, q.DType);
            RequireType(ranges, DType.I64);
            RequireType(rows, q.DType.Accumulator());
            if (ranges.Shape != [extents.Queries, 2] || rows.Shape != [extents.Batches, extents.Queries, extents.Heads])
                throw new LaspException($"softmax attention of q {q.Shape} with ranges {ranges.Shape} and statistics {rows.Shape}: expected [C,2] and [B,C,H]");
            return extents;
        }

        public long KeyHead(long head) => head / (Heads / KeyHeads);

        private static LaspException Mismatch(Tensor q, Tensor k, Tensor v, Tensor o) =>
            new($"softmax attention of q {q.Shape}, k {k.Shape}, v {v.Shape}, o {o.Shape}: expected [B,C,H,D], [B,M,Hk,D], [B,M,Hk,E], [B,C,H,E] with Hk dividing H");
    }
}
