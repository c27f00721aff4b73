using LaspNative.Runtime;

namespace LaspNative.Collectives;

/// <summary>
/// LASP-2 (arXiv 2502.07563, algorithm 2, with the decay and the backward pass that the paper leaves out). Causal.
///   forward    every rank forms M_t; ONE all-gather of M; P_t = fma(A_j, P, M_j) over j = 0..t-1 from the initial state; o = intra + scale exp(G_i) q_i P_t
///   backward   every rank forms dM_t; ONE all-gather of dM; D_t = fma(A_j, D, dM_j) over j = W-1..t+1 from dS_final; dk, dv from D_t; dq from P_t, kept from the forward pass
/// A is known on every rank without a message when the decay is none or per head.
/// Wire: (W-1) S fp32 elements sent per rank and direction, one message, one step. It moves more bytes than a ring (S); its gain is latency.
/// The gather starts in Begin and is waited for in Finish, where intra and inter part are one pass: the caller's work between the two hides it,
/// and in the backward pass dq and whatever the tape runs between the two functions.
/// </summary>
public sealed class Lasp2 : SequenceParallel
{
    public static Lasp2 Default { get; } = new();

    public override string Name => "lasp2";

    public override (long Forward, long Backward) PredictedBytesSent(AttentionCall call)
    {
        ArgumentNullException.ThrowIfNull(call);
        long bytes = (call.Group.Size - 1) * call.StateBytes;
        return (bytes, bytes);
    }

    internal override AttentionExchange Begin(AttentionCall call, Tensor k, Tensor v, Tensor? decay, Tensor? initialState) =>
        call.Group.Size == 1 ? new Serial.Exchange(call, k, v, decay, initialState) : new Exchange(call, k, v, decay, initialState);

    private sealed class Exchange : AttentionExchange
    {
        private readonly Tensor _factors; // [W, H]
        private readonly Tensor _entering; // P_t [B, H, D, E]
        private StateGather? _gather;
        private Tensor? _q;
        private Tensor? _dO;
        private Tensor? _dFinalState;

        public Exchange(AttentionCall call, Tensor k, Tensor v, Tensor? decay, Tensor? initialState) : base(call, k, v, decay, initialState)
        {
            _factors = Hold(call.RankDecays(decay));
            _entering = Hold(call.EmptyState());
            Tensor own = call.EmptyState();
            Backend.LinearAttentionState(k, v, decay, own);
            _gather = new StateGather(call, own);
        }

        private int Rank => Call.Group.Rank;

        private int Size => Call.Group.Size;

        public override void Finish(Tensor q, Tensor o, Tensor? finalState)
        {
            using (StateGather gather = TakeGather())
            {
                Tensor states = gather.Wait();
                Backend.CombineStates(states, _factors, first: 0, count: Rank, step: 1, InitialState, _entering);
                if (finalState is not null) Backend.CombineStates(states, _factors, first: 0, count: Size, step: 1, InitialState, finalState);
            }
            Backend.LinearAttention(q, K, V, Decay, _entering, Call.Scale, o);
        }

        public override void BackwardFinish(Tensor q, Tensor dO, Tensor? dFinalState, Tensor dq, bool continues)
        {
            if (continues)
            {
                (_q, _dO) = (Hold(q.Share()), Hold(dO.Share()));
                if (dFinalState is not null) _dFinalState = Hold(dFinalState.Share());
                Tensor own = Call.EmptyState();
                Backend.LinearAttentionBackwardState(q, dO, Decay, Call.Scale, own);
                _gather = new StateGather(Call, own);
            }
            Backend.LinearAttentionBackwardQuery(K, V, dO, Decay, _entering, Call.Scale, dq);
        }

        public override void BackwardBegin(Tensor dk, Tensor dv, Tensor? dDecay, Tensor? dInitialState)
        {
            using Tensor leaving = Call.EmptyState(); // D_t
            using (StateGather gather = TakeGather())
            {
                Tensor states = gather.Wait();
                Backend.CombineStates(states, _factors, first: Size - 1, count: Size - 1 - Rank, step: -1, _dFinalState, leaving);
                WriteInitialStateGradient(states, dInitialState);
            }
            Backend.LinearAttentionBackwardKeyValue(_q!, K, V, _dO!, Decay, leaving, Call.Scale, dk, dv);
            if (dDecay is not null) Backend.LinearAttentionBackwardDecay(_q!, K, V, _dO!, Decay!, _entering, leaving, Call.Scale, dDecay);
        }

        /// <summary>The initial state enters at rank 0, which alone gives its gradient; the others' parts are zero.</summary>
        private void WriteInitialStateGradient(Tensor states, Tensor? dInitialState)
        {
            if (dInitialState is null) return;
            if (Rank == 0) Backend.CombineStates(states, _factors, first: Size - 1, count: Size, step: -1, _dFinalState, dInitialState);
            else Backend.Fill(0, dInitialState);
        }

        private StateGather TakeGather()
        {
            StateGather gather = _gather ?? throw new InvalidOperationException("this phase of the exchange has no message to wait for");
            _gather = null;
            return gather;
        }

        protected override void Abandon()
        {
            _gather?.Dispose();
            _gather = null;
        }
    }

    /// <summary>An all-gather of one state per rank, in flight; owns both ends' buffers.</summary>
    private sealed class StateGather : IDisposable
    {
        private readonly Tensor _own; // [B, H, D, E]
        private readonly Tensor _all; // [W, B, H, D, E]
        private CommunicationWork? _work;

        public StateGather(AttentionCall call, Tensor own)
        {
            _own = own;
            _all = Tensor.Empty([call.Group.Size, .. call.StateShape], own.DType, call.Device, MemoryCategory.Communication);
            _work = call.Group.AllGather(own, _all);
        }

        /// <summary>Every rank's state, in rank order.</summary>
        public Tensor Wait()
        {
            _work?.Wait();
            _work = null;
            return _all;
        }

        public void Dispose()
        {
            Wait();
            _own.Dispose();
            _all.Dispose();
        }
    }
}
