using LaspNative.Autograd;
using LaspNative.Runtime;

namespace LaspNative.Collectives;

/// <summary>
/// DeepSpeed-Ulysses (arXiv 2309.14509) for linear attention: between two all-to-alls every rank holds the whole sequence of H/W query heads and Hk/W key/value heads. Causal.
///   forward    k, v (and a decay per token or channel) to head shards in Begin, then q; one rank's own attention over the whole sequence; o back to token chunks
///   backward   dO to head shards; dq, dk, dv (and such a decay's gradient) back to token chunks
/// Wire, sent per rank with C of N tokens: what goes to head shards (W-1)/W of its own C tokens, what comes back (N-C) tokens of its heads; each tensor in its own width and type.
/// Initial and final states are cut by heads: a rank gives its heads' final states and gradients, and zeros for the others.
/// The group divides both H and Hk: gcd(H, Hk) ranks at most.
/// </summary>
public sealed class Ulysses : SequenceParallel
{
    public static Ulysses Default { get; } = new();

    public override string Name => "ulysses";

    public override (long Forward, long Backward) PredictedBytesSent(AttentionCall call, Tensor? decay)
    {
        ArgumentNullException.ThrowIfNull(call);
        HeadShards.CheckHeads(call);
        long element = call.DType.Size(), keys = call.KeyHeads * (call.KeyDim + call.ValueDim) * element, queries = call.Heads * call.KeyDim * element, outputs = call.Heads * call.ValueDim * element;
        long factors = decay is { Shape.Rank: > 1 } ? call.FactorShape(decay).Count / call.Batch * call.DType.Accumulator().Size() : 0;
        long size = call.Group.Size, toHeads = call.Batch * call.Tokens * (size - 1), toTokens = call.Batch * (call.Partition.Tokens - call.Tokens);
        return ((toHeads * (queries + keys + factors) + toTokens * outputs) / size, (toHeads * outputs + toTokens * (queries + keys + factors)) / size);
    }

    internal override AttentionExchange Begin(AttentionCall call, SavedValue k, SavedValue v, Tensor? decay, Tensor? initialState)
    {
        if (!call.Causal) throw new LaspException($"strategy {Name} is causal only; bidirectional attention runs with lasp2");
        HeadShards.CheckHeads(call);
        return call.Group.Size == 1 ? new Serial.Exchange(call, k, v, decay, initialState) : new Exchange(call, k, v, decay, initialState);
    }

    private sealed class Exchange : AttentionExchange
    {
        private readonly AttentionCall _shard; // the whole sequence, this rank's heads
        private readonly HeadShards _shards;
        private readonly List<HeadMessage> _messages = []; // in flight, in the order in which they were started
        private LocalRuns? _runs;
        private Tensor? _q; // [B, N, H/W, D]
        private Tensor? _dO;
        private Tensor? _dFinalState;

        public Exchange(AttentionCall call, SavedValue k, SavedValue v, Tensor? decay, Tensor? initialState) : base(call, k, v, decay, initialState)
        {
            _shard = call.OfHeadShard();
            _shards = new HeadShards(call);
            _messages.Add(_shards.ToHeads(K));
            _messages.Add(_shards.ToHeads(V));
            if (decay is { Shape.Rank: > 1 }) _messages.Add(_shards.ToHeads(decay));
        }

        public override void Finish(Tensor q, Tensor o, Tensor? finalState)
        {
            _messages.Add(_shards.ToHeads(q));
            SavedValue k = Hold(SavedValue.Of(TakeFirst())), v = Hold(SavedValue.Of(TakeFirst()));
            Tensor? decay = Decay is null ? null : Hold(Decay.Shape.Rank == 1 ? _shards.OwnHeads(Decay) : TakeFirst());
            Tensor? initial = InitialState is null ? null : Hold(_shards.OwnStates(InitialState));
            _q = Hold(TakeFirst());
            _runs = Hold(new LocalRuns(_shard, k, v, decay, initial));
            using Tensor output = Tensor.Empty(_shard.OutputShape, Call.DType, Call.Device);
            using Tensor? final = finalState is null ? null : EmptyStates();
            _runs.Forward(_q, entering: null, output, final);
            _messages.Add(_shards.ToTokens(output));
            if (final is not null) _shards.WriteStates(final, finalState!);
            TakeFirst(o);
        }

        public override void BackwardFinish(Tensor q, Tensor dO, Tensor? dFinalState, Tensor dq, bool continues)
        {
            _messages.Add(_shards.ToHeads(dO));
            if (dFinalState is not null) _dFinalState = Hold(_shards.OwnStates(dFinalState));
            _dO = Hold(TakeFirst());
            using Tensor query = Tensor.Empty(_q!.Shape, Call.DType, Call.Device);
            _runs!.BackwardQuery(q: null, _dO, entering: null, query);
            _messages.Add(_shards.ToTokens(query));
            if (continues)
            {
                using Tensor key = Tensor.Empty(_runs.K.Shape, Call.DType, Call.Device), value = Tensor.Empty(_runs.V.Shape, Call.DType, Call.Device);
                _runs.BackwardKeyValue(_q, _dO, leaving: null, _dFinalState, key, value);
                _messages.Add(_shards.ToTokens(key));
                _messages.Add(_shards.ToTokens(value));
            }
            TakeFirst(dq);
        }

        public override void BackwardBegin(Tensor dk, Tensor dv, Tensor? dDecay, Tensor? dInitialState)
        {
            if (dDecay is not null) BackwardDecay(dDecay);
            if (dInitialState is not null)
            {
                using Tensor own = EmptyStates();
                _runs!.BackwardInitialState(_q!, _dO!, leaving: null, _dFinalState, own);
                _shards.WriteStates(own, dInitialState);
            }
            TakeFirst(dk);
            TakeFirst(dv);
            if (_messages.Count > 0) TakeFirst(dDecay!);
        }

        /// <summary>Per head this rank's heads, zeros for the others; else the gradient starts on its way back.</summary>
        private void BackwardDecay(Tensor dDecay)
        {
            using Tensor own = Tensor.Empty(_runs!.Decay!.Shape, dDecay.DType, Call.Device);
            _runs.BackwardDecay(_q!, _dO!, entering: null, leaving: null, _dFinalState, own);
            if (own.Shape.Rank == 1) _shards.WriteHeads(own, dDecay);
            else _messages.Add(_shards.ToTokens(own));
        }

        private Tensor EmptyStates() => Tensor.Empty(_shard.DocumentStateShape, Call.DType.Accumulator(), Call.Device, MemoryCategory.States);

        private Tensor TakeFirst()
        {
            using HeadMessage message = _messages[0];
            _messages.RemoveAt(0);
            return message.Take();
        }

        private void TakeFirst(Tensor destination)
        {
            using HeadMessage message = _messages[0];
            _messages.RemoveAt(0);
            message.WriteTo(destination);
        }

        protected override void Abandon()
        {
            foreach (HeadMessage message in _messages) message.Dispose();
            _messages.Clear();
        }
    }
}
