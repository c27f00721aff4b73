using LaspNative.Runtime;

namespace LaspNative.Collectives;

/// <summary>
/// ZeCO's All-Scan (arXiv 2507.01004): the ring of <see cref="Lasp1"/> with the state cut into K slices, so that a slice travels while the next is combined.
/// Slices are whole heads, at most B*H of them. Wire: S fp32 elements per rank and direction as in lasp1, in K messages; W-1 + K - 1 serial steps of S/K.
/// </summary>
public sealed class ZeCo : StatePassing
{
    public static ZeCo Default { get; } = new();

    /// <param name="slices">K, at least 1.</param>
    public ZeCo(int slices = 4)
    {
        if (slices < 1) throw new LaspException($"zeco cuts the state into {slices} slices; use 1 or more");
        Slices = slices;
    }

    public int Slices { get; }

    public override string Name => "zeco";

    public override (long Forward, long Backward) PredictedBytesSent(AttentionCall call, Tensor? decay)
    {
        ArgumentNullException.ThrowIfNull(call);
        return Lasp1.RelayedBytes(call);
    }

    internal override StateMessage Send(AttentionCall call, RankDecays decays, Tensor own, Tensor entering, bool reverse) =>
        new StateRelay(call, decays, own, entering, reverse, Slices).Start();
}
