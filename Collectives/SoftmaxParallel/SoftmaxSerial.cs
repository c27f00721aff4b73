using LaspNative.Runtime;

namespace LaspNative.Collectives;

/// <summary>
/// One rank holds the whole sequence: the definition that every strategy must reproduce.
///   p_ij = softmax_j(scale q_i.k_j) over the keys that i sees        o_i = sum_j p_ij v_j
///   ds_ij = p_ij (dO_i.v_j - dO_i.o_i)        dq_i = scale sum_j ds_ij k_j        dk_j = scale sum_i ds_ij q_i        dv_j = sum_i p_ij dO_i
/// No message.
/// </summary>
public sealed class SoftmaxSerial : SoftmaxParallel
{
    public static SoftmaxSerial Default { get; } = new();

    public override string Name => "serial";

    public override (long Forward, long Backward) PredictedBytesSent(SoftmaxCall call) => (0, 0);

    private protected override SoftmaxExchange Start(SoftmaxCall call, Tensor k, Tensor v) =>
        throw new LaspException($"softmax strategy serial runs on one rank, the group has {call.Group.Size}; use allgather");

    /// <summary>Also what the other strategies are in a group of one.</summary>
    internal sealed class Exchange : SoftmaxExchange
    {
        private readonly Tensor _k;
        private readonly Tensor _v;
        private SoftmaxQueries? _queries;
        private Tensor? _dk;
        private Tensor? _dv;

        public Exchange(SoftmaxCall call, Tensor k, Tensor v) : base(call) => (_k, _v) = (Hold(k.Share()), Hold(v.Share()));

        public override Tensor Finish(Tensor q)
        {
            _queries = Hold(new SoftmaxQueries(Call, q.Share(), Call.Sequence));
            _queries.Attend(_k, _v, Call.Sequence);
            return _queries.Output();
        }

        public override Tensor BackwardFinish(Tensor dO, bool continues)
        {
            (_dk, _dv) = (Hold(GradientSum(_k.Shape)), Hold(GradientSum(_v.Shape)));
            _queries!.StartBackward(dO.Share());
            _queries.AddGradients(_k, _v, Call.Sequence, _dk, _dv);
            return _queries.QueryGradient();
        }

        public override (Tensor Key, Tensor Value) BackwardBegin() => (Call.Round(_dk!.Share()), Call.Round(_dv!.Share()));
    }
}
