namespace LaspNative.Runtime.Cuda;

/// <summary>
/// Left products of linear attention between two runs, without mask and state. The output and the three gradients are one walk of linear_attention_block.cu with the tensors
/// in other places: out_x += w_x scale sum_y (a_x . b_y) c_y. What tensor cores take goes to LinearAttentionBlockTensorCores.cs.
/// </summary>
internal sealed partial class CudaBackend
{
    private const string BlockFile = "linear_attention_block";

    /// <summary>One side of a call: its tokens, and the weights per query head that belong to them.</summary>
    private readonly record struct BlockSide(long Tokens, Tensor? Weights)
    {
        public nint WeightPointer => PointerOrNull(Weights);

        /// <summary>1 for weights per token and head, D for weights per channel.</summary>
        public long Channels => Weights is { Shape.Rank: 4 } ? Weights.Shape[3] : 1;
    }

    public void LinearAttentionBlock(Tensor q, Tensor k, Tensor v, Tensor? queryWeights, Tensor? keyWeights, double scale, Tensor o)
    {
        RequireBlock(q, k, v, queryWeights, keyWeights);
        RequireShape(o, DType.F32, q.Shape.WithLast(v.Shape[3]));
        if (FitsBlockMma(q, k, v, queryWeights, keyWeights, o))
        {
            BlockOnMma(q, k, v, queryWeights, keyWeights, scale, o);
            return;
        }
        BlockSide queries = new(q.Shape[1], queryWeights), keys = new(k.Shape[1], keyWeights);
        WalkBlock(q, k, v, queries, keys, weightedProducts: true, scale, o);
    }

    public void LinearAttentionBlockBackward(
        Tensor q, Tensor k, Tensor v, Tensor dO, Tensor? queryWeights, Tensor? keyWeights, double scale, Tensor dq, Tensor dk, Tensor dv)
    {
        RequireBlock(q, k, v, queryWeights, keyWeights);
        RequireShape(dO, q.DType, q.Shape.WithLast(v.Shape[3]));
        RequireShape(dq, DType.F32, q.Shape);
        RequireShape(dk, DType.F32, [q.Shape[0], k.Shape[1], q.Shape[2], q.Shape[3]]);
        RequireShape(dv, DType.F32, [q.Shape[0], k.Shape[1], q.Shape[2], v.Shape[3]]);
        if (FitsBlockMma(q, k, v, dO, queryWeights, keyWeights, dq, dk, dv))
        {
            BlockBackwardOnMma(q, k, v, dO, queryWeights, keyWeights, scale, dq, dk, dv);
            return;
        }
        BlockSide queries = new(q.Shape[1], queryWeights), keys = new(k.Shape[1], keyWeights);
        WalkBlock(dO, v, k, queries, keys, weightedProducts: false, scale, dq);
        WalkBlock(v, dO, q, keys, queries, weightedProducts: false, scale, dk);
        WalkBlock(k, q, dO, keys, queries, weightedProducts: true, scale, dv);
    }

    /// <summary>a has the tokens of side x, b and c those of side y; the weights belong to a and b, or to the output and c.</summary>
    private void WalkBlock(Tensor a, Tensor b, Tensor c, BlockSide x, BlockSide y, bool weightedProducts, double scale, Tensor output)
    {
        (long batches, long heads, long width) = (output.Shape[0], output.Shape[2], output.Shape[3]);
        long blocks = AttentionRun.Slices(x.Tokens) * batches * heads * CeilDivide(width, Span);
        Launch(
            BlockFile, "linear_attention_block", a.DType, Blocks(blocks, BlockThreads),
            a.Pointer, b.Pointer, c.Pointer, x.WeightPointer, x.Channels, y.WeightPointer, y.Channels, weightedProducts ? 1 : 0,
            x.Tokens, y.Tokens, heads, a.Shape[2], b.Shape[2], c.Shape[2], a.Shape[3], width, batches, (float)scale, output.Pointer);
    }

    private static void RequireBlock(Tensor q, Tensor k, Tensor v, Tensor? queryWeights, Tensor? keyWeights)
    {
        RequireElement(q);
        RequireType(k, q.DType);
        RequireType(v, q.DType);
        bool ranks = q.Shape.Rank == 4 && k.Shape.Rank == 4 && v.Shape.Rank == 4;
        bool fits = ranks && k.Shape == [q.Shape[0], k.Shape[1], k.Shape[2], q.Shape[3]] && v.Shape == k.Shape.WithLast(v.Shape[3]) && k.Shape[2] > 0 && q.Shape[2] % k.Shape[2] == 0;
        if (!fits) throw new LaspException($"a left product takes q [B,C,H,D], k [B,M,Hk,D], v [B,M,Hk,E] with H a multiple of Hk; got {q.Shape}, {k.Shape}, {v.Shape}");
        if (q.Shape[3] is < 1 or > AttentionRun.MaxWidth || v.Shape[3] is < 1 or > AttentionRun.MaxWidth)
            throw new LaspException($"linear attention on a GPU takes heads of 1 to {AttentionRun.MaxWidth} channels, got {q.Shape[3]} for keys and {v.Shape[3]} for values");
        RequireBlockWeights(queryWeights, [q.Shape[0], q.Shape[1], q.Shape[2]], q.Shape[3]);
        RequireBlockWeights(keyWeights, [q.Shape[0], k.Shape[1], q.Shape[2]], q.Shape[3]);
    }

    private static void RequireBlockWeights(Tensor? weights, Shape perHead, long channels)
    {
        if (weights is null) return;
        RequireType(weights, DType.F32);
        if (weights.Shape != perHead && weights.Shape != [perHead[0], perHead[1], perHead[2], channels])
            throw new LaspException($"weights of shape {weights.Shape} fit neither {perHead} nor, per channel, {channels} of each");
    }
}
