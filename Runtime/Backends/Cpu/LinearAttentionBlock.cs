using System.Numerics;

namespace LaspNative.Runtime.Cpu;

/// <summary>
/// The left product of linear attention between two runs of tokens, without a mask and without a state:
///     o_i += scale sum_j ((wq_i q_i) . (wk_j k_j)) v_j
///     dq_i += scale wq_i sum_j (do_i.v_j) (wk_j k_j)    dk_j += scale wk_j sum_i (v_j.do_i) (wq_i q_i)    dv_j += scale sum_i ((wk_j k_j) . (wq_i q_i)) do_i
/// All four are one walk, r_x += w_x scale sum_y (a_x . b_y) c_y, over tiles of 64 x 64 pairs. A tile of results is summed by one thread in ascending y.
/// </summary>
internal sealed unsafe partial class CpuBackend
{
    /// <summary>Tokens of a tile's side.</summary>
    private const int BlockTile = 64;

    public void LinearAttentionBlock(Tensor q, Tensor k, Tensor v, Tensor? queryWeights, Tensor? keyWeights, double scale, Tensor o)
    {
        BlockExtents extents = BlockExtents.Of(q, k, v, o.Shape);
        RequireBlock(extents, q, k, v, queryWeights, keyWeights);
        RequireType(o, q.DType.Accumulator());
        BlockWalk(extents, new(q, queryWeights), new(k, keyWeights), new(v), null, scale, o);
    }

    public void LinearAttentionBlockBackward(
        Tensor q, Tensor k, Tensor v, Tensor dO, Tensor? queryWeights, Tensor? keyWeights, double scale, Tensor dq, Tensor dk, Tensor dv)
    {
        BlockExtents extents = BlockExtents.Of(q, k, v, dO.Shape);
        RequireBlock(extents, q, k, v, queryWeights, keyWeights);
        RequireType(dO, q.DType);
        RequireGradient(dq, q, [extents.Batches, extents.Queries, extents.Heads, extents.KeyWidth]);
        RequireGradient(dk, q, [extents.Batches, extents.Keys, extents.Heads, extents.KeyWidth]);
        RequireGradient(dv, q, [extents.Batches, extents.Keys, extents.Heads, extents.ValueWidth]);
        BlockOperand queries = new(q, queryWeights), keys = new(k, keyWeights), values = new(v), gradients = new(dO);
        BlockWalk(extents, gradients, values, keys, queryWeights, scale, dq);
        BlockWalk(extents, values, gradients, queries, keyWeights, scale, dk);
        BlockWalk(extents, keys, queries, gradients, null, scale, dv);
    }

    private void BlockWalk(BlockExtents extents, BlockOperand a, BlockOperand b, BlockOperand c, Tensor? weights, double scale, Tensor result)
    {
        if (a.Rows.DType == DType.F64) BlockWalk<double, double>(extents, a, b, c, weights, scale, result);
        else if (a.Rows.DType == DType.F32) BlockWalk<float, float>(extents, a, b, c, weights, scale, result);
        else BlockWalk<BF16, float>(extents, a, b, c, weights, scale, result);
    }

    /// <summary>result_x += weights_x scale sum_y (a_x . b_y) c_y; result and weights [B, X, H, .] with X the tokens of a.</summary>
    private void BlockWalk<T, A>(BlockExtents extents, BlockOperand a, BlockOperand b, BlockOperand c, Tensor? weights, double scale, Tensor result)
        where T : unmanaged where A : unmanaged, IBinaryFloatingPointIeee754<A>
    {
        long rows = a.Rows.Shape[1], columns = b.Rows.Shape[1], tiles = (rows + BlockTile - 1) / BlockTile;
        if (columns == 0) return;
        int inner = (int)a.Rows.Shape[3], outer = (int)c.Rows.Shape[3];
        A factor = A.CreateTruncating(scale);
        ForEach(extents.Batches * extents.Heads * tiles, task =>
        {
            (long batchHead, long tile) = Math.DivRem(task, tiles);
            (long batch, long head) = Math.DivRem(batchHead, extents.Heads);
            using Workspace scratch = Workspace.Rent<A>((BlockTile * 2L * (inner + outer)) + (BlockTile * BlockTile));
            A* left = scratch.Take<A>(BlockTile * (long)inner), right = scratch.Take<A>(BlockTile * (long)inner), values = scratch.Take<A>(BlockTile * (long)outer);
            A* sums = scratch.Take<A>(BlockTile * (long)outer), scores = scratch.Take<A>(BlockTile * BlockTile);
            long start = tile * BlockTile;
            int count = (int)Math.Min(BlockTile, rows - start);
            a.Gather<T, A>(extents, batch, head, start, count, left);
            for (long at = 0; at < columns; at += BlockTile)
            {
                int others = (int)Math.Min(BlockTile, columns - at);
                b.Gather<T, A>(extents, batch, head, at, others, right);
                c.Gather<T, A>(extents, batch, head, at, others, values);
                MatrixProduct.Dense(left, false, right, true, count, others, inner, factor, A.Zero, scores);
                MatrixProduct.Dense(scores, false, values, false, count, outer, others, A.One, at == 0 ? A.Zero : A.One, sums);
            }
            ApplyWeights(weights, batch, head, start, count, outer, sums);
            HeadRows<A> target = HeadRows<A>.Of(result, batch, head);
            for (int i = 0; i < count; i++) Rows.Add<A, A>(sums + (i * (long)outer), target.Data + ((start + i) * target.Stride), outer);
        });
    }

    /// <summary>Rows of a head and their weights per query head, which multiply them when they are read.</summary>
    private readonly record struct BlockOperand(Tensor Rows, Tensor? Weights = null)
    {
        public void Gather<T, A>(BlockExtents extents, long batch, long head, long start, int count, A* packed)
            where T : unmanaged where A : unmanaged, IBinaryFloatingPointIeee754<A>
        {
            long own = Rows.Shape[2] == extents.Heads ? head : head / (extents.Heads / Rows.Shape[2]);
            HeadRows<T>.Of(Rows, batch, own).Gather(start, count, packed);
            ApplyWeights(Weights, batch, head, start, count, (int)Rows.Shape[3], packed);
        }
    }

    /// <summary>Row i of x [count, width] times the weight of token start + i: one number, or one per channel; 1 where there are none.</summary>
    private static void ApplyWeights<A>(Tensor? weights, long batch, long head, long start, int count, int width, A* x) where A : unmanaged
    {
        if (weights is null) return;
        long tokens = weights.Shape[1], heads = weights.Shape[2];
        bool perChannel = weights.Shape.Rank == 4;
        for (int i = 0; i < count; i++, x += width)
        {
            long row = (((batch * tokens) + start + i) * heads) + head;
            if (perChannel) Rows.Multiply((A*)weights.Pointer + (row * width), x, width);
            else Rows.Scale(((A*)weights.Pointer)[row], x, width);
        }
    }

    private static void RequireBlock(BlockExtents extents, Tensor q, Tensor k, Tensor v, Tensor? queryWeights, Tensor? keyWeights)
    {
        RequireType(k, q.DType);
        RequireType(v, q.DType);
        RequireBlockWeights(extents, queryWeights, extents.Queries, q.DType.Accumulator());
        RequireBlockWeights(extents, keyWeights, extents.Keys, q.DType.Accumulator());
    }

    private static void RequireBlockWeights(BlockExtents extents, Tensor? weights, long tokens, DType accumulator)
    {
        if (weights is null) return;
        RequireType(weights, accumulator);
        Shape perHead = [extents.Batches, tokens, extents.Heads], perChannel = [extents.Batches, tokens, extents.Heads, extents.KeyWidth];
        if (weights.Shape != perHead && weights.Shape != perChannel) throw new LaspException($"weights of shape {weights.Shape} do not fit; expected {perHead} or {perChannel}");
    }

    private static void RequireGradient(Tensor gradient, Tensor of, Shape expected)
    {
        RequireType(gradient, of.DType.Accumulator());
        if (gradient.Shape != expected) throw new LaspException($"a gradient of shape {gradient.Shape} does not fit; expected {expected}");
    }

    /// <summary>B, C, M, H, Hk, D and E of q [B,C,H,D], k [B,M,Hk,D], v [B,M,Hk,E].</summary>
    private readonly record struct BlockExtents(long Batches, long Queries, long Keys, long Heads, long KeyHeads, int KeyWidth, int ValueWidth)
    {
        public static BlockExtents Of(Tensor q, Tensor k, Tensor v, Shape output)
        {
            bool ranks = q.Shape.Rank == 4 && k.Shape.Rank == 4 && v.Shape.Rank == 4;
            Shape key = ranks ? [q.Shape[0], k.Shape[1], k.Shape[2], q.Shape[3]] : [];
            if (!ranks || k.Shape != key || v.Shape != key.WithLast(v.Shape[3]) || output != q.Shape.WithLast(v.Shape[3]) || key[2] == 0 || q.Shape[2] % key[2] != 0)
                throw new LaspException($"the left product of q {q.Shape}, k {k.Shape}, v {v.Shape}, o {output}: expected [B,C,H,D], [B,M,Hk,D], [B,M,Hk,E], [B,C,H,E] with Hk dividing H");
            return new BlockExtents(q.Shape[0], q.Shape[1], k.Shape[1], q.Shape[2], k.Shape[2], checked((int)q.Shape[3]), checked((int)v.Shape[3]));
        }
    }
}
