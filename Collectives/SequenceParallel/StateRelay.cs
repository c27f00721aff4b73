using LaspNative.Runtime;

namespace LaspNative.Collectives;

/// <summary>
/// A state handed from rank to rank: P_t arrives from the rank before, A_t P_t + M_t goes on to the rank after (in reverse: D_t from the rank after, A_t D_t + dM_t to the rank before).
/// The state may be cut into slices of whole heads: slice s is combined and sent on while slice s + 1 is still on its way. What goes on goes before this rank's own work.
/// </summary>
internal sealed class StateRelay : StateMessage
{
    private readonly AttentionCall _call;
    private readonly Tensor _factor;
    private readonly Tensor _own;
    private readonly Tensor _entering;
    private readonly int? _to;
    private readonly SequencePartition _slices; // of the B*H heads
    private readonly List<CommunicationWork> _receives = [];
    private readonly List<CommunicationWork> _sends = [];
    private readonly List<Tensor> _parts = []; // slices in flight

    public StateRelay(AttentionCall call, RankDecays decays, Tensor own, Tensor entering, bool reverse, int slices)
    {
        (_call, _factor, _own, _entering) = (call, decays.Own, own, entering);
        long heads = call.Batch * call.Heads;
        _slices = new SequencePartition(heads, (int)Math.Max(1, Math.Min(slices, heads)));
        (int before, int after) = reverse ? (call.Group.Rank + 1, call.Group.Rank - 1) : (call.Group.Rank - 1, call.Group.Rank + 1);
        _to = IsRank(after) ? after : null;
        if (!IsRank(before)) return;
        for (int s = 0; s < _slices.Ranks; s++)
        {
            _receives.Add(call.Group.Receive(Keep(Slice(entering, s)), before));
        }
    }

    private bool IsRank(int rank) => rank >= 0 && rank < _call.Group.Size;

    /// <summary>Sends what needs no other rank's state: the first rank's own. Called once, right after construction.</summary>
    public StateRelay Start()
    {
        if (_receives.Count > 0) return this;
        _call.NothingEnters(_entering);
        for (int s = 0; s < _slices.Ranks && _to is not null; s++) _sends.Add(_call.Group.Send(Keep(Slice(_own, s)), _to.Value));
        return this;
    }

    public override void Wait()
    {
        for (int s = 0; s < _receives.Count; s++)
        {
            _receives[s].Wait();
            if (_to is null) continue;
            Tensor own = Keep(Slice(_own, s));
            using Tensor entering = Slice(_entering, s), factor = Slice(_factor, s);
            using Tensor states = own.View(own.Shape.Times(1));
            using Tensor factors = factor.View(factor.Shape.Times(1));
            _call.Device.Backend.CombineStates(states, factors, first: 0, count: 1, step: 1, entering, own);
            _sends.Add(_call.Group.Send(own, _to.Value));
        }
    }

    /// <summary>Heads of slice s, of a state [B, H, D, E] or a factor [B, H(, D)].</summary>
    private Tensor Slice(Tensor x, int s)
    {
        long heads = _slices.Tokens;
        using Tensor rows = x.View([heads, heads == 0 ? 0 : x.Count / heads]);
        return rows.Slice(_slices.Start(s), _slices.Length(s));
    }

    private Tensor Keep(Tensor part)
    {
        _parts.Add(part);
        return part;
    }

    public override void Dispose()
    {
        foreach (CommunicationWork send in _sends) send.Wait();
        foreach (Tensor part in _parts) part.Dispose();
        _own.Dispose();
    }
}
