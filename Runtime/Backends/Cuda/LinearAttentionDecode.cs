namespace LaspNative.Runtime.Cuda;

/// <summary>One step of generation (linear_attention_decode.cu).</summary>
internal sealed partial class CudaBackend
{
    private const string DecodeFile = "linear_attention_decode";

    /// <summary>LANES of linear_attention_decode.cu: threads across a slice of a state's columns, each with a quad of them or, where rows are not made of quads, with one.</summary>
    private const long DecodeLanes = 16;
    private const long Quad = 4;

    public void LinearAttentionDecode(Tensor q, Tensor k, Tensor v, Tensor? decay, Tensor state, double scale, Tensor o)
    {
        RequireElement(q);
        foreach (Tensor tensor in (ReadOnlySpan<Tensor>)[k, v, o]) RequireType(tensor, q.DType);
        RequireType(state, DType.F32);
        if (decay is not null) RequireType(decay, DType.F32);
        DecodeExtents extents = DecodeExtents.Of(q, k, v, decay, state, o);
        if (extents.KeyWidth > AttentionRun.MaxWidth || extents.ValueWidth > AttentionRun.MaxWidth)
            throw new LaspException($"linear attention on a GPU takes heads of at most {AttentionRun.MaxWidth} channels, got a state {state.Shape}");
        bool quads = extents.ValueWidth % Quad == 0 && state.Pointer % 16 == 0;
        long columns = quads ? DecodeLanes * Quad : DecodeLanes;
        var shape = new LaunchShape(checked((uint)(extents.Batches * extents.Heads)), (uint)CeilDivide(extents.ValueWidth, columns), 1, BlockThreads);
        Launch(
            DecodeFile, quads ? "linear_attention_decode" : "linear_attention_decode_any", q.DType, shape,
            q.Pointer, k.Pointer, v.Pointer, PointerOrNull(decay), extents.DecayBatch, extents.DecayHead, extents.DecayChannel, extents.Heads, extents.KeyHeads,
            extents.KeyWidth, extents.ValueWidth, (float)scale, state.Pointer, o.Pointer);
    }
}
