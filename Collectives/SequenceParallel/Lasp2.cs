using LaspNative.Autograd;
using LaspNative.Runtime;

namespace LaspNative.Collectives;

/// <summary>
/// LASP-2 (arXiv 2502.07563, algorithm 2, with the decay and the backward pass that the paper leaves out).
///   forward    every rank forms M_t; ONE all-gather of (A, M); P_t = fma(A_j, P, M_j) over j = 0..t-1; o = intra + scale exp(G_i) q_i P_t
///   backward   every rank forms dM_t; ONE all-gather of dM; D_t = fma(A_j, D, dM_j) over j = W-1..t+1; dk, dv from D_t; dq from P_t, kept from the forward pass
/// A is known on every rank without a message when the decay is none or per head; otherwise it travels with M, once.
/// Wire: (W-1) S fp32 elements sent per rank and direction (and (W-1) of A), one message, one step. It moves more bytes than a ring (S); its gain is latency.
/// The gather starts in Begin and is waited for in Finish, where intra and inter part are one pass: the caller's work between the two hides it,
/// and in the backward pass dq and whatever the tape runs between the two functions.
/// Bidirectional (algorithm 1 of the paper): P and D are the sums over all ranks (<see cref="BidirectionalExchange"/>).
/// </summary>
public sealed class Lasp2 : StatePassing
{
    public static Lasp2 Default { get; } = new();

    public override string Name => "lasp2";

    public override (long Forward, long Backward) PredictedBytesSent(AttentionCall call, Tensor? decay)
    {
        ArgumentNullException.ThrowIfNull(call);
        long peers = call.Group.Size - 1;
        long factor = decay is { Shape.Rank: > 1 } ? call.FactorShape(decay).Count * call.DType.Accumulator().Size() : 0;
        return (peers * (call.StateBytes + factor), peers * call.StateBytes);
    }

    internal override AttentionExchange Begin(AttentionCall call, SavedValue k, SavedValue v, Tensor? decay, Tensor? initialState) =>
        call.Causal ? base.Begin(call, k, v, decay, initialState) : new BidirectionalExchange(call, k, v);

    internal override StateMessage Send(AttentionCall call, RankDecays decays, Tensor own, Tensor entering, bool reverse) =>
        new Message(call, decays, own, entering, reverse);

    private sealed class Message : StateMessage
    {
        private readonly AttentionCall _call;
        private readonly RankDecays _decays;
        private readonly Tensor _entering;
        private readonly bool _reverse;
        private readonly StateGather _gather;

        public Message(AttentionCall call, RankDecays decays, Tensor own, Tensor entering, bool reverse)
        {
            (_call, _decays, _entering, _reverse) = (call, decays, entering, reverse);
            _gather = new StateGather(call, own, decays.AreAllKnown ? null : decays.Own);
            // What needs no message is done while it travels.
            if (Ranks == 0) call.NothingEnters(entering);
            else if (Ranks > 1 && decays.AreAllKnown) _ = decays.All;
        }

        /// <summary>How many ranks there are on the side that the state comes from.</summary>
        private int Ranks => _reverse ? _call.Group.Size - 1 - _call.Group.Rank : _call.Group.Rank;

        public override void Wait()
        {
            if (Ranks == 0 && _decays.AreAllKnown) return;
            Tensor states = _gather.Wait(_reverse ? _call.Group.Size - Ranks : 0, Ranks);
            if (_gather.TakeFactors(_decays.FactorShape) is { } factors) _decays.Learn(factors);
            int first = _reverse ? _call.Group.Size - 1 : 0, step = _reverse ? -1 : 1;
            if (Ranks == 1) _call.Device.Copy(states.Pointer + (nint)(first * _entering.Bytes), _entering.Pointer, _entering.Bytes); // there is nothing to combine one state with
            if (Ranks > 1) _call.Device.Backend.CombineStates(states, _decays.All, first, Ranks, step, initial: null, _entering);
        }

        public override void Dispose() => _gather.Dispose();
    }
}

/// <summary>One gather of a state per rank, with its factor in the same message where that has to travel; owns the sent buffer.</summary>
internal sealed class StateGather : IDisposable
{
    private readonly AttentionCall _call;
    private readonly long _factorCount;
    private readonly Tensor _own; // [S], or [A | M] as [F + S]
    private readonly BlockGather _gather; // [W, ...]
    private Tensor? _states; // [W, B, H, D, E]

    /// <summary>Takes over <paramref name="own"/>; copies <paramref name="factor"/>.</summary>
    public StateGather(AttentionCall call, Tensor own, Tensor? factor)
    {
        _call = call;
        _factorCount = factor?.Count ?? 0;
        _own = factor is null ? own : Pack(factor, own);
        _gather = call.Group.Gather(_own);
    }

    private Tensor Pack(Tensor factor, Tensor own)
    {
        Tensor packed = Tensor.Empty([factor.Count + own.Count], own.DType, _call.Device, MemoryCategory.Communication);
        _call.Device.Copy(factor.Pointer, packed.Pointer, factor.Bytes);
        _call.Device.Copy(own.Pointer, packed.Pointer + (nint)factor.Bytes, own.Bytes);
        own.Dispose();
        return packed;
    }

    /// <summary>The ranks' states in rank order, [W, B, H, D, E], of which <paramref name="count"/> from <paramref name="first"/> on have come. Where factors travel, all have.</summary>
    public Tensor Wait(int first, int count)
    {
        if (_factorCount == 0) _gather.Wait(first, count);
        else _gather.Wait(0, _call.Group.Size);
        return _states ??= _factorCount == 0 ? _gather.Blocks.Share() : Unpack(_factorCount, _call.StateShape, MemoryCategory.Communication);
    }

    /// <summary>Every rank's factor in rank order, [W, ...], for the caller to own; null when none travelled.</summary>
    public Tensor? TakeFactors(Shape factorShape) => _factorCount == 0 ? null : Unpack(0, factorShape, MemoryCategory.States);

    private Tensor Unpack(long offset, Shape shape, MemoryCategory category)
    {
        Tensor all = _gather.Blocks, parts = Tensor.Empty(shape.Times(_call.Group.Size), all.DType, _call.Device, category);
        int size = all.DType.Size();
        long row = all.Shape[1] * size, part = shape.Count * size;
        for (int rank = 0; rank < _call.Group.Size; rank++)
            _call.Device.Copy(all.Pointer + (nint)(rank * row + offset * size), parts.Pointer + (nint)(rank * part), part);
        return parts;
    }

    public void Dispose()
    {
        _states?.Dispose();
        _gather.Dispose();
        _own.Dispose();
    }
}
