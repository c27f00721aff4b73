using LaspNative.Autograd;
using LaspNative.Runtime;

namespace LaspNative.Collectives;

/// <summary>
/// Linear attention without a mask (LASP-2, algorithm 1): every token sees the one state of the whole sequence.
///   P = sum over all ranks of M_t        o_i = scale q_i P        final state = P
///   D = sum over all ranks of scale q_i^T dO_i (+ dS_final)        dq_i = scale dO_i P^T    dk_i = v_i D^T    dv_i = k_i D
/// One all-gather of M forward and of dM backward, summed in rank order; no decay, no documents.
/// </summary>
internal sealed class BidirectionalExchange : AttentionExchange
{
    private readonly Tensor _state; // P
    private StateGather? _gather;
    private Tensor? _q;
    private Tensor? _dO;

    public BidirectionalExchange(AttentionCall call, SavedValue k, SavedValue v) : base(call, k, v, decay: null, initialState: null)
    {
        if (call.States is { IsFilled: true } kept)
        {
            _state = Hold(kept.Take().Entering);
            return;
        }
        _state = Hold(call.EmptyState());
        Tensor own = call.EmptyState();
        Backend.LinearAttentionState(K, V, decay: null, own);
        _gather = new StateGather(call, own, factor: null);
    }

    public override void Finish(Tensor q, Tensor o, Tensor? finalState)
    {
        if (_gather is not null)
        {
            SumOverRanks(_state);
            Call.States?.Fill(_state);
        }
        Backend.ApplyState(q, _state, transpose: false, Call.Scale, o);
        if (finalState is null) return;
        if (HoldsLastToken) Backend.Cast(_state, finalState);
        else Backend.Fill(0, finalState);
    }

    public override void BackwardFinish(Tensor q, Tensor dO, Tensor? dFinalState, Tensor dq, bool continues)
    {
        if (continues)
        {
            (_q, _dO) = (Hold(q.Share()), Hold(dO.Share()));
            Tensor own = Call.EmptyState();
            Backend.LinearAttentionBackwardState(q, dO, decay: null, Call.Scale, own);
            if (dFinalState is not null && HoldsLastToken) Backend.AddScaled(dFinalState, 1, own);
            _gather = new StateGather(Call, own, factor: null);
        }
        Backend.ApplyState(dO, _state, transpose: true, Call.Scale, dq);
    }

    public override void BackwardBegin(Tensor dk, Tensor dv, Tensor? dDecay, Tensor? dInitialState)
    {
        using Tensor gradient = Call.EmptyState(); // D
        SumOverRanks(gradient);
        Backend.ApplyState(V, gradient, transpose: true, scale: 1, dk);
        Backend.ApplyState(K, gradient, transpose: false, scale: 1, dv);
    }

    private bool HoldsLastToken => Call.PiecesOf(Call.Group.Rank) is [.., { IsLast: true }];

    private void SumOverRanks(Tensor sum)
    {
        using StateGather gather = _gather ?? throw new InvalidOperationException("this phase of the exchange has no message to wait for");
        _gather = null;
        using Tensor ones = Tensor.Empty([Call.Group.Size, Call.Batch, Call.Heads], sum.DType, Call.Device, MemoryCategory.States);
        Backend.Fill(1, ones);
        Backend.CombineStates(gather.Wait(0, Call.Group.Size), ones, first: 0, count: Call.Group.Size, step: 1, initial: null, sum);
    }

    protected override void Abandon()
    {
        _gather?.Dispose();
        _gather = null;
    }
}
