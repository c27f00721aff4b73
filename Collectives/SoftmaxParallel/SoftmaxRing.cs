using LaspNative.Runtime;

namespace LaspNative.Collectives;

/// <summary>
/// Ring Attention (arXiv 2310.01889) for softmax layers, over contiguous chunks:
///   forward    K, V blocks travel W-1 hops; each is a partial softmax of this rank's queries, merged by running maxima
///   backward   K, V travel again; dK, dV follow in fp32 and are home after W hops (<see cref="KeyRing"/>)
/// Wire, sent per rank: forward W-1 blocks of B C Hk (D+E); backward the same, and W blocks in fp32: all N tokens'.
/// A causal mask leaves the blocks of later ranks without work: the last rank computes with all, the first with its own.
/// The first hop starts in Begin; every further hop runs beside the block before it, and the last one of dK, dV beside what the tape runs before the last phase.
/// </summary>
public sealed class SoftmaxRing : SoftmaxParallel
{
    public static SoftmaxRing Default { get; } = new();

    public override string Name => "ring";

    public override (long Forward, long Backward) PredictedBytesSent(SoftmaxCall call)
    {
        ArgumentNullException.ThrowIfNull(call);
        if (call.Group.Size == 1) return (0, 0);
        long circulating = call.KeyValueBytes(Ring(call).TokensSent(call.Group.Size - 1));
        return (circulating, circulating + call.KeyValueGradientBytes(call.Partition.Tokens));
    }

    private protected override SoftmaxExchange Start(SoftmaxCall call, Tensor k, Tensor v) => new Exchange(call, k, v);

    private static KeyRing Ring(SoftmaxCall call) => new(call, rank => [call.Chunk(rank)]);

    private sealed class Exchange : SoftmaxExchange
    {
        private readonly KeyRing _ring;
        private readonly KeyBlock _own;
        private readonly KeyRing.Hop _first;
        private SoftmaxQueries? _queries;
        private KeyRing.Hop? _home;

        public Exchange(SoftmaxCall call, Tensor k, Tensor v) : base(call)
        {
            _ring = Ring(call);
            _own = Hold(new KeyBlock(call.Chunk(call.Group.Rank), k.Share(), v.Share()));
            _first = Hold(_ring.Start([_own]));
        }

        public override Tensor Finish(Tensor q)
        {
            _queries = Hold(new SoftmaxQueries(Call, q.Share(), _own.Tokens));
            _ring.Attend(_queries, [_own], _first);
            return _queries.Output();
        }

        public override Tensor BackwardFinish(Tensor dO, bool continues)
        {
            _queries!.StartBackward(dO.Share());
            _home = _ring.AddGradients(_queries, [_own], continues);
            if (_home is not null) Hold(_home);
            return _queries.QueryGradient();
        }

        public override (Tensor Key, Tensor Value) BackwardBegin()
        {
            KeyBlock gradient = _home!.Take()[0];
            return (Call.Round(gradient.Key), Call.Round(gradient.Value));
        }
    }
}
