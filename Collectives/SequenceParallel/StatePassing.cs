using LaspNative.Autograd;
using LaspNative.Runtime;

namespace LaspNative.Collectives;

/// <summary>
/// The strategies in which a rank tells the others one pair (A_t, M_t) forward and (A_t, dM_t) backward, and learns the state P_t that enters its chunk and the gradient D_t of the state that
/// leaves it. They compute the same things (<see cref="LocalRuns"/>) with the same kernel in the same order, so they give the same bits; a strategy is only how the pairs travel.
///   Begin            M_t, message                            Finish            wait for P_t; o in one pass, intra and inter
///   BackwardFinish   dM_t, message, then dq from P_t (kept)     BackwardBegin     wait for D_t; dk, dv, the decay's and the initial state's gradients
/// </summary>
public abstract class StatePassing : SequenceParallel
{
    /// <summary>LASP's ablation without kernel fusion (<see cref="SeparateParts"/>): to be measured, never to be used.</summary>
    internal bool SeparatesParts { get; init; }

    internal override AttentionExchange Begin(AttentionCall call, SavedValue k, SavedValue v, Tensor? decay, Tensor? initialState)
    {
        if (!call.Causal) throw new LaspException($"strategy {Name} is causal only; bidirectional attention runs with lasp2");
        return call.Group.Size == 1 ? new Serial.Exchange(call, k, v, decay, initialState) : new Exchange(this, call, k, v, decay, initialState);
    }

    /// <summary>
    /// Starts telling the others <paramref name="own"/> = M_t (or dM_t when <paramref name="reverse"/>), which the message takes over. Its Wait writes
    /// <paramref name="entering"/> = P_t: the combination of the ranks before this one, or D_t: of those after it.
    /// </summary>
    internal abstract StateMessage Send(AttentionCall call, RankDecays decays, Tensor own, Tensor entering, bool reverse);

    private sealed class Exchange : AttentionExchange
    {
        private readonly StatePassing _strategy;
        private readonly RankDecays _decays;
        private readonly SeparateParts? _parts; // null: one pass
        private readonly Tensor _entering; // P_t, kept for backward
        private readonly bool _isKept; // P_t was there already: no message forward
        private StateMessage? _message;
        private Tensor? _leaving; // D_t
        private Tensor? _q;
        private Tensor? _dO;
        private Tensor? _dFinalState;

        public Exchange(StatePassing strategy, AttentionCall call, SavedValue k, SavedValue v, Tensor? decay, Tensor? initialState) : base(call, k, v, decay, initialState)
        {
            _strategy = strategy;
            _decays = new RankDecays(call, Decay);
            if (strategy.SeparatesParts) _parts = new SeparateParts(call, Runs, initialState);
            if (call.States is { IsFilled: true } kept)
            {
                _isKept = true;
                (Tensor entering, Tensor? factors) = kept.Take();
                _entering = Hold(entering);
                if (factors is not null) _decays.Learn(factors);
                return;
            }
            _entering = Hold(call.EmptyState());
            Tensor own = call.EmptyState();
            Runs.State(own);
            _message = strategy.Send(call, _decays, own, _entering, reverse: false);
        }

        public override void Finish(Tensor q, Tensor o, Tensor? finalState)
        {
            using StateMessage? message = _isKept ? null : TakeMessage(); // what it sends on may still be under way while o is computed
            if (message is not null)
            {
                message.Wait();
                Call.States?.Fill(_entering, _decays.Learned);
            }
            if (_parts is null) Runs.Forward(q, _entering, o, finalState);
            else _parts.Forward(q, _entering, o, finalState);
        }

        public override void BackwardFinish(Tensor q, Tensor dO, Tensor? dFinalState, Tensor dq, bool continues)
        {
            if (continues)
            {
                (_q, _dO) = (Hold(q.Share()), Hold(dO.Share()));
                if (dFinalState is not null) _dFinalState = Hold(dFinalState.Share());
                _leaving = Hold(Call.EmptyState());
                Tensor own = Call.EmptyState();
                Runs.BackwardState(q, dO, dFinalState, own);
                _message = _strategy.Send(Call, _decays, own, _leaving, reverse: true);
            }
            if (_parts is null) Runs.BackwardQuery(continues && LearnsDecay ? q : null, dO, _entering, dq);
            else _parts.BackwardQuery(dO, _entering, dq);
        }

        public override void BackwardBegin(Tensor dk, Tensor dv, Tensor? dDecay, Tensor? dInitialState)
        {
            using StateMessage message = TakeMessage();
            message.Wait();
            if (_parts is null) Runs.BackwardBegin(_q!, _dO!, _entering, _leaving, _dFinalState, dk, dv, dDecay);
            else _parts.BackwardKeyValue(_q!, _dO!, _leaving, dk, dv);
            if (dInitialState is not null) Runs.BackwardInitialState(_q!, _dO!, _leaving, _dFinalState, dInitialState);
        }

        private StateMessage TakeMessage()
        {
            StateMessage message = _message ?? throw new InvalidOperationException("this phase of the exchange has no message to wait for");
            _message = null;
            return message;
        }

        protected override void Abandon()
        {
            if (_message is not null)
            {
                _message.Wait();
                _message.Dispose();
                _message = null;
            }
            _decays.Dispose();
        }
    }
}

/// <summary>States on their way. Wait once; disposing it waits for what is still being sent and frees the buffers.</summary>
internal abstract class StateMessage : IDisposable
{
    /// <summary>Writes the entering state (P_t, or D_t in reverse) and passes on what others wait for.</summary>
    public abstract void Wait();

    public abstract void Dispose();
}

/// <summary>The factors A of the ranks' chunks: 0 where a document starts. Where the decay is none or per head every rank knows them all; otherwise each knows its own.</summary>
internal sealed class RankDecays(AttentionCall call, Tensor? decay) : IDisposable
{
    private Tensor? _own;
    private Tensor? _all;

    /// <summary>Whether another rank's A must be told.</summary>
    public bool Travels { get; } = decay is { Shape.Rank: > 1 };

    /// <summary>[B, H], or [B, H, D] per channel.</summary>
    public Shape FactorShape { get; } = call.FactorShape(decay);

    /// <summary>This rank's A.</summary>
    public Tensor Own => _own ??= Compute(call.Group.Rank);

    /// <summary>All ranks' A [W, ...]; only while they do not travel, or after <see cref="Learn"/>.</summary>
    public Tensor All => _all ??= ComputeAll();

    /// <summary>All ranks' A where they had to be told, else null.</summary>
    public Tensor? Learned => Travels ? _all : null;

    public bool AreAllKnown => _all is not null || !Travels;

    /// <summary>Takes over all ranks' A, once they have arrived.</summary>
    public void Learn(Tensor all) => _all = all;

    private Tensor Compute(int rank)
    {
        Tensor factor = Tensor.Empty(FactorShape, call.DType.Accumulator(), call.Device, MemoryCategory.States);
        call.RankDecay(rank, decay, factor);
        return factor;
    }

    private Tensor ComputeAll()
    {
        if (Travels) throw new InvalidOperationException("the other ranks' decays have not arrived yet");
        Tensor all = Tensor.Empty(FactorShape.Times(call.Group.Size), call.DType.Accumulator(), call.Device, MemoryCategory.States);
        if (call.Documents is null && call.Partition.IsEven)
        {
            // One document: the first rank's A meets the zero that a sequence begins with.
            using Tensor rows = all.View([call.Group.Size * FactorShape[0], FactorShape[1]]);
            call.Device.Backend.RunDecay(decay, call.Partition.Length(0), rows);
            return all;
        }
        for (int rank = 0; rank < call.Group.Size; rank++)
        {
            using Tensor row = all.Slice(rank, 1);
            using Tensor factor = row.View(FactorShape);
            call.RankDecay(rank, decay, factor);
        }
        return all;
    }

    public void Dispose()
    {
        _own?.Dispose();
        _all?.Dispose();
        (_own, _all) = (null, null);
    }
}
