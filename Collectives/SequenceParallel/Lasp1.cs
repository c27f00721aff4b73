using LaspNative.Runtime;

namespace LaspNative.Collectives;

/// <summary>
/// LASP (arXiv 2404.02882), done right: the state is sent on before the rank does anything with it.
///   forward    receive P_t from rank t-1, send A_t P_t + M_t to rank t+1 at once, then o = intra + scale exp(G_i) q_i P_t
///   backward   receive D_t from rank t+1, send A_t D_t + dM_t to rank t-1 at once, then dk, dv; dq needs P_t, kept from the forward pass (KV-state caching): no second forward ring
/// Wire: S fp32 elements per rank and direction (the last rank of a direction sends nothing), one message, W-1 serial steps. A is each rank's own business.
/// </summary>
public sealed class Lasp1 : StatePassing
{
    public static Lasp1 Default { get; } = new();

    public override string Name => "lasp1";

    public override (long Forward, long Backward) PredictedBytesSent(AttentionCall call, Tensor? decay)
    {
        ArgumentNullException.ThrowIfNull(call);
        return RelayedBytes(call);
    }

    internal static (long Forward, long Backward) RelayedBytes(AttentionCall call) =>
        (call.Group.Rank < call.Group.Size - 1 ? call.StateBytes : 0, call.Group.Rank > 0 ? call.StateBytes : 0);

    internal override StateMessage Send(AttentionCall call, RankDecays decays, Tensor own, Tensor entering, bool reverse) =>
        new StateRelay(call, decays, own, entering, reverse, slices: 1).Start();
}
