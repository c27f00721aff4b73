using LaspNative.Runtime;

namespace LaspNative.Collectives;

/// <summary>
/// Ring attention with causal work divided evenly: rank r computes with halves r and 2W-1-r of the sequence, queries as well as keys (the zigzag assignment, <see cref="BalancedPieces"/>), and
/// K, V circulate as in <see cref="SoftmaxRing"/>. The model's tokens stay contiguous, so q, k, v pieces are exchanged before and o pieces after; in backward dO before and dq, dk, dv after.
/// Wire, sent per rank: the ring's blocks, of the pieces that ranks compute, and both exchanges: forward q, k, v of the pieces computed elsewhere and o of those computed here for others;
/// backward dO of the former and dq, dk, dv of the latter, all in the call's dtype.
/// </summary>
public sealed class SoftmaxZigzag : SoftmaxParallel
{
    public static SoftmaxZigzag Default { get; } = new();

    public override string Name => "zigzag";

    public override (long Forward, long Backward) PredictedBytesSent(SoftmaxCall call)
    {
        ArgumentNullException.ThrowIfNull(call);
        if (call.Group.Size == 1) return (0, 0);
        var pieces = new BalancedPieces(call);
        long sent = pieces.TokensSent(call.Group.Rank), returned = pieces.TokensReturned(call.Group.Rank);
        long circulating = call.KeyValueBytes(new KeyRing(call, pieces.ComputedBy).TokensSent(call.Group.Size - 1));
        long forward = circulating + call.QueryBytes(sent) + call.KeyValueBytes(sent) + call.OutputBytes(returned);
        long backward = circulating + call.KeyValueGradientBytes(call.Partition.Tokens) + call.OutputBytes(sent) + call.QueryBytes(returned) + call.KeyValueBytes(returned);
        return (forward, backward);
    }

    private protected override SoftmaxExchange Start(SoftmaxCall call, Tensor k, Tensor v) => new Exchange(call, k, v);

    private sealed class Exchange : SoftmaxExchange
    {
        private readonly BalancedPieces _pieces;
        private readonly KeyRing _ring;
        private readonly TokenMessage _keys;
        private readonly TokenMessage _values;
        private KeyBlock[] _own = [];
        private SoftmaxQueries? _queries;
        private KeyRing.Hop? _home;

        public Exchange(SoftmaxCall call, Tensor k, Tensor v) : base(call)
        {
            _pieces = new BalancedPieces(call);
            _ring = new KeyRing(call, _pieces.ComputedBy);
            (_keys, _values) = (Hold(_pieces.Send(k)), Hold(_pieces.Send(v)));
        }

        private TokenSpan[] Tokens => _pieces.ComputedBy(Call.Group.Rank);

        public override Tensor Finish(Tensor q)
        {
            using TokenMessage sent = _pieces.Send(q);
            _own = TakeBlocks();
            using KeyRing.Hop first = _ring.Start(_own);
            _queries = Hold(new SoftmaxQueries(Call, sent.Take(), Tokens));
            _ring.Attend(_queries, _own, first);
            return TakeHome(_queries.Output());
        }

        public override Tensor BackwardFinish(Tensor dO, bool continues)
        {
            using TokenMessage sent = _pieces.Send(dO);
            _queries!.StartBackward(sent.Take());
            _home = _ring.AddGradients(_queries, _own, continues);
            if (_home is not null) Hold(_home);
            return TakeHome(_queries.QueryGradient());
        }

        public override (Tensor Key, Tensor Value) BackwardBegin()
        {
            KeyBlock[] gradients = _home!.Take();
            using KeyBlock early = gradients[0], late = gradients[1];
            Tensor dk = Call.Round(TokenRuns.Join(early.Key, late.Key)), dv = Call.Round(TokenRuns.Join(early.Value, late.Value));
            return (TakeHome(dk), TakeHome(dv));
        }

        /// <summary>The keys and values that this rank computes with, one block per piece: their tokens are not neighbours.</summary>
        private KeyBlock[] TakeBlocks()
        {
            using Tensor k = _keys.Take(), v = _values.Take();
            TokenSpan[] tokens = Tokens;
            return
            [
                Hold(new KeyBlock(tokens[0], TokenRuns.Cut(k, 0, tokens[0].Length), TokenRuns.Cut(v, 0, tokens[0].Length))),
                Hold(new KeyBlock(tokens[1], TokenRuns.Cut(k, tokens[0].Length, tokens[1].Length), TokenRuns.Cut(v, tokens[0].Length, tokens[1].Length))),
            ];
        }

        /// <summary>Results for the pieces computed here go to their owners; those of this rank's own tokens come back.</summary>
        private Tensor TakeHome(Tensor computed)
        {
            using (computed) return _pieces.TakeReturned(_pieces.Return(computed));
        }
    }
}
