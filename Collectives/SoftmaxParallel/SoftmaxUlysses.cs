using System.Numerics;
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
        CheckHeads(call);
        int size = call.Group.Size;
        long own = call.Tokens, others = call.Partition.Tokens - call.Tokens;
        long forward = ((size - 1) * (call.QueryBytes(own) + call.KeyValueBytes(own)) + call.OutputBytes(others)) / size;
        long backward = ((size - 1) * call.OutputBytes(own) + call.QueryBytes(others) + call.KeyValueBytes(others)) / size;
        return (forward, backward);
    }

    private protected override SoftmaxExchange Start(SoftmaxCall call, Tensor k, Tensor v)
    {
        CheckHeads(call);
        return new Exchange(call, k, v);
    }

    private static void CheckHeads(SoftmaxCall call)
    {
        long largest = (long)BigInteger.GreatestCommonDivisor(call.Heads, call.KeyHeads);
        if (largest % call.Group.Size != 0)
            throw new LaspException($"ulysses cannot divide {call.Heads} query and {call.KeyHeads} key/value heads among {call.Group.Size} ranks; the largest number of ranks it can use is {largest}");
    }

    private sealed class Exchange : SoftmaxExchange
    {
        private readonly TokenMessage _keyMessage;
        private readonly TokenMessage _valueMessage;
        private Tensor? _k; // [B, N, Hk/W, D]
        private Tensor? _v; // [B, N, Hk/W, E]
        private SoftmaxQueries? _queries;
        private TokenMessage? _dk;
        private TokenMessage? _dv;

        public Exchange(SoftmaxCall call, Tensor k, Tensor v) : base(call) => (_keyMessage, _valueMessage) = (Hold(ToHeads(k)), Hold(ToHeads(v)));

        public override Tensor Finish(Tensor q)
        {
            using TokenMessage queries = ToHeads(q);
            (_k, _v) = (Hold(_keyMessage.Take()), Hold(_valueMessage.Take()));
            _queries = Hold(new SoftmaxQueries(Call, queries.Take(), Call.Sequence));
            _queries.Attend(_k, _v, Call.Sequence);
            using Tensor o = _queries.Output();
            return TakeTokens(ToTokens(o));
        }

        public override Tensor BackwardFinish(Tensor dO, bool continues)
        {
            using Tensor dk = GradientSum(_k!.Shape), dv = GradientSum(_v!.Shape);
            using TokenMessage gradient = ToHeads(dO);
            _queries!.StartBackward(gradient.Take());
            _queries.AddGradients(_k, _v, Call.Sequence, dk, dv);
            using Tensor dq = _queries.QueryGradient();
            TokenMessage queries = ToTokens(dq);
            if (continues) (_dk, _dv) = (Hold(RoundedToTokens(dk)), Hold(RoundedToTokens(dv)));
            return TakeTokens(queries);
        }

        public override (Tensor Key, Tensor Value) BackwardBegin() => (TakeTokens(_dk!), TakeTokens(_dv!));

        /// <summary>[B, C, heads, width] of every rank: its tokens of rank r's heads go to rank r; [B, N, heads/W, width] arrives.</summary>
        private TokenMessage ToHeads(Tensor x)
        {
            int ranks = Call.Group.Size;
            (long batch, long heads, long width) = (Call.Batch, x.Shape[2] / ranks, x.Shape[3]);
            using Tensor tokensFirst = x.View([batch, Call.Tokens, ranks, heads, width]);
            using Tensor ranksFirst = Tensor.Empty([batch, ranks, Call.Tokens, heads, width], x.DType, Call.Device, MemoryCategory.Communication);
            Backend.Permute(tokensFirst, [0, 2, 1, 3, 4], ranksFirst);
            using Tensor runs = ranksFirst.View([batch, ranks * Call.Tokens, heads, width]);
            return TokenMessage.AllToAll(Call, runs, EveryRank(Call.Tokens), Call.Partition.Lengths());
        }

        /// <summary>[B, N, heads/W, width]: every rank is sent its tokens; <see cref="TakeTokens"/> gives this rank's with all heads.</summary>
        private TokenMessage ToTokens(Tensor x) => TokenMessage.AllToAll(Call, x, Call.Partition.Lengths(), EveryRank(Call.Tokens));

        private TokenMessage RoundedToTokens(Tensor sum)
        {
            using Tensor rounded = Call.Round(sum.Share());
            return ToTokens(rounded);
        }

        /// <summary>[B, C, heads, width].</summary>
        private Tensor TakeTokens(TokenMessage message)
        {
            int ranks = Call.Group.Size;
            using Tensor runs = message.Take(); // [B, W C, heads/W, width]
            (long batch, long heads, long width) = (Call.Batch, runs.Shape[2], runs.Shape[3]);
            using Tensor ranksFirst = runs.View([batch, ranks, Call.Tokens, heads, width]);
            using Tensor tokensFirst = Tensor.Empty([batch, Call.Tokens, ranks, heads, width], runs.DType, Call.Device);
            Backend.Permute(ranksFirst, [0, 2, 1, 3, 4], tokensFirst);
            return tokensFirst.View([batch, Call.Tokens, ranks * heads, width]);
        }

        private long[] EveryRank(long tokens)
        {
            var all = new long[Call.Group.Size];
            Array.Fill(all, tokens);
            return all;
        }
    }
}
