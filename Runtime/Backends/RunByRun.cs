namespace LaspNative.Runtime;

/// <summary>Linear attention of packed runs on a backend that takes them one at a time.</summary>
internal static class RunByRun
{
    public static void State(IBackend backend, PackedRuns runs, Tensor k, Tensor v, Tensor? decay, Tensor state, Tensor? initialState) =>
        runs.ForEach(r => backend.LinearAttentionState(r.Tokens(k), r.Tokens(v), r.Decay(decay), r.State(state), initialState: r.StateOrNull(initialState)));

    public static void Output(IBackend backend, PackedRuns runs, Tensor q, Tensor k, Tensor v, Tensor? decay, Tensor? initialState, double scale, Tensor o) =>
        runs.ForEach(r => backend.LinearAttention(r.Tokens(q), r.Tokens(k), r.Tokens(v), r.Decay(decay), r.StateOrNull(initialState), scale, r.Tokens(o)));

    public static void BackwardState(IBackend backend, PackedRuns runs, Tensor q, Tensor dO, Tensor? decay, double scale, Tensor dState, Tensor? dFinalState) =>
        runs.ForEach(r => backend.LinearAttentionBackwardState(r.Tokens(q), r.Tokens(dO), r.Decay(decay), scale, r.State(dState), dFinalState: r.StateOrNull(dFinalState)));

    public static void BackwardQuery(IBackend backend, PackedRuns runs, Tensor k, Tensor v, Tensor dO, Tensor? decay, Tensor? initialState, double scale, Tensor dq) =>
        runs.ForEach(r => backend.LinearAttentionBackwardQuery(r.Tokens(k), r.Tokens(v), r.Tokens(dO), r.Decay(decay), r.StateOrNull(initialState), scale, r.Tokens(dq)));

    public static void BackwardKeyValue(IBackend backend, PackedRuns runs, Tensor q, Tensor k, Tensor v, Tensor dO, Tensor? decay, Tensor? dFinalState, double scale, Tensor dk, Tensor dv) =>
        runs.ForEach(r => backend.LinearAttentionBackwardKeyValue(
            r.Tokens(q), r.Tokens(k), r.Tokens(v), r.Tokens(dO), r.Decay(decay), r.StateOrNull(dFinalState), scale, r.Tokens(dk), r.Tokens(dv)));

    /// <summary>A decay per head gathers the gradients of all runs.</summary>
    public static void BackwardDecay(
        IBackend backend, PackedRuns runs, Tensor q, Tensor k, Tensor v, Tensor dO, Tensor decay, Tensor? initialState, Tensor? dFinalState, double scale, Tensor dDecay)
    {
        bool perHead = dDecay.Shape.Rank == 1;
        using Tensor? part = perHead ? Tensor.Empty(dDecay.Shape, dDecay.DType, dDecay.Device) : null;
        if (perHead) backend.Fill(0, dDecay);
        runs.ForEach(r =>
        {
            backend.LinearAttentionBackwardDecay(
                r.Tokens(q), r.Tokens(k), r.Tokens(v), r.Tokens(dO), r.Decay(decay)!, r.StateOrNull(initialState), r.StateOrNull(dFinalState), scale, part ?? r.Tokens(dDecay));
            if (part is not null) backend.AddScaled(part, 1, dDecay);
        });
    }

    public static void BackwardKeyValueDecay(
        IBackend backend, PackedRuns runs, Tensor q, Tensor k, Tensor v, Tensor dO, Tensor decay, Tensor? initialState, Tensor? dFinalState, double scale, Tensor dk, Tensor dv, Tensor dDecay) =>
        runs.ForEach(r => backend.LinearAttentionBackwardKeyValueDecay(
            r.Tokens(q), r.Tokens(k), r.Tokens(v), r.Tokens(dO), r.Decay(decay)!, r.StateOrNull(initialState), r.StateOrNull(dFinalState), scale, r.Tokens(dk), r.Tokens(dv), r.Tokens(dDecay)));

    public static void Backward(
        IBackend backend, PackedRuns runs, Tensor q, Tensor k, Tensor v, Tensor dO, Tensor decay, Tensor? initialState, Tensor? dFinalState, double scale, Tensor dq, Tensor dk, Tensor dv, Tensor dDecay) =>
        runs.ForEach(r => backend.LinearAttentionBackward(
            r.Tokens(q), r.Tokens(k), r.Tokens(v), r.Tokens(dO), r.Decay(decay)!, r.StateOrNull(initialState), r.StateOrNull(dFinalState), scale, r.Tokens(dq), r.Tokens(dk), r.Tokens(dv),
            r.Tokens(dDecay)));
}
