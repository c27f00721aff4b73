namespace LaspNative.Runtime.Cuda;

/// <summary>
/// A decay per channel on tensor cores (linear_attention_channel_states.cu, _gentle.cu, _decay.cu and _decay_bwd.cu), and the gradient of a decay per token (linear_attention_token_decay_bwd.cu):
/// bf16 on Hopper, D and E multiples of 8 up to 128, tensors that start on 16 bytes. Everything else, and everything under LASP_FORCE_SM80, stays on the kernels of LinearAttention.cs.
/// Segments hold, behind their states, the decays over each of them, which the pass over their tokens finds on its way. dk and dv are made for each query head; those of a group are then summed.
/// </summary>
internal sealed partial class CudaBackend
{
    private const string ChannelFile = "linear_attention_channel_decay";
    private const string GentleWalkFile = "linear_attention_channel_gentle";
    private const string ChannelStatesFile = "linear_attention_channel_states";
    private const string ChannelGradientFile = "linear_attention_channel_decay_bwd";
    private const string TokenGradientFile = "linear_attention_token_decay_bwd";
    private const string GroupSumFile = "linear_attention_group_sum";

    /// <summary>THREADS of <see cref="ChannelFile"/>, and Layout::BYTES.</summary>
    private const uint ChannelThreads = 512;
    private const long ChannelOutputShared = 223744;

    /// <summary>THREADS_OF_BLOCK of channel_decay_panels.cuh, and the shared memory of <see cref="GentleWalkFile"/> and <see cref="ChannelStatesFile"/>.</summary>
    private const uint ChannelPanelThreads = 384;
    private const long GentleWalkShared = 231680;
    private const long ChannelStatesShared = 232192;

    /// <summary>Shared memory of the kernels of single chunks.</summary>
    private const long ChannelGradientShared = 112640;
    private const long TokenGradientShared = 99616;

    /// <summary>Channels of a block of <see cref="ChannelGradientFile"/>: SLAB.</summary>
    private const long ChannelSlab = 64;

    /// <summary>Bytes of the state of one chunk and head in bf16: CHUNK_STATE.</summary>
    private const long ChunkStateBytes = 128 * 128 * 2;

    private bool RunsOnChannelKernels(in AttentionPass pass, DecayKind kind, params ReadOnlySpan<nint> pointers)
    {
        AttentionRun run = pass.Run;
        bool fits = _device.Kernels.Architecture == "sm_90a" && pass.Element == DType.BF16 && pass.Decay.Kind == kind && run.Tokens > 0
            && run.KeyWidth % 8 == 0 && run.KeyWidth <= 128 && run.ValueWidth % 8 == 0 && run.ValueWidth <= 128 && pass.Decay.Pointer % 16 == 0;
        foreach (nint pointer in pointers) fits &= pointer % 16 == 0;
        return fits;
    }

    /// <summary>
    /// Where a call's states lie: those of the segments, by direction, those of the chunks, and those with which the walk of gentle chunks ends, with how many chunks of each segment it has passed;
    /// then room for dk or dv of each query head, where a group of them shares a key head.
    /// </summary>
    private readonly record struct ChannelScratch(nint Segments, long SegmentBytes, nint Chunks, long ChunkBytes, nint Stopped, nint Reached, nint QueryHeads)
    {
        public nint OwnSegments(int index) => Segments + (nint)(index * SegmentBytes);

        public nint ChunkStates(int index) => Chunks + (nint)(index * ChunkBytes);
    }

    private ChannelScratch ChannelStates(AttentionRun run, int segments, int chunks, bool queryHeads = false)
    {
        long segmentBytes = RoundUp(run.StoredSegments * run.StateElements * sizeof(float), 256);
        long chunkBytes = AttentionRun.Slices(run.Tokens) * run.Batches * run.Heads * ChunkStateBytes;
        long stoppedBytes = RoundUp(run.Segments * run.StateElements * sizeof(float), 256), reachedBytes = RoundUp(run.Segments * run.Batches * run.Heads * sizeof(int), 256);
        long headBytes = queryHeads ? run.Batches * run.Tokens * run.Heads * Math.Max(run.KeyWidth, run.ValueWidth) * DType.BF16.Size() : 0;
        nint first = _device.Workspace((segments * segmentBytes) + (chunks * chunkBytes) + stoppedBytes + reachedBytes + headBytes);
        nint ownChunks = first + (nint)(segments * segmentBytes), stopped = ownChunks + (nint)(chunks * chunkBytes), reached = stopped + (nint)stoppedBytes;
        return new ChannelScratch(first, segmentBytes, ownChunks, chunkBytes, stopped, reached, reached + (nint)reachedBytes);
    }

    /// <summary>The decays over the segments; null with one segment, which needs none.</summary>
    private static nint SegmentDecays(AttentionRun run, nint segments) => run.Segments > 1 ? segments + (nint)(run.Segments * run.StateElements * sizeof(float)) : 0;

    /// <summary>
    /// A walk along the segments, entered with <paramref name="entering"/> (0: zero): what they leave and the decays over them, or the states of their chunks.
    /// <paramref name="k"/> and <paramref name="v"/> are q and dO in the reverse direction.
    /// </summary>
    private void WalkChannels(AttentionPass pass, AttentionOperand k, AttentionOperand v, double scale, nint entering, nint segments, nint chunks)
    {
        AttentionRun run = pass.Run;
        Launch(
            ChannelStatesFile, pass.Reverse ? "linear_attention_channel_bwd_state" : "linear_attention_channel_state", pass.Element,
            Blocks(run.Segments * run.Batches * run.Heads, ChannelPanelThreads, ChannelStatesShared),
            k.Pointer, v.Pointer, pass.Decay.Pointer, (int)pass.Decay.Kind, run.Tokens, run.Heads, k.Heads, run.KeyWidth, run.ValueWidth, run.Batches, run.SegmentTokens,
            (float)scale, entering, segments, segments == 0 ? 0 : SegmentDecays(run, segments), chunks);
    }

    private void RunChannelState(AttentionPass pass, AttentionOperand k, AttentionOperand v, double scale, Tensor? initial, Tensor? state, Tensor? segments)
    {
        nint states = segments is null ? ChannelStates(pass.Run, segments: 1, chunks: 0).OwnSegments(0) : SegmentPointer(pass.Run, segments);
        bool alone = pass.Run.Segments <= 1;
        WalkChannels(pass, k, v, scale, alone ? PointerOrNull(initial) : 0, states, chunks: 0);
        if (state is not null) Scan(pass, states, SegmentDecays(pass.Run, states), alone ? null : initial, 0, state.Pointer);
    }

    /// <summary>Turns what the segments leave, which the caller has or which is made in <paramref name="own"/>, into what enters them.</summary>
    private nint EnterChannels(AttentionPass pass, AttentionOperand k, AttentionOperand v, double scale, Tensor? initial, Tensor? segments, nint own)
    {
        bool alone = pass.Run.Segments <= 1;
        if (alone && segments is null) return PointerOrNull(initial);
        nint states = segments is null ? own : SegmentPointer(pass.Run, segments);
        if (segments is null && !alone) WalkChannels(pass, k, v, scale, entering: 0, states, chunks: 0);
        Scan(pass, alone ? 0 : states, SegmentDecays(pass.Run, states), initial, states, 0);
        return states;
    }

    /// <summary>
    /// o, or dv with dO in the place of v; also the chunks' states (0: not kept). The walk of gentle chunks goes as far as they are, and the one for any decay goes on from there.
    /// </summary>
    private void OutputOfChannels(
        AttentionPass pass, AttentionOperand q, AttentionOperand k, AttentionOperand v, double scale, nint entering, in ChannelScratch scratch, nint output, nint chunks)
    {
        AttentionRun run = pass.Run;
        long walks = run.Segments * run.Batches * run.Heads;
        Launch(
            GentleWalkFile, pass.Reverse ? "linear_attention_channel_gentle_value" : "linear_attention_channel_gentle_output", pass.Element, Blocks(walks, ChannelPanelThreads, GentleWalkShared),
            q.Pointer, k.Pointer, v.Pointer, pass.Decay.Pointer, run.Tokens, run.Heads, k.Heads, run.KeyWidth, run.ValueWidth, run.Batches, run.SegmentTokens,
            (float)scale, entering, output, chunks, scratch.Reached, scratch.Stopped);
        Launch(
            ChannelFile, pass.Reverse ? "linear_attention_channel_bwd_value" : "linear_attention_channel_output", pass.Element, Blocks(walks, ChannelThreads, ChannelOutputShared),
            q.Pointer, k.Pointer, v.Pointer, pass.Decay.Pointer, run.Tokens, run.Heads, k.Heads, run.KeyWidth, run.ValueWidth, run.Batches, run.SegmentTokens,
            (float)scale, scratch.Stopped, output, chunks, scratch.Reached);
    }

    private void ChannelForward(AttentionPass pass, Tensor q, Tensor k, Tensor v, Tensor? initialState, double scale, Tensor o, Tensor? segments)
    {
        (AttentionOperand key, AttentionOperand value) = (AttentionOperand.Of(k), AttentionOperand.Of(v));
        ChannelScratch scratch = ChannelStates(pass.Run, segments is null ? 1 : 0, chunks: 0);
        nint entering = EnterChannels(pass, key, value, 1, initialState, segments, scratch.OwnSegments(0));
        OutputOfChannels(pass, AttentionOperand.Of(q), key, value, scale, entering, scratch, o.Pointer, chunks: 0);
    }

    /// <summary>dq; the states of its chunks stay in <paramref name="paths"/> where that is given.</summary>
    private void ChannelBackwardQuery(AttentionPass pass, Tensor k, Tensor v, Tensor dO, Tensor? initialState, double scale, Tensor dq, Tensor? segments, Tensor? paths)
    {
        ChannelScratch scratch = ChannelStates(pass.Run, segments is null ? 1 : 0, chunks: paths is null ? 1 : 0);
        nint chunks = paths is null ? scratch.ChunkStates(0) : paths.Pointer;
        EnterChunks(pass, k, v, initialState, segments, scratch.OwnSegments(0), chunks);
        ChannelGradients("linear_attention_channel_bwd_query", pass, q: 0, k, v, dO, scale, chunks, 0, dq.Pointer, 0, 0);
    }

    /// <summary>
    /// dv, dk, and also the decay's gradient and dq where they are asked for: <paramref name="entering"/> are the forward segments then, <paramref name="paths"/> what <see cref="ChannelBackwardQuery"/> kept.
    /// </summary>
    private void ChannelBackwardKeyValue(
        AttentionPass pass, Tensor q, Tensor k, Tensor v, Tensor dO, Tensor? initialState, Tensor? dFinalState, double scale, Tensor? dq, Tensor dk, Tensor dv, Tensor? dDecay,
        Tensor? entering, Tensor? leaving, Tensor? paths = null)
    {
        (AttentionOperand query, AttentionOperand gradient) = (AttentionOperand.Of(q), AttentionOperand.Of(dO));
        bool decays = dDecay is not null, makesChunks = decays && paths is null, makesEntering = makesChunks && entering is null, grouped = pass.Run.Heads > pass.Run.KeyHeads;
        bool inOnePass = makesChunks && leaving is null && pass.Run.Segments > 1;
        ChannelScratch scratch = ChannelStates(pass.Run, (leaving is null ? 1 : 0) + (makesEntering ? 1 : 0), makesChunks ? 2 : 1, grouped);
        nint leave = scratch.OwnSegments(makesEntering ? 1 : 0);
        if (inOnePass) EnterBothWays(pass, q, k, v, dO, initialState, dFinalState, scale, entering, scratch, leave);
        else leave = EnterChannels(pass, query, gradient, scale, dFinalState, leaving, leave);
        OutputOfChannels(pass, query, AttentionOperand.Of(k), gradient, scale, leave, scratch, grouped ? scratch.QueryHeads : dv.Pointer, scratch.ChunkStates(0));
        if (grouped) SumGroups(pass, scratch.QueryHeads, dv);
        if (makesChunks && !inOnePass) EnterChunks(pass with { Reverse = false }, k, v, initialState, entering, scratch.OwnSegments(0), scratch.ChunkStates(1));
        string kernel = dq is not null ? "linear_attention_channel_bwd_query_key_decay" : decays ? "linear_attention_channel_bwd_key_decay" : "linear_attention_channel_bwd_key";
        ChannelGradients(
            kernel, pass, q.Pointer, k, v, dO, scale, makesChunks ? scratch.ChunkStates(1) : PointerOrNull(paths), scratch.ChunkStates(0), PointerOrNull(dq),
            grouped ? scratch.QueryHeads : dk.Pointer, PointerOrNull(dDecay));
        if (grouped) SumGroups(pass, scratch.QueryHeads, dk);
    }

    /// <summary>dk or dv [B, N, Hk, width] from those of all query heads [B, N, H, width].</summary>
    private void SumGroups(AttentionPass pass, nint queryHeads, Tensor sums) =>
        Launch(
            GroupSumFile, "linear_attention_group_sum", pass.Element, PerPack(sums.Count), queryHeads, (int)(pass.Run.Heads / pass.Run.KeyHeads), (int)sums.Shape[3], sums.Count, sums.Pointer);

    /// <summary>The states that enter the chunks (kept as the second of <paramref name="scratch"/>) and those that leave the segments, at <paramref name="leave"/>, from one pass over all operands.</summary>
    private void EnterBothWays(
        AttentionPass pass, Tensor q, Tensor k, Tensor v, Tensor dO, Tensor? initialState, Tensor? dFinalState, double scale, Tensor? entering, in ChannelScratch scratch, nint leave)
    {
        AttentionRun run = pass.Run;
        nint enter = entering is null
            ? EnterChannels(pass with { Reverse = false }, AttentionOperand.Of(k), AttentionOperand.Of(v), 1, initialState, null, scratch.OwnSegments(0)) : SegmentPointer(run, entering);
        Launch(
            ChannelStatesFile, "linear_attention_channel_states", pass.Element, Blocks(run.Segments * run.Batches * run.Heads, ChannelPanelThreads, ChannelStatesShared),
            q.Pointer, k.Pointer, v.Pointer, dO.Pointer, pass.Decay.Pointer, run.Tokens, run.Heads, run.KeyHeads, run.KeyWidth, run.ValueWidth, run.Batches, run.SegmentTokens,
            (float)scale, enter, leave, SegmentDecays(run, leave), scratch.ChunkStates(1));
        Scan(pass, leave, SegmentDecays(run, leave), dFinalState, leave, 0);
    }

    public void LinearAttentionBackward(
        Tensor q, Tensor k, Tensor v, Tensor dO, Tensor decay, Tensor? initialState, Tensor? dFinalState, double scale, Tensor dq, Tensor dk, Tensor dv, Tensor dDecay,
        Tensor? entering = null, Tensor? leaving = null, PackedRuns? runs = null)
    {
        if (IsRunByRun(runs, decay))
        {
            RunByRun.Backward(this, runs!, q, k, v, dO, decay, initialState, dFinalState, scale, dq, dk, dv, dDecay);
            return;
        }
        AttentionRun run = Cut(AttentionRun.Of(q, k, v));
        var pass = new AttentionPass(run, q.DType, AttentionDecay.Of(decay, run), Reverse: true);
        if (!GivesDecayInOnePass(pass, q.Pointer, k.Pointer, v.Pointer, dO.Pointer, dq.Pointer, dk.Pointer, dv.Pointer, dDecay.Pointer))
        {
            LinearAttentionBackwardQuery(k, v, dO, decay, initialState, scale, dq, entering, runs: runs);
            LinearAttentionBackwardKeyValueDecay(q, k, v, dO, decay, initialState, dFinalState, scale, dk, dv, dDecay, entering, leaving, runs: runs);
            return;
        }
        RequireBackward(run, q, k, v, dO, decay, initialState, dFinalState, dk, dv, dDecay);
        RequireSame(q, dq);
        ChannelBackwardKeyValue(pass, q, k, v, dO, initialState, dFinalState, scale, dq, dk, dv, dDecay, entering, leaving);
    }

    /// <summary>Whether one kernel over single chunks gives the gradient of a decay per channel beside that of the keys.</summary>
    private bool GivesDecayInOnePass(in AttentionPass pass, params ReadOnlySpan<nint> pointers) =>
        pass.PaysRoundedStates && RunsOnChannelKernels(pass, DecayKind.PerChannel, pointers);

    private static void RequireBackward(AttentionRun run, Tensor q, Tensor k, Tensor v, Tensor dO, Tensor decay, Tensor? initialState, Tensor? dFinalState, Tensor dk, Tensor dv, Tensor dDecay)
    {
        RequireAttention(run, decay, initialState, q, k, v, dO, dk, dv);
        RequireAttention(run, dDecay, dFinalState, q);
        RequireOutput(dO, run, run.Heads, run.ValueWidth);
        RequireOutput(dk, run, run.KeyHeads, run.KeyWidth);
        RequireOutput(dv, run, run.KeyHeads, run.ValueWidth);
        RequireSame(decay, dDecay);
    }

    public void LinearAttentionBackwardKeyValueDecay(
        Tensor q, Tensor k, Tensor v, Tensor dO, Tensor decay, Tensor? initialState, Tensor? dFinalState, double scale, Tensor dk, Tensor dv, Tensor dDecay,
        Tensor? entering = null, Tensor? leaving = null, Tensor? paths = null, PackedRuns? runs = null)
    {
        if (IsRunByRun(runs, decay))
        {
            RunByRun.BackwardKeyValueDecay(this, runs!, q, k, v, dO, decay, initialState, dFinalState, scale, dk, dv, dDecay);
            return;
        }
        AttentionRun run = Cut(AttentionRun.Of(q, k, v));
        var pass = new AttentionPass(run, q.DType, AttentionDecay.Of(decay, run), Reverse: true);
        if (paths is null && !GivesDecayInOnePass(pass, q.Pointer, k.Pointer, v.Pointer, dO.Pointer, dk.Pointer, dv.Pointer, dDecay.Pointer))
        {
            LinearAttentionBackwardKeyValue(q, k, v, dO, decay, dFinalState, scale, dk, dv, leaving, runs);
            LinearAttentionBackwardDecay(q, k, v, dO, decay, initialState, dFinalState, scale, dDecay, entering, leaving, runs);
            return;
        }
        RequireBackward(run, q, k, v, dO, decay, initialState, dFinalState, dk, dv, dDecay);
        if (paths is not null) RequirePaths(PathFloats(pass, q, k, v, dO), paths, dk, dv, dDecay);
        if (pass.PerChannel) ChannelBackwardKeyValue(pass, q, k, v, dO, initialState, dFinalState, scale, dq: null, dk, dv, dDecay, entering, leaving, paths);
        else KeyValuePaths(pass, q, k, v, dO, dFinalState, scale, dk, dv, dDecay, leaving, paths!);
    }

    /// <summary>The states that enter the chunks, from the forward segments, which the caller has or which are made in <paramref name="own"/>.</summary>
    private void EnterChunks(AttentionPass pass, Tensor k, Tensor v, Tensor? initialState, Tensor? segments, nint own, nint chunks)
    {
        (AttentionOperand key, AttentionOperand value) = (AttentionOperand.Of(k), AttentionOperand.Of(v));
        nint entering = segments is null ? EnterChannels(pass, key, value, 1, initialState, null, own) : SegmentPointer(pass.Run, segments);
        WalkChannels(pass, key, value, 1, entering, segments: 0, chunks);
    }

    /// <summary>The gradient of a decay per channel or per token.</summary>
    private void ChannelDecayGradient(AttentionPass pass, DecayGradientCall call)
    {
        AttentionRun run = pass.Run;
        AttentionPass backward = pass with { Reverse = true };
        (AttentionOperand query, AttentionOperand gradient) = (AttentionOperand.Of(call.Q), AttentionOperand.Of(call.OutputGradient));
        int own = call.Entering is null ? 1 : 0;
        ChannelScratch scratch = ChannelStates(run, own + (call.Leaving is null ? 1 : 0), chunks: 2);
        EnterChunks(pass, call.K, call.V, call.InitialState, call.Entering, scratch.OwnSegments(0), scratch.ChunkStates(0));
        nint leaving = call.Leaving is null
            ? EnterChannels(backward, query, gradient, call.Scale, call.FinalStateGradient, null, scratch.OwnSegments(own)) : SegmentPointer(run, call.Leaving);
        WalkChannels(backward, query, gradient, call.Scale, leaving, segments: 0, scratch.ChunkStates(1));
        if (pass.PerChannel)
        {
            ChannelGradients(
                "linear_attention_channel_bwd_key_decay", pass, call.Q.Pointer, call.K, call.V, call.OutputGradient, call.Scale, scratch.ChunkStates(0), scratch.ChunkStates(1), 0, 0, call.Result.Pointer);
            return;
        }
        Launch(
            TokenGradientFile, "linear_attention_bwd_decay_per_token", pass.Element, Blocks(AttentionRun.Slices(run.Tokens) * run.Batches * run.Heads, BlockThreads, TokenGradientShared),
            call.Q.Pointer, call.K.Pointer, call.V.Pointer, call.OutputGradient.Pointer, pass.Decay.Pointer, run.Tokens, run.Heads, run.KeyHeads, run.KeyWidth, run.ValueWidth, run.Batches,
            (float)call.Scale, scratch.ChunkStates(0), scratch.ChunkStates(1), call.Result.Pointer);
    }

    private void ChannelGradients(
        string kernel, AttentionPass pass, nint q, Tensor k, Tensor v, Tensor dO, double scale, nint entering, nint leaving, nint dq, nint dk, nint dDecay)
    {
        AttentionRun run = pass.Run;
        long blocks = AttentionRun.Slices(run.Tokens) * run.Batches * run.Heads * CeilDivide(run.KeyWidth, ChannelSlab);
        Launch(
            ChannelGradientFile, kernel, pass.Element, Blocks(blocks, BlockThreads, ChannelGradientShared),
            q, k.Pointer, v.Pointer, dO.Pointer, pass.Decay.Pointer, run.Tokens, run.Heads, run.KeyHeads, run.KeyWidth, run.ValueWidth, run.Batches, (float)scale, entering, leaving, dq, dk, dDecay);
    }
}
