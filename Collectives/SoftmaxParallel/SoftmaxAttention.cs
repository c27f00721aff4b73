using LaspNative.Autograd;
using LaspNative.Runtime;

namespace LaspNative.Collectives;

/// <summary>
/// Softmax attention over a sequence whose chunks lie on the ranks of a group:
///   o_i = sum_j softmax_j(scale q_i.k_j) v_j        over the keys that token i sees: up to itself (causal) or all, of its own document
/// q [B, C, H, D], k [B, C, Hk, D], v [B, C, Hk, E] are this rank's chunk, rotary embedding already applied. Every rank of the group calls with its own chunk.
/// Two tape functions, so that work between them hides the messages in both directions: Begin's backward runs after Finish's, with whatever was recorded between the two in the middle.
/// </summary>
public static class SoftmaxAttention
{
    /// <summary>Begin and Finish in one call: nothing hides the message. Returns o [B, C, H, E].</summary>
    public static Variable Apply(Variable q, Variable k, Variable v, ICommunicator group, SoftmaxParallel strategy, AttentionOptions? options = null)
    {
        ArgumentNullException.ThrowIfNull(q);
        if (q.Shape.Rank != 4) throw new LaspException($"q has shape {q.Shape}; it is [B, N, H, D]");
        return Finish(q, Begin(k, v, group, strategy, (options ?? AttentionOptions.Default) with { QueryHeads = (int)q.Shape[2] }));
    }

    /// <summary>Starts the message of keys and values. <see cref="AttentionOptions.QueryHeads"/> must be set where H is not Hk.</summary>
    public static PendingSoftmaxAttention Begin(Variable k, Variable v, ICommunicator group, SoftmaxParallel strategy, AttentionOptions? options = null)
    {
        ArgumentNullException.ThrowIfNull(k);
        ArgumentNullException.ThrowIfNull(v);
        ArgumentNullException.ThrowIfNull(group);
        ArgumentNullException.ThrowIfNull(strategy);
        var call = new SoftmaxCall(k.Value, v.Value, group, options ?? AttentionOptions.Default);
        SoftmaxExchange exchange = strategy.Begin(call, k.Value, v.Value);
        exchange.Retain();
        Variable token = new BeginFunction(exchange).Record(k, v);
        return new PendingSoftmaxAttention(exchange, token);
    }

    /// <summary>Waits for the message and computes o [B, C, H, E]. Uses up <paramref name="pending"/>.</summary>
    public static Variable Finish(Variable q, PendingSoftmaxAttention pending)
    {
        ArgumentNullException.ThrowIfNull(q);
        ArgumentNullException.ThrowIfNull(pending);
        using (pending)
        {
            SoftmaxExchange exchange = pending.Take();
            exchange.Call.CheckQuery(q.Value);
            Tensor o = exchange.Finish(q.Value);
            exchange.Retain();
            return new FinishFunction(exchange).Record(q, pending.Token, o);
        }
    }

    /// <summary>Backward: dk and dv, once they have arrived.</summary>
    private sealed class BeginFunction(SoftmaxExchange exchange) : Function
    {
        public Variable Record(Variable k, Variable v) => RecordToken([k, v]);

        protected override void Backward(BackwardPass pass)
        {
            (Tensor dk, Tensor dv) = exchange.BackwardBegin();
            pass.Give(0, dk);
            pass.Give(1, dv);
        }

        protected override void Release()
        {
            base.Release();
            exchange.Release();
        }
    }

    /// <summary>Backward: dq, and this rank's parts of dk and dv on their way.</summary>
    private sealed class FinishFunction(SoftmaxExchange exchange) : Function
    {
        public Variable Record(Variable q, Variable token, Tensor o) => Record([q, token], o);

        protected override void Backward(BackwardPass pass)
        {
            bool continues = pass.Wants(1);
            pass.Give(0, exchange.BackwardFinish(pass.RequiredOutput(0), continues));
            if (continues) pass.Reach(1);
        }

        protected override void Release()
        {
            base.Release();
            exchange.Release();
        }
    }
}

/// <summary>A softmax-attention call between Begin and Finish.</summary>
public sealed class PendingSoftmaxAttention : PendingCall
{
    internal PendingSoftmaxAttention(SoftmaxExchange exchange, Variable token) : base(exchange, token) { }

    internal SoftmaxExchange Take() => (SoftmaxExchange)TakeCall();
}
