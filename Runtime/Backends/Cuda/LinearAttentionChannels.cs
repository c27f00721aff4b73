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
    /// then room for dk or dv of each query head, where a group of them shares a key head, and for what one range passes on to the next. All but the segments' are of one range.
    /// </summary>
    private readonly record struct ChannelScratch(nint Segments, long SegmentBytes, nint Chunks, long ChunkBytes, nint Stopped, nint Reached, nint QueryHeads, nint Passed)
    {
        public nint OwnSegments(int index) => Segments + (nint)(index * SegmentBytes);

        public nint ChunkStates(int index) => Chunks + (nint)(index * ChunkBytes);
    }

    private ChannelScratch ChannelStates(AttentionRun run, int segments, int chunks, bool queryHeads = false)
    {
        AttentionRun range = run.Range(0);
        long segmentBytes = RoundUp(run.StoredSegments * run.StateElements * sizeof(float), 256), chunkBytes = Chunks(range) * ChunkStateBytes;
        long stoppedBytes = RoundUp(range.Segments * run.StateElements * sizeof(float), 256), reachedBytes = RoundUp(range.Segments * run.Batches * run.Heads * sizeof(int), 256);
        long headBytes = queryHeads ? RoundUp(range.Batches * range.Tokens * run.Heads * Math.Max(run.KeyWidth, run.ValueWidth) * DType.BF16.Size(), 256) : 0;
        long passedBytes = run.Ranges > 1 ? run.StateElements * sizeof(float) : 0;
        nint first = _device.Workspace((segments * segmentBytes) + (chunks * chunkBytes) + stoppedBytes + reachedBytes + headBytes + passedBytes);
        nint ownChunks = first + (nint)(segments * segmentBytes), stopped = ownChunks + (nint)(chunks * chunkBytes), reached = stopped + (nint)stoppedBytes, heads = reached + (nint)reachedBytes;
        return new ChannelScratch(first, segmentBytes, ownChunks, chunkBytes, stopped, reached, heads, heads + (nint)headBytes);
    }

    /// <summary>The decays over the segments; null with one segment, which needs none.</summary>
    private static nint SegmentDecays(AttentionRun run, nint segments) => run.Segments > 1 ? BehindStates(run, segments) : 0;

    private static nint BehindStates(AttentionRun run, nint segments) => segments + (nint)(run.Segments * run.StateElements * sizeof(float));

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
        if (state is not null) Scan(pass, states, SegmentDecays(pass.Run, states), alone ? 0 : PointerOrNull(initial), 0, state.Pointer);
    }

    /// <summary>Turns what the segments leave, which the caller has or which is made in <paramref name="own"/>, into what enters them.</summary>
    private nint EnterChannels(AttentionPass pass, AttentionOperand k, AttentionOperand v, double scale, nint initial, nint segments, nint own)
    {
        bool alone = pass.Run.Segments <= 1;
        if (alone && segments == 0) return initial;
        nint states = segments == 0 ? own : segments;
        if (segments == 0 && !alone) WalkChannels(pass, k, v, scale, entering: 0, states, chunks: 0);
        Scan(pass, alone ? 0 : states, SegmentDecays(pass.Run, states), initial, states, 0);
        return states;
    }

    /// <summary>What enters the segments: the caller's, or made.</summary>
    private nint EnterForward(in GradientCall call, nint segments, nint own) =>
        segments == 0 ? EnterChannels(call.Forward, call.K, call.V, 1, call.InitialState, 0, own) : segments;

    /// <summary>The gradients of what leaves the segments, made of the caller's own or from the start.</summary>
    private nint EnterBackward(in GradientCall call, nint segments, nint own) =>
        EnterChannels(call.Backward, call.Q, call.OutputGradient, call.Scale, call.FinalStateGradient, segments, own);

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
        ChannelScratch scratch = ChannelStates(pass.Run with { RangeSegments = 0 }, segments is null ? 1 : 0, chunks: 0);
        nint entering = EnterChannels(pass, key, value, 1, PointerOrNull(initialState), SegmentsOrNull(pass.Run, segments), scratch.OwnSegments(0));
        OutputOfChannels(pass, AttentionOperand.Of(q), key, value, scale, entering, scratch, o.Pointer, chunks: 0);
    }

    /// <summary>dq; the states of its chunks stay in <paramref name="paths"/> where that is given.</summary>
    private void ChannelBackwardQuery(in GradientCall call, nint segments, nint paths)
    {
        if (IsForGroups(call.Run))
        {
            foreach (GradientCall rows in GroupsOf(call)) ChannelBackwardQuery(rows, segments: 0, paths: 0);
            return;
        }
        ChannelScratch scratch = ChannelStates(call.Run, segments == 0 ? 1 : 0, chunks: paths == 0 ? 1 : 0);
        nint entering = EnterForward(call, segments, scratch.OwnSegments(0)), chunks = paths == 0 ? scratch.ChunkStates(0) : paths;
        for (long i = 0; i < call.Run.Ranges; i++)
        {
            GradientCall range = call.Range(i);
            WalkChannels(range.Forward, range.K, range.V, 1, call.Run.RangeStates(entering, i), segments: 0, chunks);
            ChannelGradients("linear_attention_channel_bwd_query", range, chunks, leaving: 0, dk: 0);
        }
    }

    /// <summary>
    /// dv, dk, and also the decay's gradient and dq where they are asked for: <paramref name="entering"/> are the forward segments then, <paramref name="paths"/> what <see cref="ChannelBackwardQuery"/> kept.
    /// </summary>
    private void ChannelBackwardKeyValue(in GradientCall call, nint entering, nint leaving, nint paths = 0)
    {
        AttentionRun run = call.Run;
        if (IsForGroups(run))
        {
            if (leaving != 0) EnterBackward(call, leaving, own: 0);
            foreach (GradientCall rows in GroupsOf(call)) ChannelBackwardKeyValue(rows, entering: 0, leaving: 0);
            return;
        }
        bool makesChunks = call.DecayGradient != 0 && paths == 0, makesEntering = makesChunks && entering == 0;
        bool inOnePass = makesChunks && leaving == 0 && run.Segments > 1;
        ChannelScratch scratch = ChannelStates(run, (leaving == 0 ? 1 : 0) + (makesEntering ? 1 : 0), makesChunks ? 2 : 1, run.Heads > run.KeyHeads);
        nint own = scratch.OwnSegments(makesEntering ? 1 : 0);
        if (makesChunks) entering = EnterForward(call, entering, scratch.OwnSegments(0));
        if (!inOnePass) leaving = EnterBackward(call, leaving, own);
        for (long i = run.Ranges - 1; i >= 0; i--)
        {
            GradientCall range = call.Range(i);
            nint enter = run.RangeStates(entering, i), leave = inOnePass ? own : run.RangeStates(leaving, i);
            if (inOnePass) EnterBothWays(range, enter, leave, i == run.Ranges - 1 ? call.FinalStateGradient : scratch.Passed, i == 0 ? 0 : scratch.Passed, scratch.ChunkStates(1));
            else if (makesChunks) WalkChannels(range.Forward, range.K, range.V, 1, enter, segments: 0, scratch.ChunkStates(1));
            KeyValueOfRange(range, leave, scratch, makesChunks ? scratch.ChunkStates(1) : paths);
        }
    }

    /// <summary>What <see cref="ChannelBackwardKeyValue"/> makes, from the gradients of what leaves the segments and, for that of the decay, the states that enter the chunks.</summary>
    private void KeyValueOfRange(in GradientCall call, nint leaving, in ChannelScratch scratch, nint chunks)
    {
        bool grouped = call.Run.Heads > call.Run.KeyHeads;
        OutputOfChannels(call.Backward, call.Q, call.K, call.OutputGradient, call.Scale, leaving, scratch, grouped ? scratch.QueryHeads : call.ValueGradient.Pointer, scratch.ChunkStates(0));
        if (grouped) SumGroups(call.Pass, scratch.QueryHeads, call.ValueGradient);
        string kernel = call.QueryGradient.Pointer != 0 ? "linear_attention_channel_bwd_query_key_decay"
            : call.DecayGradient != 0 ? "linear_attention_channel_bwd_key_decay" : "linear_attention_channel_bwd_key";
        ChannelGradients(kernel, call, chunks, scratch.ChunkStates(0), grouped ? scratch.QueryHeads : call.KeyGradient.Pointer);
        if (grouped) SumGroups(call.Pass, scratch.QueryHeads, call.KeyGradient);
    }

    /// <summary>dk or dv [B, N, Hk, width] from those of all query heads [B, N, H, width].</summary>
    private void SumGroups(AttentionPass pass, nint queryHeads, AttentionOperand sums)
    {
        long count = pass.Run.Batches * pass.Run.Tokens * sums.Heads * sums.Width;
        Launch(
            GroupSumFile, "linear_attention_group_sum", pass.Element, PerPack(count), queryHeads, (int)(pass.Run.Heads / sums.Heads), (int)sums.Width, count, sums.Pointer);
    }

    /// <summary>
    /// The states that enter the <paramref name="chunks"/>, from those that enter the segments, and the gradients of those that leave the segments, at <paramref name="leave"/>, from one pass over all
    /// operands. <paramref name="last"/>: the gradient of what leaves the run, <paramref name="first"/>: receives that of what enters it (0: nobody asks), possibly in its place.
    /// </summary>
    private void EnterBothWays(in GradientCall call, nint enter, nint leave, nint last, nint first, nint chunks)
    {
        AttentionRun run = call.Run;
        nint decays = BehindStates(run, leave);
        Launch(
            ChannelStatesFile, "linear_attention_channel_states", call.Pass.Element, Blocks(run.Segments * run.Batches * run.Heads, ChannelPanelThreads, ChannelStatesShared),
            call.Q.Pointer, call.K.Pointer, call.V.Pointer, call.OutputGradient.Pointer, call.Pass.Decay.Pointer, run.Tokens, run.Heads, run.KeyHeads, run.KeyWidth, run.ValueWidth, run.Batches,
            run.SegmentTokens, (float)call.Scale, enter, leave, decays, chunks);
        Scan(call.Backward, leave, decays, last, leave, first);
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
        GradientCall call = GradientCall.Of(pass, q, k, v, dO, initialState, dFinalState, scale).Gives(dq, dk, dv, dDecay);
        ChannelBackwardKeyValue(call, SegmentsOrNull(run, entering), SegmentsOrNull(run, leaving));
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
        GradientCall call = GradientCall.Of(pass, q, k, v, dO, initialState, dFinalState, scale).Gives(null, dk, dv, dDecay);
        if (pass.PerChannel) ChannelBackwardKeyValue(call, SegmentsOrNull(run, entering), SegmentsOrNull(run, leaving), PointerOrNull(paths));
        else KeyValuePaths(pass, q, k, v, dO, dFinalState, scale, dk, dv, dDecay, leaving, paths!);
    }

    /// <summary>The gradient of a decay per channel or per token.</summary>
    private void ChannelDecayGradient(in GradientCall call, nint entering, nint leaving)
    {
        AttentionRun run = call.Run;
        if (IsForGroups(run))
        {
            foreach (GradientCall rows in GroupsOf(call)) ChannelDecayGradient(rows, entering: 0, leaving: 0);
            return;
        }
        int own = entering == 0 ? 1 : 0;
        ChannelScratch scratch = ChannelStates(run, own + (leaving == 0 ? 1 : 0), chunks: 2);
        entering = EnterForward(call, entering, scratch.OwnSegments(0));
        if (leaving == 0) leaving = EnterBackward(call, 0, scratch.OwnSegments(own));
        for (long i = 0; i < run.Ranges; i++)
        {
            GradientCall range = call.Range(i);
            WalkChannels(range.Forward, range.K, range.V, 1, run.RangeStates(entering, i), segments: 0, scratch.ChunkStates(0));
            WalkChannels(range.Backward, range.Q, range.OutputGradient, range.Scale, run.RangeStates(leaving, i), segments: 0, scratch.ChunkStates(1));
            if (call.Pass.PerChannel) ChannelGradients("linear_attention_channel_bwd_key_decay", range, scratch.ChunkStates(0), scratch.ChunkStates(1), dk: 0);
            else TokenDecayGradient(range, scratch.ChunkStates(0), scratch.ChunkStates(1));
        }
    }

    private void TokenDecayGradient(in GradientCall call, nint entering, nint leaving)
    {
        AttentionRun run = call.Run;
        Launch(
            TokenGradientFile, "linear_attention_bwd_decay_per_token", call.Pass.Element, Blocks(Chunks(run), BlockThreads, TokenGradientShared),
            call.Q.Pointer, call.K.Pointer, call.V.Pointer, call.OutputGradient.Pointer, call.Pass.Decay.Pointer, run.Tokens, run.Heads, run.KeyHeads, run.KeyWidth, run.ValueWidth, run.Batches,
            (float)call.Scale, entering, leaving, call.DecayGradient);
    }

    private void ChannelGradients(string kernel, in GradientCall call, nint entering, nint leaving, nint dk)
    {
        AttentionRun run = call.Run;
        Launch(
            ChannelGradientFile, kernel, call.Pass.Element, Blocks(Chunks(run) * CeilDivide(run.KeyWidth, ChannelSlab), BlockThreads, ChannelGradientShared),
            call.Q.Pointer, call.K.Pointer, call.V.Pointer, call.OutputGradient.Pointer, call.Pass.Decay.Pointer, run.Tokens, run.Heads, run.KeyHeads, run.KeyWidth, run.ValueWidth, run.Batches,
            (float)call.Scale, entering, leaving, call.QueryGradient.Pointer, dk, call.DecayGradient);
    }
}
