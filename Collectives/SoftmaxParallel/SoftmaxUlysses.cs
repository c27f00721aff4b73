using LaspNative.Runtime;

namespace LaspNative.Collectives;

/// <summary>
/// DeepSpeed-Ulysses (arXiv 2309.14509) for softmax layers: between two all-to-alls every rank holds the whole sequence of H/W query heads and Hk/W key/value heads.
///   forward    k, v in Begin, then q, to head shards; attention over the whole sequence; o back to token chunks
///   backward   dO to head shards; dq, dk, dv back (whole sums: a key head and all its query heads are on one rank), in the call's dtype
/// Wire, sent per rank with C of N tokens: forward B C (W-1)/W (H D + Hk (D+E)) + B (N-C) H/W E; backward B C (W-1)/W H E + B (N-C) (H D + Hk (D+E)) / W.
/// The group divides both H and Hk: gcd(H, Hk) ranks at most.
/// </summary>
public sealed class SoftmaxUlysses : SoftmaxParallel
{
    public static SoftmaxUlysses Default { get; } = new();

    public override string Name => "ulysses";

    public override (long Forward, long Backward) PredictedBytesSent(SoftmaxCall call)
    {
        ArgumentNullException.ThrowIfNull(call);
        HeadShards.CheckHeads(call);
        int size = call.Group.Size;
        long own = call.Tokens, others = call.Partition.Tokens - call.Tokens;
        long forward = ((size - 1) * (call.QueryBytes(own) + call.KeyValueBytes(own)) + call.OutputBytes(others)) / size;
        long backward = ((size - 1) * call.OutputBytes(own) + call.QueryBytes(others) + call.KeyValueBytes(others)) / size;
        return (forward, backward);
    }

    private protected override SoftmaxExchange Start(SoftmaxCall call, Tensor k, Tensor v)
    {
        HeadShards.CheckHeads(call);
        return new Exchange(call, k, v);
    }

    private sealed class Exchange : SoftmaxExchange
    {
        private readonly HeadShards _shards;
        private readonly HeadMessage _keyMessage;
        private readonly HeadMessage _valueMessage;
        private Tensor? _k; // [B, N, Hk/W, D]
        private Tensor? _v; // [B, N, Hk/W, E]
        private SoftmaxQueries? _queries;
        private HeadMessage? _dk;
        private HeadMessage? _dv;

        public Exchange(SoftmaxCall call, Tensor k, Tensor v) : base(call)
        {
            _shards = new HeadShards(call);
            (_keyMessage, _valueMessage) = (Hold(_shards.ToHeads(k)), Hold(_shards.ToHeads(v)));
        }

        public override Tensor Finish(Tensor q)
        {
            HeadMessage queries = _shards.ToHeads(q);
            (_k, _v) = (Hold(Take(_keyMessage)), Hold(Take(_valueMessage)));
            _queries = Hold(new SoftmaxQueries(Call, Take(queries), Call.Sequence));
            _queries.Attend(_k, _v, Call.Sequence);
            using Tensor o = _queries.Output();
            return Take(_shards.ToTokens(o));
        }

        public override Tensor BackwardFinish(Tensor dO, bool continues)
        {
            using Tensor dk = GradientSum(_k!.Shape), dv = GradientSum(_v!.Shape);
            _queries!.StartBackward(Take(_shards.ToHeads(dO)));
            _queries.AddGradients(_k, _v, Call.Sequence, dk, dv);
            using Tensor dq = _queries.QueryGradient();
            HeadMessage queries = _shards.ToTokens(dq);
            if (continues) (_dk, _dv) = (Hold(RoundedToTokens(dk)), Hold(RoundedToTokens(dv)));
            return Take(queries);
        }

        public override (Tensor Key, Tensor Value) BackwardBegin() => (Take(_dk!), Take(_dv!));

        private HeadMessage RoundedToTokens(Tensor sum)
        {
            using Tensor rounded = Call.Round(sum.Share());
            return _shards.ToTokens(rounded);
        }

        /// <summary>What arrived; the message's buffers are freed.</summary>
        private static Tensor Take(HeadMessage message)
        {
            using (message) return message.Take();
        }
    }
}
