using LaspNative.Runtime;

namespace LaspNative.Collectives;

/// <summary>
/// A state handed from rank to rank: P_t arrives from the rank before, A_t P_t + M_t goes on to the rank after (in reverse: D_t from the rank after, A_t D_t + dM_t to the rank before).
/// The state may be cut into slices of whole heads: slice s is combined and sent on while slice s + 1 is still on its way. What goes on goes before this rank's own work.
/// </summary>
internal sealed class StateRelay : StateMessage
{
    private readonly AttentionCall _call;
    private readonly Tensor? _factor; // null on the first and the last rank, where nothing is combined
    private readonly Tensor _own;
    private readonly Tensor _entering;
    private readonly SequencePartition _slices; // of the B*H heads
    private readonly bool _passesOn;
    private readonly BlockRelay _relay; // [B*H, D*E]

    public StateRelay(AttentionCall call, RankDecays decays, Tensor own, Tensor entering, bool reverse, int slices)
    {
        (_call, _own, _entering) = (call, own, entering);
        long heads = call.Batch * call.Heads;
        _slices = new SequencePartition(heads, (int)Math.Max(1, Math.Min(slices, heads)));
        int step = reverse ? -1 : 1;
        int? before = Rank(-step), after = Rank(step);
        _passesOn = after is not null;
        _factor = before is not null && after is not null ? decays.Own : null;
        _relay = call.Group.Relay([heads, call.KeyDim * call.ValueDim], own.DType, _slices.Ranks, before, after);
    }

    private int? Rank(int step) => _call.Group.Rank + step is var rank && rank >= 0 && rank < _call.Group.Size ? rank : null;

    /// <summary>Sends what needs no other rank's state: the first rank's own. Called once, right after construction.</summary>
    public StateRelay Start()
    {
        if (_relay.Block is not null) return this;
        _call.NothingEnters(_entering);
        if (_passesOn) _relay.Send(_own); // all slices
        return this;
    }

    public override void Wait()
    {
        if (_relay.Block is not { } arriving) return;
        if (_passesOn)
            for (int s = 0; s < _slices.Ranks; s++) PassOn(arriving, _factor!, s);
        else _relay.Wait(_slices.Ranks);
        _call.Device.Copy(arriving.Pointer, _entering.Pointer, _entering.Bytes); // kept for longer than the relay
    }

    private void PassOn(Tensor arriving, Tensor ownFactor, int s)
    {
        _relay.Wait(s + 1);
        using Tensor own = Slice(_own, s), entering = Slice(arriving, s), factor = Slice(ownFactor, s);
        using Tensor states = own.View(own.Shape.Times(1));
        using Tensor factors = factor.View(factor.Shape.Times(1));
        _call.Device.Backend.CombineStates(states, factors, first: 0, count: 1, step: 1, entering, own);
        _relay.Send(own);
    }

    /// <summary>Heads of slice s, of a state [B, H, D, E] or a factor [B, H(, D)].</summary>
    private Tensor Slice(Tensor x, int s)
    {
        long heads = _slices.Tokens;
        using Tensor rows = x.View([heads, heads == 0 ? 0 : x.Count / heads]);
        return rows.Slice(_slices.Start(s), _slices.Length(s));
    }

    public override void Dispose()
    {
        _relay.Dispose();
        _own.Dispose();
    }
}
