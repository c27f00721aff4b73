namespace LaspNative.Runtime.Cuda;

/// <summary>
/// Gradients of linear attention. dq reads the forward states transposed; dk and dv walk the reverse recursion, whose states are the gradients D; the decay's
/// gradient needs both kinds of states at the edges of its segments (linear_attention_decay.cu).
/// </summary>
internal sealed partial class CudaBackend
{
    private const string DecayFile = "linear_attention_decay";

    public void LinearAttentionBackwardState(Tensor q, Tensor dO, Tensor? decay, double scale, Tensor dState)
    {
        AttentionRun run = AttentionRun.OfState(q, dO, dState);
        RequireAttention(run, decay, dState, q, dO);
        var pass = new AttentionPass(run, q.DType, PointerOrNull(decay), Reverse: true);
        RunState(pass, AttentionOperand.Of(q), AttentionOperand.Of(dO), scale, dState);
    }

    public void LinearAttentionBackwardQuery(Tensor k, Tensor v, Tensor dO, Tensor? decay, Tensor? initialState, double scale, Tensor dq)
    {
        AttentionRun run = AttentionRun.Of(dq, k, v);
        RequireAttention(run, decay, initialState, k, v, dO, dq);
        RequireOutput(dO, run, run.Heads, run.ValueWidth);
        var pass = new AttentionPass(run, k.DType, PointerOrNull(decay), Reverse: false);
        (nint states, nint entering) = EnteringStates(pass, AttentionOperand.Of(k), AttentionOperand.Of(v), 1);
        Enter(pass, states, initialState, transpose: true, entering, 0);
        Output(pass, AttentionOperand.Of(dO), AttentionOperand.Of(v), AttentionOperand.Of(k), 1, scale, entering, dq);
    }

    public void LinearAttentionBackwardKeyValue(Tensor q, Tensor k, Tensor v, Tensor dO, Tensor? decay, Tensor? dFinalState, double scale, Tensor dk, Tensor dv)
    {
        AttentionRun run = AttentionRun.Of(q, k, v);
        RequireAttention(run, decay, dFinalState, q, k, v, dO, dk, dv);
        RequireOutput(dO, run, run.Heads, run.ValueWidth);
        RequireOutput(dk, run, run.KeyHeads, run.KeyWidth);
        RequireOutput(dv, run, run.KeyHeads, run.ValueWidth);
        AttentionOperand queries = AttentionOperand.Of(q), outputs = AttentionOperand.Of(dO);
        var pass = new AttentionPass(run, q.DType, PointerOrNull(decay), Reverse: true);
        (nint states, nint entering) = EnteringStates(pass, queries, outputs, scale);
        Enter(pass, states, dFinalState, transpose: true, entering, 0);
        Output(pass, AttentionOperand.Of(v), outputs, queries, scale, 1, entering, dk);
        Enter(pass, states, dFinalState, transpose: false, entering, 0);
        Output(pass, AttentionOperand.Of(k), queries, outputs, scale, 1, entering, dv);
    }

    public void LinearAttentionBackwardDecay(
        Tensor q, Tensor k, Tensor v, Tensor dO, Tensor decay, Tensor? initialState, Tensor? dFinalState, double scale, Tensor dDecay)
    {
        AttentionRun run = AttentionRun.Of(q, k, v);
        RequireAttention(run, decay, initialState, q, k, v, dO);
        RequireAttention(run, dDecay, dFinalState, q);
        RequireOutput(dO, run, run.Heads, run.ValueWidth);
        long stateBytes = RoundUp(run.Segments * run.StateElements * sizeof(float), 256);
        long units = run.Segments * run.Batches;
        nint states = _device.Workspace((3 * stateBytes) + (units * run.Heads * run.Tiles * sizeof(double)));
        nint entering = states + (nint)stateBytes, leaving = entering + (nint)stateBytes, partials = leaving + (nint)stateBytes;
        var forward = new AttentionPass(run, q.DType, decay.Pointer, Reverse: false);
        AttentionPass backward = forward with { Reverse = true };
        SegmentStates(forward, AttentionOperand.Of(k), AttentionOperand.Of(v), 1, states);
        Enter(forward, states, initialState, transpose: false, entering, 0);
        SegmentStates(backward, AttentionOperand.Of(q), AttentionOperand.Of(dO), scale, states);
        Enter(backward, states, dFinalState, transpose: false, leaving, 0);

        const long Shared = 4 * AttentionRun.Tile * TilePitch * sizeof(float);
        Launch(
            DecayFile, "linear_attention_bwd_decay", q.DType, Blocks(units * run.Heads * run.Tiles, BlockThreads, Shared),
            q.Pointer, k.Pointer, v.Pointer, dO.Pointer, decay.Pointer, entering, leaving, run.Tokens, run.Heads, run.KeyHeads,
            run.KeyWidth, run.ValueWidth, run.Batches, run.SegmentTokens, (float)scale, partials);
        Launch(DecayFile, "linear_attention_bwd_decay_sum", q.DType, Blocks(run.Heads, WarpThreads), partials, units, run.Heads, run.Tiles, dDecay.Pointer);
    }
}
