using LaspNative.Runtime;

namespace LaspNative.Collectives;

/// <summary>
/// LASP's ablation without kernel fusion (arXiv 2404.02882, section 4.4): what the rank's own tokens give and what the entering state gives are kernels of their own, and a third one adds them,
/// as the paper's algorithms write it:   o = (intra) + scale q P      dq = (intra) + scale dO P^T      dk = (intra) + v D^T      dv = (intra) + k D
/// It exists to be measured against the one pass. Both parts are rounded to the tensors' type before they are added.
/// </summary>
internal sealed class SeparateParts
{
    private readonly AttentionCall _call;
    private readonly LocalRuns _runs;
    private readonly bool _isEntered; // the state of another rank enters this one's tokens
    private readonly bool _isLeft;

    public SeparateParts(AttentionCall call, LocalRuns runs, Tensor? initialState)
    {
        if (runs.Decay is not null || call.Documents is not null || initialState is not null)
            throw new LaspException("separate kernels for a rank's own tokens and for the entering state are there for attention without decay, packed documents and initial state only; leave them fused");
        (_call, _runs) = (call, runs);
        _isEntered = call.OwnPieces is [{ IsFirst: false }, ..];
        _isLeft = call.OwnPieces is [.., { IsLast: false }];
    }

    public void Forward(Tensor q, Tensor entering, Tensor o, Tensor? finalState)
    {
        if (finalState is not null) throw new LaspException("separate kernels for a rank's own tokens and for the entering state make no final state; leave them fused");
        _runs.Forward(q, entering: null, o, finalState: null);
        if (_isEntered) AddApplied(q, entering, transpose: false, _call.Scale, o);
    }

    public void BackwardQuery(Tensor dO, Tensor entering, Tensor dq)
    {
        _runs.BackwardQuery(q: null, dO, entering: null, dq);
        if (_isEntered) AddApplied(dO, entering, transpose: true, _call.Scale, dq);
    }

    public void BackwardKeyValue(Tensor q, Tensor dO, Tensor? leaving, Tensor dk, Tensor dv)
    {
        _runs.BackwardKeyValue(q, dO, leaving: null, dFinalState: null, dk, dv);
        if (!_isLeft || leaving is null) return;
        AddApplied(_runs.V, leaving, transpose: true, scale: 1, dk);
        AddApplied(_runs.K, leaving, transpose: false, scale: 1, dv);
    }

    private void AddApplied(Tensor x, Tensor state, bool transpose, double scale, Tensor y)
    {
        using Tensor part = Tensor.Empty(y.Shape, y.DType, _call.Device);
        _call.Device.Backend.ApplyState(x, state, transpose, scale, part);
        _call.Device.Backend.Add(y, part, y);
    }
}
