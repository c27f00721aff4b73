namespace LaspNative.Runtime.Cuda;

/// <summary>
/// Gradients of linear attention. dq reads the forward states transposed; dk and dv walk the reverse recursion, whose states are the gradients D; the decay's
/// gradient needs both kinds of states: at the edges of its segments (linear_attention_decay_per_head.cu) or of every sub-chunk (linear_attention_decay.cu).
/// </summary>
internal sealed partial class CudaBackend
{
    private const string DecayFile = "linear_attention_decay";
    private const string HeadDecayFile = "linear_attention_decay_per_head";

    public void LinearAttentionBackwardState(Tensor q, Tensor dO, Tensor? decay, double scale, Tensor? dState, Tensor? segments = null, Tensor? dFinalState = null, PackedRuns? runs = null)
    {
        if (IsRunByRun(runs, decay))
        {
            RunByRun.BackwardState(this, runs!, q, dO, decay, scale, dState!, dFinalState);
            return;
        }
        AttentionRun run = Cut(AttentionRun.OfState(q, dO, dState, segments, runs), runs, everyState: true);
        RequireAttention(run, decay, dState, q, dO);
        RequireAttention(run, decay, dFinalState, q);
        var pass = new AttentionPass(run, q.DType, AttentionDecay.Of(decay, run), Reverse: true);
        RunState(pass, AttentionOperand.Of(q), AttentionOperand.Of(dO), scale, dFinalState, dState, segments);
    }

    public void LinearAttentionBackwardQuery(
        Tensor k, Tensor v, Tensor dO, Tensor? decay, Tensor? initialState, double scale, Tensor dq, Tensor? segments = null, Tensor? q = null, Tensor? paths = null,
        PackedRuns? runs = null)
    {
        if (IsRunByRun(runs, decay))
        {
            RunByRun.BackwardQuery(this, runs!, k, v, dO, decay, initialState, scale, dq);
            return;
        }
        AttentionRun run = Cut(AttentionRun.Of(dq, k, v), runs, everyState: initialState is not null);
        RequireAttention(run, decay, initialState, k, v, dO, dq);
        RequireOutput(dO, run, run.Heads, run.ValueWidth);
        var pass = new AttentionPass(run, k.DType, AttentionDecay.Of(decay, run), Reverse: false);
        if (RunsOnChannelKernels(pass, DecayKind.PerChannel, k.Pointer, v.Pointer, dO.Pointer, dq.Pointer))
        {
            if (paths is not null) RequirePaths(PathFloats(pass, q!, k, v, dO), paths, dq);
            ChannelBackwardQuery(GradientCall.Of(pass, null, k, v, dO, initialState, null, scale).Gives(dq, null, null, null), SegmentsOrNull(run, segments), PointerOrNull(paths));
            return;
        }
        nint entering = segments is null ? Enter(pass, AttentionOperand.Of(k), AttentionOperand.Of(v), 1, initialState, null).Pointer : SegmentPointer(run, segments);
        if (q is not null && paths is not null)
        {
            RequireAttention(run, decay, null, dq, q);
            RequireSame(dq, q);
            QueryPaths(pass, q, k, v, dO, scale, entering, dq, paths);
            return;
        }
        Output(pass, AttentionOperand.Of(dO), AttentionOperand.Of(v), AttentionOperand.Of(k), 1, scale, entering, transposed: true, dq, channelsAreValues: true);
    }

    public void LinearAttentionBackwardKeyValue(
        Tensor q, Tensor k, Tensor v, Tensor dO, Tensor? decay, Tensor? dFinalState, double scale, Tensor dk, Tensor dv, Tensor? segments = null, PackedRuns? runs = null)
    {
        if (IsRunByRun(runs, decay))
        {
            RunByRun.BackwardKeyValue(this, runs!, q, k, v, dO, decay, dFinalState, scale, dk, dv);
            return;
        }
        bool grouped = q.Shape[2] > k.Shape[2];
        AttentionRun run = Cut(AttentionRun.Of(q, k, v), runs, everyState: grouped || dFinalState is not null);
        RequireAttention(run, decay, dFinalState, q, k, v, dO, dk, dv);
        RequireOutput(dO, run, run.Heads, run.ValueWidth);
        RequireOutput(dk, run, run.KeyHeads, run.KeyWidth);
        RequireOutput(dv, run, run.KeyHeads, run.ValueWidth);
        AttentionOperand queries = AttentionOperand.Of(q), outputs = AttentionOperand.Of(dO);
        var pass = new AttentionPass(run, q.DType, AttentionDecay.Of(decay, run), Reverse: true);
        if (RunsOnChannelKernels(pass, DecayKind.PerChannel, q.Pointer, k.Pointer, v.Pointer, dO.Pointer, dk.Pointer, dv.Pointer))
        {
            ChannelBackwardKeyValue(GradientCall.Of(pass, q, k, v, dO, null, dFinalState, scale).Gives(null, dk, dv, null), entering: 0, SegmentsOrNull(run, segments));
            return;
        }
        EdgeStates leaving = Enter(pass, queries, outputs, scale, dFinalState, segments, spare: grouped);
        if (!grouped && RunsOnWarpgroups(pass, leaving.Pointer, queries, AttentionOperand.Of(k), AttentionOperand.Of(v), outputs, AttentionOperand.Of(dk), AttentionOperand.Of(dv)))
        {
            KeyValueOnWarpgroups(pass, q, k, v, dO, scale, leaving.Pointer, dk, dv);
            return;
        }
        Output(pass, AttentionOperand.Of(v), outputs, queries, scale, 1, Walked(), transposed: true, dk, channelsAreValues: true);
        Output(pass, AttentionOperand.Of(k), queries, outputs, scale, 1, Walked(), transposed: false, dv, channelsAreValues: false);

        nint Walked()
        {
            if (!grouped) return leaving.Pointer;
            _device.Copy(leaving.Pointer, leaving.Spare, run.States * run.StateElements * sizeof(float));
            return leaving.Spare;
        }
    }

    public void LinearAttentionBackwardDecay(
        Tensor q, Tensor k, Tensor v, Tensor dO, Tensor decay, Tensor? initialState, Tensor? dFinalState, double scale, Tensor dDecay, Tensor? entering = null, Tensor? leaving = null,
        PackedRuns? runs = null)
    {
        if (runs is not null)
        {
            RunByRun.BackwardDecay(this, runs, q, k, v, dO, decay, initialState, dFinalState, scale, dDecay);
            return;
        }
        AttentionRun run = Cut(AttentionRun.Of(q, k, v));
        RequireAttention(run, decay, initialState, q, k, v, dO);
        RequireAttention(run, dDecay, dFinalState, q);
        RequireOutput(dO, run, run.Heads, run.ValueWidth);
        RequireSame(decay, dDecay);
        var call = new DecayGradientCall(q, k, v, dO, initialState, dFinalState, scale, dDecay, entering, leaving);
        var pass = new AttentionPass(run, q.DType, AttentionDecay.Of(decay, run), Reverse: false);
        if (pass.Decay.Kind == DecayKind.PerHead) HeadDecayGradient(pass, call);
        else if (pass.PaysRoundedStates && RunsOnChannelKernels(pass, pass.Decay.Kind, q.Pointer, k.Pointer, v.Pointer, dO.Pointer, dDecay.Pointer))
            ChannelDecayGradient(
                GradientCall.Of(pass, q, k, v, dO, initialState, dFinalState, scale).Gives(null, null, null, dDecay), SegmentsOrNull(run, entering), SegmentsOrNull(run, leaving));
        else DecayGradient(pass with { Run = run with { SegmentTokens = AttentionRun.Tile, RangeSegments = 0 } }, call with { Entering = null, Leaving = null });
    }

    private readonly record struct DecayGradientCall(
        Tensor Q, Tensor K, Tensor V, Tensor OutputGradient, Tensor? InitialState, Tensor? FinalStateGradient, double Scale, Tensor Result, Tensor? Entering, Tensor? Leaving);

    /// <summary>Per head: a walk along each segment, then a sum.</summary>
    private void HeadDecayGradient(AttentionPass pass, DecayGradientCall call)
    {
        AttentionRun run = pass.Run;
        long units = run.Segments * run.Batches;
        AttentionScratch scratch = Scratch(pass, states: HasExactEdges(call) ? 0 : 2, more: units * run.Heads * run.Tiles * sizeof(double));
        (nint entering, nint leaving) = SegmentEdges(pass, call, scratch);
        const long Shared = 4 * AttentionRun.Tile * TilePitch * sizeof(float);
        Launch(
            HeadDecayFile, "linear_attention_bwd_decay_per_head", pass.Element, Blocks(units * run.Heads * run.Tiles, BlockThreads, Shared),
            call.Q.Pointer, call.K.Pointer, call.V.Pointer, call.OutputGradient.Pointer, pass.Decay.Pointer, entering, leaving, run.Tokens, run.Heads, run.KeyHeads,
            run.KeyWidth, run.ValueWidth, run.Batches, run.SegmentTokens, (float)call.Scale, scratch.Rest);
        Launch(HeadDecayFile, "linear_attention_bwd_decay_per_head_sum", pass.Element, Blocks(run.Heads, WarpThreads), scratch.Rest, units, run.Heads, run.Tiles, call.Result.Pointer);
    }

    /// <summary>Per token and per channel: segments are single sub-chunks, whose states are all held at once.</summary>
    private void DecayGradient(AttentionPass pass, DecayGradientCall call)
    {
        AttentionRun run = pass.Run;
        AttentionScratch scratch = Scratch(pass, states: 2);
        (nint entering, nint leaving) = SegmentEdges(pass, call, scratch);
        const long Shared = 5 * AttentionRun.Tile * TilePitch * sizeof(float);
        Launch(
            DecayFile, "linear_attention_bwd_decay", pass.Element, Blocks(run.Segments * run.Batches * run.Heads, BlockThreads, Shared),
            call.Q.Pointer, call.K.Pointer, call.V.Pointer, call.OutputGradient.Pointer, pass.Decay.Pointer, (int)pass.Decay.Kind, entering, leaving, run.Tokens,
            run.Heads, run.KeyHeads, run.KeyWidth, run.ValueWidth, run.Batches, (float)call.Scale, call.Result.Pointer);
    }

    /// <summary>Whether the caller's segments are as exact as the gradient of a decay needs them: those of bf16 runs come from operands that weights have rounded.</summary>
    private static bool HasExactEdges(DecayGradientCall call) => call is { Entering: not null, Leaving: not null } && call.Q.DType == DType.F32;

    /// <summary>The states that enter the segments, and the gradients of those that leave them: the caller's, or made in the scratch.</summary>
    private (nint Entering, nint Leaving) SegmentEdges(AttentionPass pass, DecayGradientCall call, AttentionScratch scratch)
    {
        if (HasExactEdges(call)) return (SegmentPointer(pass.Run, call.Entering!), SegmentPointer(pass.Run, call.Leaving!));
        AttentionPass backward = pass with { Reverse = true };
        (nint entering, nint leaving) = (scratch.States(0), scratch.States(1));
        SegmentStates(pass, AttentionOperand.Of(call.K), AttentionOperand.Of(call.V), 1, entering, exact: true);
        Scan(pass, entering, scratch.Factors, PointerOrNull(call.InitialState), entering, 0);
        SegmentStates(backward, AttentionOperand.Of(call.Q), AttentionOperand.Of(call.OutputGradient), call.Scale, leaving, exact: true);
        Scan(backward, leaving, scratch.Factors, PointerOrNull(call.FinalStateGradient), leaving, 0);
        return (entering, leaving);
    }
}
