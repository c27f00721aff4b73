namespace LaspNative.Runtime.Cuda;

/// <summary>One state applied to all tokens (apply_state.cu).</summary>
internal sealed partial class CudaBackend
{
    public void ApplyState(Tensor x, Tensor state, bool transpose, double scale, Tensor y)
    {
        RequireElement(x);
        RequireType(y, x.DType);
        RequireType(state, DType.F32);
        if (x.Shape.Rank != 4 || state.Shape.Rank != 4 || y.Shape.Rank != 4) throw ApplyStateMismatch(x, state, y);
        (long heads, long width, long valueWidth) = (state.Shape[1], state.Shape[2], state.Shape[3]);
        (long batches, long tokens, long xHeads, long yHeads) = (x.Shape[0], x.Shape[1], x.Shape[2], y.Shape[2]);
        (long inputs, long outputs) = transpose ? (valueWidth, width) : (width, valueWidth);
        bool fits = state.Shape[0] == batches && x.Shape[3] == inputs && y.Shape == [batches, tokens, yHeads, outputs];
        if (!fits || xHeads == 0 || yHeads == 0 || heads % xHeads != 0 || heads % yHeads != 0) throw ApplyStateMismatch(x, state, y);
        long blocks = batches * yHeads * CeilDivide(tokens, AttentionRun.Tile) * AttentionRun.Slices(outputs);
        Launch(
            "apply_state", "apply_state", x.DType, Blocks(blocks, BlockThreads),
            x.Pointer, state.Pointer, tokens, heads, xHeads, yHeads, width, valueWidth, transpose ? 1 : 0, (float)scale, y.Pointer);
    }

    private static LaspException ApplyStateMismatch(Tensor x, Tensor state, Tensor y) =>
        new($"a state [B,H,D,E] takes x [B,N,Hx,D] to y [B,N,Hy,E] (transposed: E to D), with Hx and Hy dividing H; got state {state.Shape}, x {x.Shape}, y {y.Shape}");
}
