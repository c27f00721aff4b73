namespace LaspNative.Runtime.Cuda;

/// <summary>
/// Linear attention, forward. A run is cut into segments that the GPU walks side by side: one pass leaves each segment's state (linear_attention_state), an ordered
/// scan turns them into the states that enter (linear_attention_enter), and a second pass makes the outputs (linear_attention_output). The gradients of q, k and v
/// are the same three steps with the tensors in other places.
/// </summary>
internal sealed partial class CudaBackend
{
    private const string StateFile = "linear_attention_state";
    private const string OutputFile = "linear_attention_output";

    /// <summary>Floats of a tile in shared memory, rows padded against bank conflicts: TILE_FLOATS of attention_tiles.cuh.</summary>
    private const long TilePitch = AttentionRun.Tile + 4;

    /// <summary>One operand of a pass: [B, N, Heads, Width].</summary>
    private readonly record struct AttentionOperand(nint Pointer, long Heads, long Width)
    {
        public static AttentionOperand Of(Tensor tensor) => new(tensor.Pointer, tensor.Shape[2], tensor.Shape[3]);

        public static AttentionOperand OrNone(Tensor? tensor) => tensor is null ? default : Of(tensor);

        /// <summary>From a token on, counted over all rows; none stays none.</summary>
        public AttentionOperand From(long token, int elementBytes) => Pointer == 0 ? this : this with { Pointer = Pointer + (nint)(token * Heads * Width * elementBytes) };
    }

    /// <summary>What all passes of one call share. <paramref name="Reverse"/>: the recursion of the gradients, from the last token to the first.</summary>
    private readonly record struct AttentionPass(AttentionRun Run, DType Element, AttentionDecay Decay, bool Reverse)
    {
        public int Direction => Reverse ? 1 : 0;

        public bool PerChannel => Decay.Kind == DecayKind.PerChannel;

        /// <summary>
        /// Whether the gradient of a decay per token or channel may take its states as bf16 operands: over a long run of wide heads their rounding is lost in that of the products; over a short one,
        /// where an initial state weighs much, or with few channels to average over, it would show.
        /// </summary>
        public bool PaysRoundedStates => Run.Tokens >= 256 && Run.KeyWidth >= 64 && Run.ValueWidth >= 64;
    }

    /// <summary>
    /// Scratch of one call: arrays of states [segments, B, H, D, E], the segments' A [segments, B, H, 1 or D] where decays differ between tokens (else null, and with one segment, which needs none), and
    /// whatever else the call asked for.
    /// </summary>
    private readonly record struct AttentionScratch(nint First, long StateBytes, nint Factors, nint Rest)
    {
        public nint States(int index) => First + (nint)(index * StateBytes);
    }

    public long LinearAttentionSegments(long batches, long tokens, long heads, long keyWidth, long valueWidth) =>
        Cut(new AttentionRun(batches, tokens, heads, heads, keyWidth, valueWidth)).StoredSegments;

    public void LinearAttentionState(Tensor k, Tensor v, Tensor? decay, Tensor? state, Tensor? segments = null, Tensor? initialState = null, PackedRuns? runs = null)
    {
        if (IsRunByRun(runs, decay))
        {
            RunByRun.State(this, runs!, k, v, decay, state!, initialState);
            return;
        }
        AttentionRun run = Cut(AttentionRun.OfState(k, v, state, segments, runs), runs, everyState: true);
        RequireAttention(run, decay, state, k, v);
        RequireAttention(run, decay, initialState, k);
        var pass = new AttentionPass(run, k.DType, AttentionDecay.Of(decay, run), Reverse: false);
        RunState(pass, AttentionOperand.Of(k), AttentionOperand.Of(v), 1, initialState, state, segments);
    }

    public void LinearAttention(Tensor q, Tensor k, Tensor v, Tensor? decay, Tensor? initialState, double scale, Tensor o, Tensor? segments = null, PackedRuns? runs = null)
    {
        if (IsRunByRun(runs, decay))
        {
            RunByRun.Output(this, runs!, q, k, v, decay, initialState, scale, o);
            return;
        }
        AttentionRun run = Cut(AttentionRun.Of(q, k, v), runs, everyState: initialState is not null);
        RequireAttention(run, decay, initialState, q, k, v, o);
        RequireOutput(o, run, run.Heads, run.ValueWidth);
        var pass = new AttentionPass(run, q.DType, AttentionDecay.Of(decay, run), Reverse: false);
        if (RunsOnChannelKernels(pass, DecayKind.PerChannel, q.Pointer, k.Pointer, v.Pointer, o.Pointer))
        {
            ChannelForward(pass, q, k, v, initialState, scale, o, segments);
            return;
        }
        EdgeStates entering = Enter(pass, AttentionOperand.Of(k), AttentionOperand.Of(v), 1, initialState, segments);
        Output(pass, AttentionOperand.Of(q), AttentionOperand.Of(k), AttentionOperand.Of(v), 1, scale, entering.Pointer, transposed: false, o, channelsAreValues: false);
    }

    private AttentionRun Cut(AttentionRun run, PackedRuns? runs = null, bool everyState = false)
    {
        // A multiprocessor holds one block of the warpgroup kernels, two of the others.
        int blocks = _device.MultiprocessorCount * (FitsWarpgroups(run.KeyWidth) && FitsWarpgroups(run.ValueWidth) ? 1 : 2);
        if (runs is null) return run.CutFor(blocks, HeadTokensAtOnce);
        if (run.Batches != 1 || run.Tokens != runs.Tokens) throw new LaspException($"packed runs of {runs.Tokens} tokens lie in one row, got {run.Batches} of {run.Tokens} tokens");
        return run with { Packed = PackedCut.Of(runs, run.Heads, blocks, everyState, _device) };
    }

    /// <summary>The kernels of a decay per channel take packed runs one at a time.</summary>
    private static bool IsRunByRun(PackedRuns? runs, Tensor? decay) => runs is not null && decay is { Shape.Rank: 4 };

    /// <summary>The state that the whole run leaves, entered with <paramref name="initial"/> (null: zero), and each segment's own where the caller keeps them.</summary>
    private void RunState(AttentionPass pass, AttentionOperand k, AttentionOperand v, double scale, Tensor? initial, Tensor? state, Tensor? segments)
    {
        if (RunsOnChannelKernels(pass, DecayKind.PerChannel, k.Pointer, v.Pointer))
        {
            RunChannelState(pass, k, v, scale, initial, state, segments);
            return;
        }
        if (!pass.Run.IsCut && pass.Run.Tokens > 0 && segments is null && initial is null && state is not null)
        {
            SegmentStates(pass, k, v, scale, state.Pointer);
            return;
        }
        AttentionScratch scratch = Scratch(pass, states: segments is null ? 1 : 0, decays: initial is not null);
        nint states = segments is null ? scratch.States(0) : SegmentPointer(pass.Run, segments);
        SegmentStates(pass, k, v, scale, states);
        if (state is not null) Scan(pass, states, scratch.Factors, PointerOrNull(initial), 0, state.Pointer);
    }

    /// <summary>States at the edges of the segments, and room for as many more.</summary>
    private readonly record struct EdgeStates(nint Pointer, nint Spare);

    /// <summary>
    /// The states that enter the segments, in processing order: from the segments' own states, which the caller has, or which are made here (a run that is not cut needs none).
    /// They replace the caller's.
    /// </summary>
    private EdgeStates Enter(AttentionPass pass, AttentionOperand k, AttentionOperand v, double scale, Tensor? initial, Tensor? segments, bool spare = false)
    {
        if (!pass.Run.IsCut && segments is null && !spare && PointerOrNull(initial) % 16 == 0) return new EdgeStates(PointerOrNull(initial), 0);
        int own = segments is null ? 1 : 0;
        AttentionScratch scratch = Scratch(pass, states: own + (spare ? 1 : 0));
        nint states = segments is null ? scratch.States(0) : SegmentPointer(pass.Run, segments);
        bool alone = !pass.Run.IsCut;
        if (segments is null && !alone) SegmentStates(pass, k, v, scale, states);
        Scan(pass, alone ? 0 : states, scratch.Factors, PointerOrNull(initial), states, 0);
        return new EdgeStates(states, scratch.States(own));
    }

    private static nint SegmentsOrNull(AttentionRun run, Tensor? segments) => segments is null ? 0 : SegmentPointer(run, segments);

    private static nint SegmentPointer(AttentionRun run, Tensor segments)
    {
        RequireType(segments, DType.F32);
        if (segments.Count != run.StoredSegments * run.StateElements)
            throw new LaspException($"segment states of shape {segments.Shape} are not [{run.StoredSegments}, {run.Batches}, {run.Heads}, {run.KeyWidth}, {run.ValueWidth}]");
        return segments.Pointer;
    }

    /// <summary>Takes the workspace: so many arrays of states, the segments' factors, filled, and <paramref name="more"/> bytes. <paramref name="decays"/>: the factors also of a run that is not cut.</summary>
    private AttentionScratch Scratch(AttentionPass pass, int states, long more = 0, bool decays = false)
    {
        AttentionRun run = pass.Run;
        bool perToken = pass.Decay.Kind == DecayKind.PerToken, stored = (run.IsCut || decays) && (perToken || pass.PerChannel);
        long channels = pass.Decay.Channels(run), factorCount = stored ? run.States * run.Batches * run.Heads * channels : 0;
        long stateBytes = RoundUp(run.States * run.StateElements * sizeof(float), 256), factorBytes = RoundUp(factorCount * sizeof(float), 256);
        nint first = _device.Workspace((states * stateBytes) + factorBytes + more), factors = first + (nint)(states * stateBytes);
        if (!stored) return new AttentionScratch(first, stateBytes, 0, factors);
        if (perToken)
            Launch(
                StateFile, "linear_attention_segment_decay_per_token", pass.Element, Blocks(factorCount, BlockThreads),
                pass.Decay.Pointer, run.Tokens, run.Batches, run.Heads, channels, run.States, run.SegmentTokens, SegmentRows(run), factors);
        else
            Launch(
                StateFile, "linear_attention_segment_decay_per_channel", pass.Element, LaunchShape.For(factorCount, BlockThreads),
                pass.Decay.Pointer, run.Tokens, run.Batches, run.Heads, channels, run.Segments, run.SegmentTokens, factors);
        return new AttentionScratch(first, stateBytes, factors, factors + (nint)factorBytes);
    }

    /// <summary>The segments of packed runs, else null.</summary>
    private static nint SegmentRows(AttentionRun run) => run.Packed?.SegmentRows ?? 0;

    /// <summary>states [segments, B, H, D, E]: what each segment leaves, entered with zero. <paramref name="exact"/>: from operands that no weight has rounded.</summary>
    private void SegmentStates(AttentionPass pass, AttentionOperand k, AttentionOperand v, double scale, nint states, bool exact = false)
    {
        if (!exact && RunsOnWarpgroups(pass, states, k, v))
        {
            SegmentStatesOnWarpgroups(pass, k, v, scale, states);
            return;
        }
        if (!exact && RunsOnTensorCores(pass))
        {
            SegmentStatesOnTensorCores(pass, k, v, scale, states);
            return;
        }
        AttentionRun run = pass.Run;
        Launch(
            StateFile, pass.PerChannel ? "linear_attention_state_per_channel" : "linear_attention_state", pass.Element,
            Blocks(run.States * run.Batches * run.Heads * run.Tiles, BlockThreads),
            k.Pointer, v.Pointer, pass.Decay.Pointer, (int)pass.Decay.Kind, run.Tokens, run.Heads, k.Heads, k.Width, v.Width, run.Batches,
            run.SegmentTokens, SegmentRows(run), pass.Direction, (float)scale, states);
    }

    /// <summary>entering [segments, B, H, D, E], possibly the states themselves, from the segments' states and factors and the state that enters the run; also the state that leaves it.</summary>
    private void Scan(AttentionPass pass, nint states, nint factors, nint initial, nint entering, nint final)
    {
        AttentionRun run = pass.Run;
        long runs = run.Packed?.Runs ?? run.Batches;
        Launch(
            StateFile, "linear_attention_enter", pass.Element, LaunchShape.For(CeilDivide(runs * run.Heads * run.KeyWidth * run.ValueWidth, 4), BlockThreads),
            states, factors, pass.Decay.Kind == DecayKind.PerHead ? pass.Decay.Pointer : 0, initial, run.Tokens, runs, run.Heads, run.KeyWidth, run.ValueWidth,
            pass.Decay.Channels(run), run.SegmentTokens, run.Packed?.RunRows ?? 0, pass.Direction, entering, final);
    }

    /// <summary>
    /// The walk of linear_attention_output. <paramref name="transposed"/>: the states lie as [E, D] of this walk; they are overwritten where outputs sum over heads.
    /// <paramref name="channelsAreValues"/>: a decay per channel acts on the columns of the state.
    /// </summary>
    private void Output(
        AttentionPass pass, AttentionOperand q, AttentionOperand k, AttentionOperand v, double keyScale, double outputScale, nint entering, bool transposed, Tensor output, bool channelsAreValues)
    {
        if (q.Heads >= k.Heads && RunsOnWarpgroups(pass, entering, q, k, v, AttentionOperand.Of(output)))
        {
            OutputOnWarpgroups(pass, q, k, v, keyScale, outputScale, entering, transposed, output);
            return;
        }
        if (RunsOnTensorCores(pass))
        {
            OutputOnTensorCores(pass, q, k, v, keyScale, outputScale, entering, transposed, output);
            return;
        }
        AttentionRun run = pass.Run;
        (string kernel, int tiles) = !pass.PerChannel ? ("linear_attention_output", 3)
            : channelsAreValues ? ("linear_attention_output_decayed_values", 4) : ("linear_attention_output_decayed_keys", 4);
        long sharedBytes = ((tiles * AttentionRun.Tile) + RoundUp(q.Width, AttentionRun.Tile)) * TilePitch * sizeof(float);
        Launch(
            OutputFile, kernel, pass.Element, Blocks(run.Segments * run.Batches * q.Heads * AttentionRun.Slices(v.Width), BlockThreads, sharedBytes),
            q.Pointer, k.Pointer, v.Pointer, pass.Decay.Pointer, (int)pass.Decay.Kind, run.Tokens, q.Heads, k.Heads, q.Width, v.Width, run.Batches,
            run.SegmentTokens, SegmentRows(run), pass.Direction, (float)keyScale, (float)outputScale, entering, transposed ? 1 : 0, output.Pointer);
    }

    private static void RequireAttention(AttentionRun run, Tensor? decay, Tensor? state, params ReadOnlySpan<Tensor> operands)
    {
        RequireElement(operands[0]);
        foreach (Tensor operand in operands) RequireType(operand, operands[0].DType);
        if (decay is not null) RequireType(decay, DType.F32);
        if (state is null) return;
        RequireType(state, DType.F32);
        if (state.Count != run.EdgeElements)
            throw new LaspException($"a state of shape {state.Shape} is not [{run.Runs}, {run.Heads}, {run.KeyWidth}, {run.ValueWidth}]");
    }

    private static void RequireOutput(Tensor output, AttentionRun run, long heads, long width)
    {
        if (output.Shape != [run.Batches, run.Tokens, heads, width])
            throw new LaspException($"a tensor of shape {output.Shape} is not [{run.Batches}, {run.Tokens}, {heads}, {width}]");
    }
}
