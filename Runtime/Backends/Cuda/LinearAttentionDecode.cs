namespace LaspNative.Runtime.Cuda;

/// <summary>One step of generation (linear_attention_decode.cu).</summary>
internal sealed partial class CudaBackend
{
    /// <summary>COLUMNS of linear_attention_decode.cu: what a block owns of a state's rows.</summary>
    private const long DecodeColumns = 64;

    public void LinearAttentionDecode(Tensor q, Tensor k, Tensor v, Tensor? decay, Tensor state, double scale, Tensor o)
    {
        RequireElement(q);
        foreach (Tensor tensor in (ReadOnlySpan<Tensor>)[k, v, o]) RequireType(tensor, q.DType);
        RequireType(state, DType.F32);
        if (decay is not null) RequireType(decay, DType.F32);
        DecodeExtents extents = DecodeExtents.Of(q, k, v, decay, state, o);
        if (extents.KeyWidth > AttentionRun.MaxWidth || extents.ValueWidth > AttentionRun.MaxWidth)
            throw new LaspException($"linear attention on a GPU takes heads of at most {AttentionRun.MaxWidth} channels, got a state {state.Shape}");
        var shape = new LaunchShape(checked((uint)(extents.Batches * extents.Heads)), (uint)CeilDivide(extents.ValueWidth, DecodeColumns), 1, BlockThreads);
        Launch(
            "linear_attention_decode", "linear_attention_decode", q.DType, shape,
            q.Pointer, k.Pointer, v.Pointer, PointerOrNull(decay), extents.DecayBatch, extents.DecayHead, extents.DecayChannel, extents.Heads, extents.KeyHeads,
            extents.KeyWidth, extents.ValueWidth, (float)scale, state.Pointer, o.Pointer);
    }
}
