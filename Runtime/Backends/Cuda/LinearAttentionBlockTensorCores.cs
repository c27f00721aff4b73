namespace LaspNative.Runtime.Cuda;

/// <summary>
/// Left products of bf16 on tensor cores (linear_attention_block_mma.cu): heads of up to 128 channels in whole packs, and tensors that start on 16 bytes. Everything else stays on the kernel of
/// LinearAttentionBlock.cs. Weights per channel are multiplied into copies of q and k before the walks; weights per token leave a product alone and come as factors.
/// </summary>
internal sealed partial class CudaBackend
{
    private const string BlockMmaFile = "linear_attention_block_mma";

    /// <summary>X_TOKENS there.</summary>
    private const int BlockMmaTokens = 128;

    private const long BlockMmaWidth = 128;

    /// <summary>Rows [B, tokens, Heads, Width] of bf16 that a walk reads.</summary>
    private readonly record struct BlockRows(nint Pointer, long Tokens, long Heads, long Width)
    {
        public static BlockRows Of(Tensor x) => new(x.Pointer, x.Shape[1], x.Shape[2], x.Shape[3]);
    }

    private static bool FitsBlockMma(Tensor q, Tensor k, Tensor v, params ReadOnlySpan<Tensor?> others)
    {
        bool fits = q.DType == DType.BF16 && q.Count > 0 && k.Count > 0 && IsBlockMmaWidth(q.Shape[3]) && IsBlockMmaWidth(v.Shape[3]) && ArePacked(q.Pointer | k.Pointer | v.Pointer);
        foreach (Tensor? other in others) fits &= ArePacked(PointerOrNull(other));
        return fits;
    }

    private static bool IsBlockMmaWidth(long width) => width <= BlockMmaWidth && width % Pack == 0;

    private void BlockOnMma(Tensor q, Tensor k, Tensor v, Tensor? queryWeights, Tensor? keyWeights, double scale, Tensor o)
    {
        (BlockRows queries, BlockRows keys) = WeighChannels(q, queryWeights, k, keyWeights);
        WalkBlockOnMma(queries, keys, BlockRows.Of(v), PerToken(queryWeights), PerToken(keyWeights), scale, o);
    }

    private void BlockBackwardOnMma(
        Tensor q, Tensor k, Tensor v, Tensor dO, Tensor? queryWeights, Tensor? keyWeights, double scale, Tensor dq, Tensor dk, Tensor dv)
    {
        (BlockRows queries, BlockRows keys) = WeighChannels(q, queryWeights, k, keyWeights);
        (BlockRows values, BlockRows gradients) = (BlockRows.Of(v), BlockRows.Of(dO));
        WalkBlockOnMma(gradients, values, keys, queryWeights, PerToken(keyWeights), scale, dq);
        WalkBlockOnMma(values, gradients, queries, keyWeights, PerToken(queryWeights), scale, dk);
        WalkBlockOnMma(keys, queries, gradients, PerToken(keyWeights), PerToken(queryWeights), scale, dv);
    }

    private static Tensor? PerToken(Tensor? weights) => weights is { Shape.Rank: 3 } ? weights : null;

    /// <summary>q and k, each times its weights where these are per channel: then in the workspace, and of H heads.</summary>
    private (BlockRows Queries, BlockRows Keys) WeighChannels(Tensor q, Tensor? queryWeights, Tensor k, Tensor? keyWeights)
    {
        (long queryBytes, long keyBytes) = (WeighedBytes(queryWeights), WeighedBytes(keyWeights));
        if (queryBytes + keyBytes == 0) return (BlockRows.Of(q), BlockRows.Of(k));
        nint room = _device.Workspace(queryBytes + keyBytes);
        return (WeighChannels(q, queryWeights, room), WeighChannels(k, keyWeights, room + (nint)queryBytes));
    }

    private static long WeighedBytes(Tensor? weights) => weights is { Shape.Rank: 4 } ? RoundUp(weights.Count * DType.BF16.Size(), 256) : 0;

    private BlockRows WeighChannels(Tensor x, Tensor? weights, nint to)
    {
        if (weights is not { Shape.Rank: 4 }) return BlockRows.Of(x);
        BlockRows weighed = BlockRows.Of(x) with { Pointer = to, Heads = weights.Shape[2] };
        long packs = weights.Count / Pack;
        Launch(
            BlockMmaFile, "linear_attention_block_weigh", x.DType, LaunchShape.For(packs, BlockThreads), x.Pointer, weights.Pointer, weighed.Heads, x.Shape[2], weighed.Width, packs, weighed.Pointer);
        return weighed;
    }

    /// <summary>output_x += scale w_x sum_y (a_x . b_y) u_y c_y; w are <paramref name="weights"/> per token or channel, u are <paramref name="factors"/> per token.</summary>
    private void WalkBlockOnMma(BlockRows a, BlockRows b, BlockRows c, Tensor? weights, Tensor? factors, double scale, Tensor output)
    {
        (long batches, long heads) = (output.Shape[0], output.Shape[2]);
        long width = Math.Max(a.Width, c.Width) <= 64 ? 64 : BlockMmaWidth, blocks = CeilDivide(a.Tokens, BlockMmaTokens) * batches * heads;
        Launch(
            BlockMmaFile, width == 64 ? "linear_attention_block_mma_64" : "linear_attention_block_mma_128", DType.BF16, Blocks(blocks, MmaThreads, 1024 + (512 * width)),
            a.Pointer, b.Pointer, c.Pointer, PointerOrNull(weights), weights is { Shape.Rank: 4 } ? c.Width : 1, PointerOrNull(factors),
            a.Tokens, b.Tokens, heads, a.Heads, b.Heads, c.Heads, a.Width, c.Width, batches, (float)scale, output.Pointer);
    }
}
