using LaspNative.Runtime;

namespace LaspNative.Collectives;

/// <summary>
/// One rank holds the whole sequence: the definition that every strategy must reproduce.
///   o = scale q_i S_i from S_0 = initial state        final state = A S_0 + M
///   dq from the states, dk and dv from D with D_N = dS_final        dS_0 = A dS_final + dM
/// No message.
/// </summary>
public sealed class Serial : SequenceParallel
{
    public static Serial Default { get; } = new();

    public override string Name => "serial";

    public override (long Forward, long Backward) PredictedBytesSent(AttentionCall call) => (0, 0);

    internal override AttentionExchange Begin(AttentionCall call, Tensor k, Tensor v, Tensor? decay, Tensor? initialState)
    {
        if (call.Group.Size != 1) throw new LaspException($"strategy serial runs on one rank, the group has {call.Group.Size}; use lasp2");
        return new Exchange(call, k, v, decay, initialState);
    }

    /// <summary>Also what the other strategies are in a group of one.</summary>
    internal sealed class Exchange(AttentionCall call, Tensor k, Tensor v, Tensor? decay, Tensor? initialState)
        : AttentionExchange(call, k, v, decay, initialState)
    {
        private Tensor? _q;
        private Tensor? _dO;
        private Tensor? _dFinalState;

        public override void Finish(Tensor q, Tensor o, Tensor? finalState)
        {
            Backend.LinearAttention(q, K, V, Decay, InitialState, Call.Scale, o);
            if (finalState is null) return;
            using Tensor own = Call.EmptyState();
            Backend.LinearAttentionState(K, V, Decay, own);
            Propagate(own, InitialState, finalState);
        }

        public override void BackwardFinish(Tensor q, Tensor dO, Tensor? dFinalState, Tensor dq, bool continues)
        {
            (_q, _dO) = (Hold(q.Share()), Hold(dO.Share()));
            if (dFinalState is not null) _dFinalState = Hold(dFinalState.Share());
            Backend.LinearAttentionBackwardQuery(K, V, dO, Decay, InitialState, Call.Scale, dq);
        }

        public override void BackwardBegin(Tensor dk, Tensor dv, Tensor? dDecay, Tensor? dInitialState)
        {
            Backend.LinearAttentionBackwardKeyValue(_q!, K, V, _dO!, Decay, _dFinalState, Call.Scale, dk, dv);
            if (dDecay is not null) Backend.LinearAttentionBackwardDecay(_q!, K, V, _dO!, Decay!, InitialState, _dFinalState, Call.Scale, dDecay);
            if (dInitialState is null) return;
            using Tensor own = Call.EmptyState();
            Backend.LinearAttentionBackwardState(_q!, _dO!, Decay, Call.Scale, own);
            Propagate(own, _dFinalState, dInitialState);
        }

        /// <summary>destination = A state + own.</summary>
        private void Propagate(Tensor own, Tensor? state, Tensor destination)
        {
            using Tensor factors = Call.RankDecays(Decay);
            using Tensor states = own.View([1, .. Call.StateShape]);
            Backend.CombineStates(states, factors, first: 0, count: 1, step: 1, state, destination);
        }
    }
}
