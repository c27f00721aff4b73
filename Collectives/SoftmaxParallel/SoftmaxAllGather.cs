using LaspNative.Runtime;

namespace LaspNative.Collectives;

/// <summary>
/// LASP-2H's softmax layers (arXiv 2502.07563, section 3.5, with the causal mask and the backward pass that the paper leaves out):
///   forward    ONE all-gather of K and of V, key/value heads only, so that grouped heads make it small; rank t's queries attend to all keys that they may see
///   backward   K and V gathered again (or kept: <see cref="KeepsKeysAndValues"/>); dK, dV for the whole length in fp32, summed to their owners by a reduce-scatter
/// Wire, sent per rank with C of N tokens: forward (W-1) B C Hk (D+E); backward the same again unless kept, and B (N-C) Hk (D+E) in fp32.
/// Contiguous chunks make causal work uneven, the last rank about twice the mean. With <see cref="Balanced"/> rank r computes the query halves r and 2W-1-r instead (<see cref="BalancedPieces"/>):
/// the q pieces travel before and the o pieces after, dO and dq in backward, and all of it is counted.
/// The gather starts in Begin; the reduce-scatter starts with dq done and is waited for in the last phase.
/// </summary>
public sealed class SoftmaxAllGather : SoftmaxParallel
{
    public static SoftmaxAllGather Default { get; } = new();

    public static SoftmaxAllGather BalancedQueries { get; } = new() { Balanced = true };

    public override string Name => Balanced ? "allgather-balanced" : "allgather";

    /// <summary>Causal work is divided evenly, at the price of moving queries and outputs.</summary>
    public bool Balanced { get; init; }

    /// <summary>The gathered K and V stay until backward: memory of the whole length against a second gather.</summary>
    public bool KeepsKeysAndValues { get; init; }

    public override (long Forward, long Backward) PredictedBytesSent(SoftmaxCall call)
    {
        ArgumentNullException.ThrowIfNull(call);
        long gather = (call.Group.Size - 1) * call.KeyValueBytes(call.Tokens);
        long forward = gather;
        long backward = (KeepsKeysAndValues ? 0 : gather) + call.KeyValueGradientBytes(call.Partition.Tokens - call.Tokens);
        if (!Balanced) return (forward, backward);
        var pieces = new BalancedPieces(call);
        long sent = pieces.TokensSent(call.Group.Rank), returned = pieces.TokensReturned(call.Group.Rank);
        return (forward + call.QueryBytes(sent) + call.OutputBytes(returned), backward + call.OutputBytes(sent) + call.QueryBytes(returned));
    }

    private protected override SoftmaxExchange Start(SoftmaxCall call, Tensor k, Tensor v) => new Exchange(call, this, k, v);

    private sealed class Exchange : SoftmaxExchange
    {
        private readonly bool _keeps;
        private readonly BalancedPieces? _pieces;
        private readonly Tensor? _k; // own chunk, while the whole is not kept
        private readonly Tensor? _v;
        private readonly TokenMessage _keys;
        private readonly TokenMessage _values;
        private Tensor? _allKeys; // [B, N, Hk, D], when kept
        private Tensor? _allValues;
        private SoftmaxQueries? _queries;
        private TokenMessage? _dk;
        private TokenMessage? _dv;

        public Exchange(SoftmaxCall call, SoftmaxAllGather strategy, Tensor k, Tensor v) : base(call)
        {
            _keeps = strategy.KeepsKeysAndValues;
            _pieces = strategy.Balanced ? new BalancedPieces(call) : null;
            if (!_keeps) (_k, _v) = (Hold(k.Share()), Hold(v.Share()));
            (_keys, _values) = (Hold(TokenMessage.Gather(call, k)), Hold(TokenMessage.Gather(call, v)));
        }

        public override Tensor Finish(Tensor q)
        {
            using TokenMessage? sent = _pieces?.Send(q);
            Tensor allKeys = _keys.Take(), allValues = _values.Take();
            if (_keeps) (_allKeys, _allValues) = (Hold(allKeys.Share()), Hold(allValues.Share()));
            using (allKeys)
            using (allValues)
            {
                _queries = Hold(new SoftmaxQueries(Call, sent?.Take() ?? q.Share(), _pieces?.ComputedBy(Call.Group.Rank) ?? [Call.Chunk(Call.Group.Rank)]));
                _queries.Attend(allKeys, allValues, Call.Sequence);
            }
            return AtHome(_queries.Output());
        }

        public override Tensor BackwardFinish(Tensor dO, bool continues)
        {
            using TokenMessage? keys = _keeps ? null : TokenMessage.Gather(Call, _k!), values = _keeps ? null : TokenMessage.Gather(Call, _v!);
            using TokenMessage? sent = _pieces?.Send(dO);
            _queries!.StartBackward(sent?.Take() ?? dO.Share());
            using Tensor allKeys = keys?.Take() ?? _allKeys!.Share(), allValues = values?.Take() ?? _allValues!.Share();
            using Tensor dk = GradientSum(allKeys.Shape), dv = GradientSum(allValues.Shape);
            _queries.AddGradients(allKeys, allValues, Call.Sequence, dk, dv);
            if (continues) (_dk, _dv) = (Hold(TokenMessage.ReduceScatter(Call, dk)), Hold(TokenMessage.ReduceScatter(Call, dv)));
            return AtHome(_queries.QueryGradient());
        }

        public override (Tensor Key, Tensor Value) BackwardBegin() => (Call.Round(_dk!.Take()), Call.Round(_dv!.Take()));

        /// <summary>What was computed for this rank's queries or elsewhere for its tokens, at their owner.</summary>
        private Tensor AtHome(Tensor computed)
        {
            if (_pieces is null) return computed;
            using (computed) return _pieces.TakeReturned(_pieces.Return(computed));
        }
    }
}
