namespace LaspNative.Runtime.Cuda;

/// <summary>
/// Gradients of linear attention. dq reads the forward states transposed; dk and dv walk the reverse recursion, whose states are the gradients D; the decay's
/// gradient needs both kinds of states: at the edges of its segments (linear_attention_decay_per_head.cu) or of every sub-chunk (linear_attention_decay.cu).
/// </summary>
internal sealed partial class CudaBackend
{
    private const string DecayFile = "linear_attention_decay";
    private const string HeadDecayFile = "linear_attention_decay_per_head";

    public void LinearAttentionBackwardState(Tensor q, Tensor dO, Tensor? decay, double scale, Tensor dState)
    {
        AttentionRun run = AttentionRun.OfState(q, dO, dState);
        RequireAttention(run, decay, dState, q, dO);
        var pass = new AttentionPass(run, q.DType, AttentionDecay.Of(decay, run), Reverse: true);
        RunState(pass, AttentionOperand.Of(q), AttentionOperand.Of(dO), scale, dState);
    }

    public void LinearAttentionBackwardQuery(Tensor k, Tensor v, Tensor dO, Tensor? decay, Tensor? initialState, double scale, Tensor dq)
    {
        AttentionRun run = AttentionRun.Of(dq, k, v);
        RequireAttention(run, decay, initialState, k, v, dO, dq);
        RequireOutput(dO, run, run.Heads, run.ValueWidth);
        var pass = new AttentionPass(run, k.DType, AttentionDecay.Of(decay, run), Reverse: false);
        (AttentionScratch scratch, nint states) = WalkScratch(pass, AttentionOperand.Of(k), AttentionOperand.Of(v), 1);
        Enter(pass, states, scratch.Factors, initialState, transpose: true, scratch.States(0), 0);
        Output(pass, AttentionOperand.Of(dO), AttentionOperand.Of(v), AttentionOperand.Of(k), 1, scale, scratch.States(0), dq, channelsAreValues: true);
    }

    public void LinearAttentionBackwardKeyValue(Tensor q, Tensor k, Tensor v, Tensor dO, Tensor? decay, Tensor? dFinalState, double scale, Tensor dk, Tensor dv)
    {
        AttentionRun run = AttentionRun.Of(q, k, v);
        RequireAttention(run, decay, dFinalState, q, k, v, dO, dk, dv);
        RequireOutput(dO, run, run.Heads, run.ValueWidth);
        RequireOutput(dk, run, run.KeyHeads, run.KeyWidth);
        RequireOutput(dv, run, run.KeyHeads, run.ValueWidth);
        AttentionOperand queries = AttentionOperand.Of(q), outputs = AttentionOperand.Of(dO);
        var pass = new AttentionPass(run, q.DType, AttentionDecay.Of(decay, run), Reverse: true);
        (AttentionScratch scratch, nint states) = WalkScratch(pass, queries, outputs, scale);
        Enter(pass, states, scratch.Factors, dFinalState, transpose: true, scratch.States(0), 0);
        Output(pass, AttentionOperand.Of(v), outputs, queries, scale, 1, scratch.States(0), dk, channelsAreValues: true);
        Enter(pass, states, scratch.Factors, dFinalState, transpose: false, scratch.States(0), 0);
        Output(pass, AttentionOperand.Of(k), queries, outputs, scale, 1, scratch.States(0), dv, channelsAreValues: false);
    }

    public void LinearAttentionBackwardDecay(
        Tensor q, Tensor k, Tensor v, Tensor dO, Tensor decay, Tensor? initialState, Tensor? dFinalState, double scale, Tensor dDecay)
    {
        AttentionRun run = AttentionRun.Of(q, k, v);
        RequireAttention(run, decay, initialState, q, k, v, dO);
        RequireAttention(run, dDecay, dFinalState, q);
        RequireOutput(dO, run, run.Heads, run.ValueWidth);
        RequireSame(decay, dDecay);
        var call = new DecayGradientCall(q, k, v, dO, initialState, dFinalState, scale, dDecay);
        var pass = new AttentionPass(run, q.DType, AttentionDecay.Of(decay, run), Reverse: false);
        if (pass.Decay.Kind == DecayKind.PerHead) HeadDecayGradient(pass, call);
        else DecayGradient(pass with { Run = run with { SegmentTokens = AttentionRun.Tile } }, call);
    }

    private readonly record struct DecayGradientCall(Tensor Q, Tensor K, Tensor V, Tensor OutputGradient, Tensor? InitialState, Tensor? FinalStateGradient, double Scale, Tensor Result);

    /// <summary>Per head: a walk along each segment, then a sum.</summary>
    private void HeadDecayGradient(AttentionPass pass, DecayGradientCall call)
    {
        AttentionRun run = pass.Run;
        long units = run.Segments * run.Batches;
        AttentionScratch scratch = Scratch(pass, states: 2, more: units * run.Heads * run.Tiles * sizeof(double));
        SegmentEdges(pass, call, scratch);
        const long Shared = 4 * AttentionRun.Tile * TilePitch * sizeof(float);
        Launch(
            HeadDecayFile, "linear_attention_bwd_decay_per_head", pass.Element, Blocks(units * run.Heads * run.Tiles, BlockThreads, Shared),
            call.Q.Pointer, call.K.Pointer, call.V.Pointer, call.OutputGradient.Pointer, pass.Decay.Pointer, scratch.States(0), scratch.States(1), run.Tokens, run.Heads, run.KeyHeads,
            run.KeyWidth, run.ValueWidth, run.Batches, run.SegmentTokens, (float)call.Scale, scratch.Rest);
        Launch(HeadDecayFile, "linear_attention_bwd_decay_per_head_sum", pass.Element, Blocks(run.Heads, WarpThreads), scratch.Rest, units, run.Heads, run.Tiles, call.Result.Pointer);
    }

    /// <summary>Per token and per channel: segments are single sub-chunks, whose states are all held at once.</summary>
    private void DecayGradient(AttentionPass pass, DecayGradientCall call)
    {
        AttentionRun run = pass.Run;
        AttentionScratch scratch = Scratch(pass, states: 2);
        SegmentEdges(pass, call, scratch);
        const long Shared = 5 * AttentionRun.Tile * TilePitch * sizeof(float);
        Launch(
            DecayFile, "linear_attention_bwd_decay", pass.Element, Blocks(run.Segments * run.Batches * run.Heads, BlockThreads, Shared),
            call.Q.Pointer, call.K.Pointer, call.V.Pointer, call.OutputGradient.Pointer, pass.Decay.Pointer, (int)pass.Decay.Kind, scratch.States(0), scratch.States(1), run.Tokens,
            run.Heads, run.KeyHeads, run.KeyWidth, run.ValueWidth, run.Batches, (float)call.Scale, call.Result.Pointer);
    }

    /// <summary>Fills states 0 with those that enter the segments, and 1 with the gradients of those that leave them.</summary>
    private void SegmentEdges(AttentionPass pass, DecayGradientCall call, AttentionScratch scratch)
    {
        AttentionPass backward = pass with { Reverse = true };
        (nint entering, nint leaving) = (scratch.States(0), scratch.States(1));
        SegmentStates(pass, AttentionOperand.Of(call.K), AttentionOperand.Of(call.V), 1, entering);
        Enter(pass, entering, scratch.Factors, call.InitialState, transpose: false, entering, 0);
        SegmentStates(backward, AttentionOperand.Of(call.Q), AttentionOperand.Of(call.OutputGradient), call.Scale, leaving);
        Enter(backward, leaving, scratch.Factors, call.FinalStateGradient, transpose: false, leaving, 0);
    }
}
