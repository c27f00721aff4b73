namespace LaspNative.Runtime.Cuda;

/// <summary>
/// Softmax attention over a block of keys, and its gradients (softmax_attention.cu, softmax_attention_bwd.cu): tiles of 64 queries and 64 keys in shared memory, whatever the
/// lengths; bf16 runs on tensor cores, heads of 64 and 128 channels by kernels of their own (SoftmaxPanels.cs). Without queries or without keys there is nothing to walk: then o = 0, log-sum-exp = -infinity, and no gradient is added.
/// </summary>
internal sealed partial class CudaBackend
{
    private const string SoftmaxFile = "softmax_attention";
    private const string SoftmaxBackwardFile = "softmax_attention_bwd";

    /// <summary>Columns that one block makes: SPAN of product_tiles.cuh.</summary>
    private const long Span = 128;

    /// <summary>Threads of a block: BLOCK of product_tiles_fp32.cuh, and of product_tiles_tensor.cuh for bf16.</summary>
    private static uint SoftmaxThreads(DType element) => element == DType.BF16 ? 128u : 256u;

    /// <summary>The extents of one call: q [B,C,H,D] against k [B,M,Hk,D] and v [B,M,Hk,E].</summary>
    private readonly record struct SoftmaxBlock(long Batches, long Queries, long Keys, long Heads, long KeyHeads, long KeyWidth, long ValueWidth)
    {
        public static SoftmaxBlock Of(Tensor q, Tensor k, Tensor v, Tensor ranges)
        {
            RequireElement(q);
            RequireType(k, q.DType);
            RequireType(v, q.DType);
            RequireType(ranges, DType.I64);
            if (q.Shape.Rank != 4 || k.Shape.Rank != 4 || v.Shape.Rank != 4) throw Mismatch(q, k, v);
            var block = new SoftmaxBlock(q.Shape[0], q.Shape[1], k.Shape[1], q.Shape[2], k.Shape[2], q.Shape[3], v.Shape[3]);
            bool fits = k.Shape == [block.Batches, block.Keys, block.KeyHeads, block.KeyWidth] && v.Shape == [block.Batches, block.Keys, block.KeyHeads, block.ValueWidth];
            if (!fits || block.KeyHeads < 1 || block.Heads % block.KeyHeads != 0 || block.Keys > int.MaxValue) throw Mismatch(q, k, v);
            if (ranges.Shape != [block.Queries, 2]) throw new LaspException($"ranges of shape {ranges.Shape} do not give a first and a last key to each of {block.Queries} queries; pass [{block.Queries}, 2]");
            if (block.KeyWidth is < 1 or > AttentionRun.MaxWidth || block.ValueWidth is < 1 or > AttentionRun.MaxWidth)
                throw new LaspException($"softmax attention on a GPU takes heads of 1 to {AttentionRun.MaxWidth} channels, got {block.KeyWidth} for keys and {block.ValueWidth} for values");
            return block;
        }

        /// <summary>[B,C,H] of fp32: log-sum-exp and delta.</summary>
        public void RequireRows(Tensor rows) => RequireShape(rows, DType.F32, [Batches, Queries, Heads]);

        private static LaspException Mismatch(Tensor q, Tensor k, Tensor v) =>
            new($"softmax attention takes q [B,C,H,D], k [B,M,Hk,D], v [B,M,Hk,E] with H a multiple of Hk; got {q.Shape}, {k.Shape}, {v.Shape}");
    }

    public void SoftmaxAttention(Tensor q, Tensor k, Tensor v, Tensor ranges, long firstKey, double scale, Tensor o, Tensor logSumExp)
    {
        SoftmaxBlock block = SoftmaxBlock.Of(q, k, v, ranges);
        bool accumulator = o.DType == DType.F32;
        RequireShape(o, accumulator ? DType.F32 : q.DType, [block.Batches, block.Queries, block.Heads, block.ValueWidth]);
        block.RequireRows(logSumExp);
        if (FitsPanels(block, q.DType, scale, q.Pointer, k.Pointer, v.Pointer, o.Pointer))
        {
            if (HasWarpgroups) AttendOnWarpgroups(block, q, k, v, ranges, firstKey, scale, o, logSumExp);
            else AttendOnMma(block, q, k, v, ranges, firstKey, scale, o, logSumExp);
            return;
        }
        long blocks = AttentionRun.Slices(block.Queries) * block.Batches * block.Heads * CeilDivide(block.ValueWidth, Span);
        Launch(
            SoftmaxFile, accumulator ? "softmax_attention_fwd_f32" : "softmax_attention_fwd", q.DType, Blocks(blocks, SoftmaxThreads(q.DType)),
            q.Pointer, k.Pointer, v.Pointer, ranges.Pointer, firstKey, block.Queries, block.Keys, block.Heads, block.KeyHeads, block.KeyWidth, block.ValueWidth,
            block.Batches, (float)scale, o.Pointer, logSumExp.Pointer);
    }

    public void MergeSoftmax(Tensor partial, Tensor partialLogSumExp, Tensor o, Tensor logSumExp)
    {
        RequireType(o, DType.F32);
        RequireShape(partial, DType.F32, o.Shape);
        RequireType(logSumExp, DType.F32);
        RequireShape(partialLogSumExp, DType.F32, logSumExp.Shape);
        RequireRowValues(o, logSumExp);
        Launch(
            SoftmaxFile, "softmax_merge", DType.F32, PerWarp(logSumExp.Count),
            partial.Pointer, partialLogSumExp.Pointer, logSumExp.Count, o.Shape[-1], o.Pointer, logSumExp.Pointer);
    }

    public void SoftmaxDelta(Tensor o, Tensor dO, Tensor delta)
    {
        RequireElement(dO);
        bool accumulator = o.DType == DType.F32;
        RequireShape(o, accumulator ? DType.F32 : dO.DType, dO.Shape);
        RequireType(delta, DType.F32);
        RequireRowValues(dO, delta);
        Launch(
            SoftmaxFile, accumulator ? "softmax_delta_f32" : "softmax_delta", dO.DType, PerWarp(delta.Count),
            o.Pointer, dO.Pointer, delta.Count, dO.Shape[-1], delta.Pointer);
    }

    public void SoftmaxAttentionBackward(
        Tensor q, Tensor k, Tensor v, Tensor dO, Tensor logSumExp, Tensor delta, Tensor ranges, long firstKey, double scale, Tensor dq, Tensor dk, Tensor dv)
    {
        SoftmaxBlock block = SoftmaxBlock.Of(q, k, v, ranges);
        RequireShape(dO, q.DType, [block.Batches, block.Queries, block.Heads, block.ValueWidth]);
        block.RequireRows(logSumExp);
        block.RequireRows(delta);
        RequireShape(dq, DType.F32, q.Shape);
        RequireShape(dk, DType.F32, k.Shape);
        RequireShape(dv, DType.F32, v.Shape);
        if (FitsPanels(block, q.DType, scale, q.Pointer, k.Pointer, v.Pointer, dO.Pointer, dq.Pointer, dk.Pointer, dv.Pointer))
        {
            if (HasWarpgroups) AttendBackwardOnWarpgroups(block, q, k, v, dO, logSumExp, delta, ranges, firstKey, scale, dq, dk, dv);
            else AttendBackwardOnMma(block, q, k, v, dO, logSumExp, delta, ranges, firstKey, scale, dq, dk, dv);
            return;
        }
        long queryBlocks = AttentionRun.Slices(block.Queries) * block.Batches * block.Heads * CeilDivide(block.KeyWidth, Span);
        Launch(
            SoftmaxBackwardFile, "softmax_attention_bwd_query", q.DType, Blocks(queryBlocks, SoftmaxThreads(q.DType)),
            q.Pointer, k.Pointer, v.Pointer, dO.Pointer, logSumExp.Pointer, delta.Pointer, ranges.Pointer, firstKey, block.Queries, block.Keys, block.Heads, block.KeyHeads,
            block.KeyWidth, block.ValueWidth, block.Batches, (float)scale, dq.Pointer);
        long keyBlocks = AttentionRun.Slices(block.Keys) * block.Batches * block.KeyHeads * CeilDivide(Math.Max(block.KeyWidth, block.ValueWidth), Span);
        Launch(
            SoftmaxBackwardFile, "softmax_attention_bwd_key_value", q.DType, Blocks(keyBlocks, SoftmaxThreads(q.DType)),
            q.Pointer, k.Pointer, v.Pointer, dO.Pointer, logSumExp.Pointer, delta.Pointer, ranges.Pointer, firstKey, block.Queries, block.Keys, block.Heads, block.KeyHeads,
            block.KeyWidth, block.ValueWidth, block.Batches, (float)scale, dk.Pointer, dv.Pointer);
    }

    private static void RequireShape(Tensor tensor, DType dtype, Shape shape)
    {
        RequireType(tensor, dtype);
        if (tensor.Shape != shape) throw new LaspException($"a tensor of shape {tensor.Shape} should be {shape}");
    }

    private static void RequireRowValues(Tensor x, Tensor values)
    {
        if (values.Count != x.Shape.Rows) throw new LaspException($"{values.Shape} does not hold one value for each row of {x.Shape}");
    }
}
