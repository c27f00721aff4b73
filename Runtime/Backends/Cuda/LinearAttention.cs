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
    }

    /// <summary>What all passes of one call share. <paramref name="Reverse"/>: the recursion of the gradients, from the last token to the first.</summary>
    private readonly record struct AttentionPass(AttentionRun Run, DType Element, nint Decay, bool Reverse)
    {
        public int Direction => Reverse ? 1 : 0;
    }

    public void LinearAttentionState(Tensor k, Tensor v, Tensor? decay, Tensor state)
    {
        AttentionRun run = AttentionRun.OfState(k, v, state);
        RequireAttention(run, decay, state, k, v);
        var pass = new AttentionPass(run, k.DType, PointerOrNull(decay), Reverse: false);
        RunState(pass, AttentionOperand.Of(k), AttentionOperand.Of(v), 1, state);
    }

    public void LinearAttention(Tensor q, Tensor k, Tensor v, Tensor? decay, Tensor? initialState, double scale, Tensor o)
    {
        AttentionRun run = AttentionRun.Of(q, k, v);
        RequireAttention(run, decay, initialState, q, k, v, o);
        RequireOutput(o, run, run.Heads, run.ValueWidth);
        var pass = new AttentionPass(run, q.DType, PointerOrNull(decay), Reverse: false);
        (nint states, nint entering) = EnteringStates(pass, AttentionOperand.Of(k), AttentionOperand.Of(v), 1);
        Enter(pass, states, initialState, transpose: false, entering, 0);
        Output(pass, AttentionOperand.Of(q), AttentionOperand.Of(k), AttentionOperand.Of(v), 1, scale, entering, o);
    }

    /// <summary>The state that the whole run leaves, entered with zero.</summary>
    private void RunState(AttentionPass pass, AttentionOperand k, AttentionOperand v, double scale, Tensor state)
    {
        nint states = _device.Workspace(pass.Run.Segments * pass.Run.StateElements * sizeof(float));
        SegmentStates(pass, k, v, scale, states);
        Enter(pass, states, null, transpose: false, 0, state.Pointer);
    }

    /// <summary>
    /// Scratch for the states that the segments leave, filled, and for those that enter them, not filled yet. One segment needs no state of its own:
    /// the pointer is null then.
    /// </summary>
    private (nint States, nint Entering) EnteringStates(AttentionPass pass, AttentionOperand k, AttentionOperand v, double scale)
    {
        long bytes = RoundUp(pass.Run.Segments * pass.Run.StateElements * sizeof(float), 256);
        nint scratch = _device.Workspace(2 * bytes);
        if (pass.Run.Segments <= 1) return (0, scratch);
        SegmentStates(pass, k, v, scale, scratch);
        return (scratch, scratch + (nint)bytes);
    }

    /// <summary>states [segments, B, H, D, E]: what each segment leaves, entered with zero.</summary>
    private void SegmentStates(AttentionPass pass, AttentionOperand k, AttentionOperand v, double scale, nint states)
    {
        AttentionRun run = pass.Run;
        Launch(
            StateFile, "linear_attention_state", pass.Element, Blocks(run.Segments * run.Batches * run.Heads * run.Tiles, BlockThreads),
            k.Pointer, v.Pointer, pass.Decay, run.Tokens, run.Heads, k.Heads, k.Width, v.Width, run.Batches, run.SegmentTokens,
            pass.Direction, (float)scale, states);
    }

    /// <summary>entering [segments, B, H, D, E], or [.., E, D] transposed, from the segments' states and the state that enters the run; also the state that leaves it.</summary>
    private void Enter(AttentionPass pass, nint states, Tensor? initial, bool transpose, nint entering, nint final)
    {
        AttentionRun run = pass.Run;
        Launch(
            StateFile, "linear_attention_enter", pass.Element, LaunchShape.For(run.StateElements, BlockThreads),
            states, pass.Decay, PointerOrNull(initial), run.Tokens, run.Batches, run.Heads, run.KeyWidth, run.ValueWidth, run.Segments,
            run.SegmentTokens, pass.Direction, transpose ? 1 : 0, entering, final);
    }

    /// <summary>The walk of linear_attention_output: <paramref name="entering"/> is overwritten.</summary>
    private void Output(AttentionPass pass, AttentionOperand q, AttentionOperand k, AttentionOperand v, double keyScale, double outputScale, nint entering, Tensor output)
    {
        AttentionRun run = pass.Run;
        long sharedBytes = ((3 * AttentionRun.Tile) + RoundUp(q.Width, AttentionRun.Tile)) * TilePitch * sizeof(float);
        Launch(
            OutputFile, "linear_attention_output", pass.Element,
            Blocks(run.Segments * run.Batches * q.Heads * AttentionRun.Slices(v.Width), BlockThreads, sharedBytes),
            q.Pointer, k.Pointer, v.Pointer, pass.Decay, run.Tokens, q.Heads, k.Heads, q.Width, v.Width, run.Batches,
            run.SegmentTokens, pass.Direction, (float)keyScale, (float)outputScale, entering, output.Pointer);
    }

    private static void RequireAttention(AttentionRun run, Tensor? decay, Tensor? state, params ReadOnlySpan<Tensor> operands)
    {
        RequireElement(operands[0]);
        foreach (Tensor operand in operands) RequireType(operand, operands[0].DType);
        if (decay is not null)
        {
            RequireType(decay, DType.F32);
            if (decay.Count != run.Heads) throw new LaspException($"a decay of shape {decay.Shape} does not fit {run.Heads} heads");
        }
        if (state is null) return;
        RequireType(state, DType.F32);
        if (state.Count != run.StateElements)
            throw new LaspException($"a state of shape {state.Shape} is not [{run.Batches}, {run.Heads}, {run.KeyWidth}, {run.ValueWidth}]");
    }

    private static void RequireOutput(Tensor output, AttentionRun run, long heads, long width)
    {
        if (output.Shape != [run.Batches, run.Tokens, heads, width])
            throw new LaspException($"a tensor of shape {output.Shape} is not [{run.Batches}, {run.Tokens}, {heads}, {width}]");
    }
}
