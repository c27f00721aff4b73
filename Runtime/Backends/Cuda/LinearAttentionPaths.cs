namespace LaspNative.Runtime.Cuda;

/// <summary>
/// The gradient of a decay per token without passes of its own (decay_paths.cuh): the walk that makes dq keeps the states of its sub-chunks and counts the paths that arrive from them, the walk that makes
/// dk and dv counts the others, and a small kernel adds them up. bf16 on Hopper, as many key heads as heads, widths of multiples of 8 up to 128. For a decay per channel, of any groups of
/// heads, only the states are kept, which saves a walk. Everything else takes the passes of LinearAttentionChannels.cs.
/// </summary>
internal sealed partial class CudaBackend
{
    private const string QueryPathsFile = "linear_attention_query_paths";
    private const string KeyValuePathsFile = "linear_attention_key_value_paths";
    private const string PathsFile = "linear_attention_decay_paths";

    /// <summary>Floats of ChunkPaths in decay_paths.cuh.</summary>
    private const long ChunkPathFloats = (4 * AttentionRun.Tile) + 8;

    public long LinearAttentionPaths(Tensor q, Tensor k, Tensor v, Tensor dO, Tensor decay)
    {
        AttentionRun run = AttentionRun.Of(q, k, v);
        return PathFloats(new AttentionPass(run, q.DType, AttentionDecay.Of(decay, run), Reverse: false), q, k, v, dO);
    }

    private long PathFloats(AttentionPass pass, Tensor q, Tensor k, Tensor v, Tensor dO)
    {
        AttentionRun run = pass.Run;
        if (pass.PerChannel) return FitsAtOnce(run) && GivesDecayInOnePass(pass, q.Pointer, k.Pointer, v.Pointer, dO.Pointer) ? Chunks(run) * (ChunkStateBytes / sizeof(float)) : 0;
        bool pays = pass.Decay.Kind == DecayKind.PerToken && run.Heads == run.KeyHeads && pass.PaysRoundedStates
            && RunsOnWarpgroups(pass, states: 0, AttentionOperand.Of(q), AttentionOperand.Of(k), AttentionOperand.Of(v), AttentionOperand.Of(dO));
        return pays ? Chunks(run) * (ChunkStateFloats(run) + ChunkPathFloats) : 0;
    }

    /// <summary>Sub-chunks of all heads.</summary>
    private static long Chunks(AttentionRun run) => AttentionRun.Slices(run.Tokens) * run.Batches * run.Heads;

    /// <summary>Floats that take as much memory as a state of filled widths in bf16.</summary>
    private static long ChunkStateFloats(AttentionRun run) => FilledWidth(run.KeyWidth) * FilledWidth(run.ValueWidth) / 2;

    /// <summary>Where the sums lie in the paths, behind the states.</summary>
    private static nint PathSums(AttentionRun run, Tensor paths) => paths.Pointer + (nint)(Chunks(run) * ChunkStateFloats(run) * sizeof(float));

    /// <summary>dq, with what the gradient of the decay needs of this walk. Widths are the walk's: E, then D.</summary>
    private void QueryPaths(AttentionPass pass, Tensor q, Tensor k, Tensor v, Tensor dO, double scale, nint entering, Tensor dq, Tensor paths)
    {
        AttentionRun run = pass.Run;
        RequirePaths(PathFloats(pass, q, k, v, dO), paths, dq);
        string kernel = (IsWide(run.ValueWidth), IsWide(run.KeyWidth)) switch
        {
            (false, false) => "linear_attention_bwd_query_paths_64_64",
            (false, true) => "linear_attention_bwd_query_paths_64_128",
            (true, false) => "linear_attention_bwd_query_paths_128_64",
            (true, true) => "linear_attention_bwd_query_paths_128_128",
        };
        long width = FilledWidth(run.KeyWidth), valueWidth = FilledWidth(run.ValueWidth), perMultiprocessor = width + valueWidth > WarpgroupWidth ? 1 : 2;
        long shared = StagedBytes((200 << 10) / perMultiprocessor, 2 * (width + valueWidth), (width * (ColumnBytes + 16)) + (6 << 10));
        Launch(
            QueryPathsFile, kernel, pass.Element, Blocks(run.Segments * run.Batches * run.Heads, Warpgroup * (IsWide(run.KeyWidth) ? 3u : 2u), shared),
            dO.Pointer, v.Pointer, k.Pointer, pass.Decay.Pointer, (int)pass.Decay.Kind, run.Tokens, run.Heads, run.ValueWidth, run.KeyWidth, run.Batches, run.SegmentTokens,
            (float)scale, entering, dq.Pointer, q.Pointer, paths.Pointer, PathSums(run, paths));
    }

    /// <summary>dk, dv and the decay's gradient, after <see cref="QueryPaths"/>.</summary>
    private void KeyValuePaths(AttentionPass pass, Tensor q, Tensor k, Tensor v, Tensor dO, Tensor? dFinalState, double scale, Tensor dk, Tensor dv, Tensor dDecay, Tensor? segments, Tensor paths)
    {
        AttentionRun run = pass.Run;
        nint leaving = Enter(pass, AttentionOperand.Of(q), AttentionOperand.Of(dO), scale, dFinalState, segments).Pointer, sums = PathSums(run, paths);
        KeyValueOnWarpgroups(pass, q, k, v, dO, scale, leaving, dk, dv, paths.Pointer, sums);
        Launch(
            PathsFile, "linear_attention_bwd_decay_from_paths", pass.Element, Blocks(CeilDivide(Chunks(run) * WarpThreads, BlockThreads), BlockThreads),
            sums, run.Tokens, run.Heads, run.Batches, (int)AttentionRun.Slices(run.KeyWidth), dDecay.Pointer);
    }

    private static void RequirePaths(long count, Tensor paths, params ReadOnlySpan<Tensor> outputs)
    {
        RequireType(paths, DType.F32);
        if (count == 0 || paths.Count != count)
            throw new LaspException($"paths of shape {paths.Shape} have not the {count} elements that LinearAttentionPaths asks for; leave them out where it asks for none");
        bool fits = paths.Pointer % 16 == 0;
        foreach (Tensor output in outputs) fits &= output.Pointer % 16 == 0;
        if (!fits) throw new LaspException("paths, and the gradients made beside them, start on 16 bytes; leave the paths out where they do not");
    }
}
