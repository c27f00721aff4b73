using LaspNative.Autograd;
using LaspNative.Runtime;

namespace LaspNative.Collectives;

/// <summary>
/// One rank holds the whole sequence: the definition that every strategy must reproduce.
///   o = scale q_i S_i from S_0 = initial state        final state = A S_0 + M
///   dq from the states, dk and dv from D with D_N = dS_final        dS_0 = A dS_final + dM        per document
/// No message.
/// </summary>
public sealed class Serial : SequenceParallel
{
    public static Serial Default { get; } = new();

    public override string Name => "serial";

    public override (long Forward, long Backward) PredictedBytesSent(AttentionCall call, Tensor? decay) => (0, 0);

    internal override AttentionExchange Begin(AttentionCall call, SavedValue k, SavedValue v, Tensor? decay, Tensor? initialState)
    {
        if (call.Group.Size != 1) throw new LaspException($"strategy serial runs on one rank, the group has {call.Group.Size}; use lasp2");
        return call.Causal ? new Exchange(call, k, v, decay, initialState) : new BidirectionalExchange(call, k, v);
    }

    /// <summary>Also what the other strategies are in a group of one.</summary>
    internal sealed class Exchange(AttentionCall call, SavedValue k, SavedValue v, Tensor? decay, Tensor? initialState)
        : AttentionExchange(call, k, v, decay, initialState)
    {
        private Tensor? _q;
        private Tensor? _dO;
        private Tensor? _dFinalState;

        public override void Finish(Tensor q, Tensor o, Tensor? finalState) => Runs.Forward(q, entering: null, o, finalState);

        public override void BackwardFinish(Tensor q, Tensor dO, Tensor? dFinalState, Tensor dq, bool continues)
        {
            (_q, _dO) = (Hold(q.Share()), Hold(dO.Share()));
            if (dFinalState is not null) _dFinalState = Hold(dFinalState.Share());
            if (!continues || Decay is not { Shape.Rank: 4 } decay || !LearnsDecay)
            {
                Runs.BackwardQuery(continues && LearnsDecay ? q : null, dO, entering: null, dq);
                return;
            }
            Made = Hold(new KeySideGradients(Like(K), Like(V), Like(decay)));
            Runs.BackwardTogether(q, dO, dFinalState, dq, Made);
        }

        public override void BackwardBegin(Tensor dk, Tensor dv, Tensor? dDecay, Tensor? dInitialState)
        {
            if (Made is null) Runs.BackwardBegin(_q!, _dO!, entering: null, leaving: null, _dFinalState, dk, dv, dDecay);
            if (dInitialState is not null) Runs.BackwardInitialState(_q!, _dO!, leaving: null, _dFinalState, dInitialState);
        }

        private static Tensor Like(Tensor x) => Tensor.Empty(x.Shape, x.DType, x.Device);
    }
}
