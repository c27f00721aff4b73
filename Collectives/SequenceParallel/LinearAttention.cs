using LaspNative.Autograd;
using LaspNative.Runtime;

namespace LaspNative.Collectives;

/// <summary>Output of a linear-attention call that also wants the states after the last tokens.</summary>
/// <param name="Output">[B, C, H, E].</param>
/// <param name="FinalState">
/// [B or n documents, H, D, E] of fp32 (fp64): the states of the documents whose last token this rank holds, zeros for the others, so that the sum over the ranks is the whole.
/// Its gradient counts in the same places.
/// </param>
public readonly record struct LinearAttentionResult(Variable Output, Variable FinalState);

/// <summary>
/// Causal linear attention over a sequence whose chunks lie on the ranks of a group:
///   S_i = exp(g) S_{i-1} + k_i^T v_i        o_i = scale * q_i S_i
/// q [B, C, H, D], k [B, C, Hk, D], v [B, C, Hk, E] are this rank's chunk; decay is its log decay g in fp32 (fp64): per head [H], per token [B, C, H], per key channel [B, C, H, D], or null.
/// Every rank of the group calls with its own chunk. Two tape functions, so that work between them hides the messages in both directions:
/// Begin's backward runs after Finish's, with whatever was recorded between the two in the middle.
/// Gradients of decay and initial state are this rank's part: their sum over the ranks is the gradient.
/// A shape or type that does not fit, and a call that the strategy cannot take, throw <see cref="LaspException"/>, which names the tensor and what it should be. Begin checks k, v, decay and initial state before
/// it sends, Finish checks q; a rank that throws ends the others of its <see cref="World"/>.
/// </summary>
public static class LinearAttention
{
    /// <summary>Begin and Finish in one call: nothing hides the message. Returns o [B, C, H, E].</summary>
    public static Variable Apply(Variable q, Variable k, Variable v, Variable? decay, ICommunicator group, SequenceParallel strategy, AttentionOptions? options = null)
    {
        ArgumentNullException.ThrowIfNull(q);
        return Finish(q, Begin(k, v, decay, group, strategy, WithHeads(options, q)));
    }

    /// <summary>As <see cref="Apply"/>, from initial states [B or n documents, H, D, E] (null: zero; read by the rank that holds a document's first token) and with the final states.</summary>
    public static LinearAttentionResult ApplyWithState(Variable q, Variable k, Variable v, Variable? decay, Variable? initialState, ICommunicator group, SequenceParallel strategy, AttentionOptions? options = null)
    {
        ArgumentNullException.ThrowIfNull(q);
        Variable[] outputs = Finish(q, Begin(k, v, decay, group, strategy, WithHeads(options, q), initialState), withFinalState: true);
        return new LinearAttentionResult(outputs[0], outputs[1]);
    }

    /// <summary>Forms this rank's state from k and v and starts its message.</summary>
    public static PendingAttention Begin(Variable k, Variable v, Variable? decay, ICommunicator group, SequenceParallel strategy, AttentionOptions? options = null, Variable? initialState = null)
    {
        ArgumentNullException.ThrowIfNull(k);
        ArgumentNullException.ThrowIfNull(v);
        ArgumentNullException.ThrowIfNull(group);
        ArgumentNullException.ThrowIfNull(strategy);
        var call = new AttentionCall(k.Value, v.Value, decay?.Value, initialState?.Value, group, options ?? AttentionOptions.Default);
        AttentionExchange exchange = Begin(strategy, call, SavedValue.Of(k), SavedValue.Of(v), decay?.Value, initialState?.Value);
        exchange.LearnsDecay = decay is { RequiresGradient: true, Shape.Rank: > 1 };
        exchange.Retain();
        Variable token = new BeginFunction(exchange).Record(k, v, decay, initialState);
        return new PendingAttention(exchange, token);
    }

    /// <summary>A strategy that refuses the call takes nothing over.</summary>
    private static AttentionExchange Begin(SequenceParallel strategy, AttentionCall call, SavedValue k, SavedValue v, Tensor? decay, Tensor? initialState)
    {
        try
        {
            return strategy.Begin(call, k, v, decay, initialState);
        }
        catch
        {
            k.Dispose();
            v.Dispose();
            throw;
        }
    }

    /// <summary>Waits for the message and computes o [B, C, H, E]. Uses up <paramref name="pending"/>.</summary>
    public static Variable Finish(Variable q, PendingAttention pending) => Finish(q, pending, withFinalState: false)[0];

    private static Variable[] Finish(Variable q, PendingAttention pending, bool withFinalState)
    {
        ArgumentNullException.ThrowIfNull(q);
        ArgumentNullException.ThrowIfNull(pending);
        using (pending)
        {
            AttentionExchange exchange = pending.Take();
            AttentionCall call = exchange.Call;
            call.CheckQuery(q.Value);
            Tensor o = Tensor.Empty(call.OutputShape, call.DType, call.Device);
            Tensor? finalState = withFinalState ? Tensor.Empty(call.DocumentStateShape, call.DType.Accumulator(), call.Device, MemoryCategory.States) : null;
            exchange.Finish(q.Value, o, finalState);
            exchange.Rest();
            exchange.Retain();
            return new FinishFunction(exchange, q).Record(q, pending.Token, o, finalState);
        }
    }

    private static AttentionOptions WithHeads(AttentionOptions? options, Variable q) =>
        (options ?? AttentionOptions.Default) with { QueryHeads = q.Shape.Rank == 4 ? (int)q.Shape[2] : throw new LaspException($"q has shape {q.Shape}; it is [B, N, H, D]") };

    /// <summary>Backward: dk, dv and the parts of dDecay and dInitialState, once the state gradients have arrived.</summary>
    private sealed class BeginFunction(AttentionExchange exchange) : Function
    {
        public Variable Record(Variable k, Variable v, Variable? decay, Variable? initialState) => RecordToken([k, v, decay, initialState]);

        protected override void Backward(BackwardPass pass)
        {
            (Tensor dk, Tensor dv, Tensor? dDecay) = exchange.Made is { } made
                ? (made.Key.Share(), made.Value.Share(), made.Decay.Share()) : (pass.Empty(0), pass.Empty(1), pass.Wants(2) ? pass.Empty(2) : null);
            Tensor? dInitialState = pass.Wants(3) ? pass.Empty(3) : null;
            exchange.BackwardBegin(dk, dv, dDecay, dInitialState);
            pass.Give(0, dk);
            pass.Give(1, dv);
            if (dDecay is not null) pass.Give(2, dDecay);
            if (dInitialState is not null) pass.Give(3, dInitialState);
        }

        protected override void Release()
        {
            base.Release();
            exchange.Release();
        }
    }

    /// <summary>Backward: this rank's state gradient and the start of its message, then dq.</summary>
    private sealed class FinishFunction : Function
    {
        private readonly AttentionExchange _exchange;
        private readonly SavedValue _q;

        public FinishFunction(AttentionExchange exchange, Variable q)
        {
            _exchange = exchange;
            _q = Save(q);
        }

        public Variable[] Record(Variable q, Variable token, Tensor o, Tensor? finalState) =>
            Record([q, token], finalState is null ? [o] : [o, finalState]);

        protected override void Backward(BackwardPass pass)
        {
            Tensor? dFinalState = pass.OutputCount > 1 ? pass.Output(1) : null;
            using Tensor dO = pass.Output(0)?.Share() ?? Tensor.Zeros(_exchange.Call.OutputShape, _exchange.Call.DType, _exchange.Call.Device);
            Tensor dq = pass.Empty(0);
            bool continues = pass.Wants(1);
            _exchange.BackwardFinish(_q.Tensor, dO, dFinalState, dq, continues);
            pass.Give(0, dq);
            if (continues) pass.Reach(1);
        }

        protected override void Release()
        {
            base.Release();
            _exchange.Release();
        }
    }
}

/// <summary>A linear-attention call between Begin and Finish.</summary>
public sealed class PendingAttention : PendingCall
{
    internal PendingAttention(AttentionExchange exchange, Variable token) : base(exchange, token) { }

    internal AttentionExchange Take() => (AttentionExchange)TakeCall();
}
