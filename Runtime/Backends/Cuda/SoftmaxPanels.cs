namespace LaspNative.Runtime.Cuda;

/// <summary>
/// Softmax attention of the usual heads: bf16, keys and values of one width, 64 or 128, and tensors that start on 16 bytes. Hopper runs its warpgroup products (softmax_attention_wgmma.cu,
/// softmax_attention_bwd_wgmma.cu), other GPUs and LASP_FORCE_SM80 run mma.sync (softmax_attention_mma.cu, softmax_attention_bwd_mma.cu). Everything else stays on the kernels of SoftmaxAttention.cs.
/// </summary>
internal sealed partial class CudaBackend
{
    private const string SoftmaxWarpgroupsFile = "softmax_attention_wgmma";
    private const string SoftmaxWarpgroupsBackwardFile = "softmax_attention_bwd_wgmma";
    private const string SoftmaxMmaFile = "softmax_attention_mma";
    private const string SoftmaxMmaBackwardFile = "softmax_attention_bwd_mma";

    /// <summary>One warpgroup that copies, two that compute: THREADS of both files.</summary>
    private const uint WarpgroupThreads = 384;

    /// <summary>BLOCK_QUERIES of the forward file and BLOCK_KEYS of the backward one; queries of a block of the mma kernels.</summary>
    private const int WarpgroupRows = 128;

    /// <summary>Queries of one warpgroup forward, of one step backward, and of one span of the mma kernels: QUERIES and RUN.</summary>
    private const int QueryRun = 64;

    /// <summary>THREADS of the mma files.</summary>
    private const uint MmaThreads = 128;

    /// <summary>sizeof(SpanOfQueries) of softmax_visibility.cuh.</summary>
    private const long SpanBytes = 16;

    private bool HasWarpgroups => _device.Kernels.Architecture == "sm_90a";

    private static bool FitsPanels(in SoftmaxBlock block, DType element, double scale, params ReadOnlySpan<nint> pointers)
    {
        bool fits = element == DType.BF16 && scale > 0 && block.KeyWidth == block.ValueWidth && block.KeyWidth is 64 or 128 && block.Keys > 0 && block.Queries > 0;
        foreach (nint pointer in pointers) fits &= pointer % 16 == 0;
        return fits;
    }

    private unsafe void AttendOnWarpgroups(in SoftmaxBlock block, Tensor q, Tensor k, Tensor v, Tensor ranges, long firstKey, double scale, Tensor o, Tensor logSumExp)
    {
        string kernel = (block.KeyWidth, o.DType == DType.F32) switch
        {
            (64, false) => "softmax_attention_fwd_64",
            (64, true) => "softmax_attention_fwd_64_f32",
            (_, false) => "softmax_attention_fwd_128",
            (_, true) => "softmax_attention_fwd_128_f32",
        };
        long blocks = CeilDivide(block.Queries, WarpgroupRows) * block.Batches * block.Heads;
        (TensorMap queries, TensorMap keys, TensorMap values) = (TensorMap.Of(q, QueryRun), TensorMap.Of(k, WarpgroupRows), TensorMap.Of(v, WarpgroupRows));
        Launch(
            SoftmaxWarpgroupsFile, kernel, q.DType, Blocks(blocks, WarpgroupThreads, 1024 + (1280 * block.KeyWidth)),
            KernelArg.At(&queries), KernelArg.At(&keys), KernelArg.At(&values), ranges.Pointer, firstKey, block.Queries, block.Keys, block.Heads, block.KeyHeads, block.Batches,
            (float)scale, o.Pointer, logSumExp.Pointer);
    }

    private unsafe void AttendBackwardOnWarpgroups(
        in SoftmaxBlock block, Tensor q, Tensor k, Tensor v, Tensor dO, Tensor logSumExp, Tensor delta, Tensor ranges, long firstKey, double scale, Tensor dq, Tensor dk, Tensor dv)
    {
        long runs = CeilDivide(block.Queries, QueryRun), tickets = 1 + (block.Batches * block.Heads * runs);
        nint spans = _device.Workspace((runs * SpanBytes) + (tickets * sizeof(int))), firstTicket = spans + (nint)(runs * SpanBytes);
        _device.Context.MakeCurrent();
        _device.Stream.FillAsync(0, firstTicket, tickets * sizeof(int));
        Launch(SoftmaxWarpgroupsBackwardFile, "softmax_query_spans", q.DType, PerWarp(runs), ranges.Pointer, firstKey, block.Queries, block.Keys, spans);
        long blocks = CeilDivide(block.Keys, WarpgroupRows) * block.Batches * block.KeyHeads;
        (TensorMap queries, TensorMap gradients, TensorMap shares) = (TensorMap.Of(q, QueryRun), TensorMap.Of(dO, QueryRun), TensorMap.Of(dq, QueryRun));
        Launch(
            SoftmaxWarpgroupsBackwardFile, block.KeyWidth == 64 ? "softmax_attention_bwd_64" : "softmax_attention_bwd_128", q.DType,
            Blocks(blocks, WarpgroupThreads, 33792 + (1280 * block.KeyWidth)),
            KernelArg.At(&queries), k.Pointer, v.Pointer, KernelArg.At(&gradients), logSumExp.Pointer, delta.Pointer, ranges.Pointer, spans, firstTicket, firstKey, block.Queries, block.Keys,
            block.Heads, block.KeyHeads, block.Batches, (float)scale, KernelArg.At(&shares), dk.Pointer, dv.Pointer);
    }

    private void AttendOnMma(in SoftmaxBlock block, Tensor q, Tensor k, Tensor v, Tensor ranges, long firstKey, double scale, Tensor o, Tensor logSumExp)
    {
        string kernel = (block.KeyWidth, o.DType == DType.F32) switch
        {
            (64, false) => "softmax_attention_fwd_mma_64",
            (64, true) => "softmax_attention_fwd_mma_64_f32",
            (_, false) => "softmax_attention_fwd_mma_128",
            (_, true) => "softmax_attention_fwd_mma_128_f32",
        };
        long blocks = CeilDivide(block.Queries, WarpgroupRows) * block.Batches * block.Heads;
        Launch(
            SoftmaxMmaFile, kernel, q.DType, Blocks(blocks, MmaThreads, 1024 + (512 * block.KeyWidth)),
            q.Pointer, k.Pointer, v.Pointer, ranges.Pointer, firstKey, block.Queries, block.Keys, block.Heads, block.KeyHeads, block.Batches, (float)scale, o.Pointer, logSumExp.Pointer);
    }

    private void AttendBackwardOnMma(
        in SoftmaxBlock block, Tensor q, Tensor k, Tensor v, Tensor dO, Tensor logSumExp, Tensor delta, Tensor ranges, long firstKey, double scale, Tensor dq, Tensor dk, Tensor dv)
    {
        bool narrow = block.KeyWidth == 64;
        long runs = CeilDivide(block.Queries, QueryRun);
        long keys = narrow ? 128 : 64;  // of a block for dk and dv: KEYS there
        long queryBlocks = CeilDivide(block.Queries, WarpgroupRows) * block.Batches * block.Heads, keyBlocks = CeilDivide(block.Keys, keys) * block.Batches * block.KeyHeads;
        nint spans = _device.Workspace(runs * SpanBytes);
        Launch(SoftmaxMmaBackwardFile, "softmax_query_spans", q.DType, PerWarp(runs), ranges.Pointer, firstKey, block.Queries, block.Keys, spans);
        Launch(
            SoftmaxMmaBackwardFile, narrow ? "softmax_attention_bwd_mma_query_64" : "softmax_attention_bwd_mma_query_128", q.DType,
            Blocks(queryBlocks, MmaThreads, 1024 + (704 * block.KeyWidth)),
            q.Pointer, k.Pointer, v.Pointer, dO.Pointer, logSumExp.Pointer, delta.Pointer, ranges.Pointer, firstKey, block.Queries, block.Keys, block.Heads, block.KeyHeads,
            block.Batches, (float)scale, dq.Pointer);
        Launch(
            SoftmaxMmaBackwardFile, narrow ? "softmax_attention_bwd_mma_key_value_64" : "softmax_attention_bwd_mma_key_value_128", q.DType,
            Blocks(keyBlocks, MmaThreads, 1024 + (((4 * keys) + 256) * block.KeyWidth)),
            q.Pointer, k.Pointer, v.Pointer, dO.Pointer, logSumExp.Pointer, delta.Pointer, ranges.Pointer, spans, firstKey, block.Queries, block.Keys, block.Heads, block.KeyHeads,
            block.Batches, (float)scale, dk.Pointer, dv.Pointer);
    }
}
