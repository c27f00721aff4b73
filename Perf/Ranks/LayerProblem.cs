using LaspNative.Autograd;
using LaspNative.Collectives;
using LaspNative.Model;
using LaspNative.Runtime;

namespace LaspNative.Perf;

/// <summary>
/// A linear-attention layer of Linear-Llama3-1B with its projections and output gate over the ranks: what hides the messages in a model. Its operators are judged by other rows;
/// here the results with one strategy must be the bits of another's.
/// </summary>
internal sealed class LayerProblem : IDisposable
{
    private readonly RankContext _rank;
    private readonly Meeting _meeting;
    private readonly SequencePartition _partition;
    private readonly ModelParameters _parameters;
    private readonly LinearAttentionLayer _layer;
    private readonly Tensor _x; // [1, C, hidden]
    private readonly Tensor _dy;
    private readonly Variable _trigger;

    public LayerProblem(RankContext rank, Meeting meeting, int tokens)
    {
        (_rank, _meeting, _partition) = (rank, meeting, new SequencePartition(tokens, rank.Size));
        LinearLlamaConfig config = Preset.Find("linear-llama3-1b").Config with { OutputGate = true, Decay = DecayRule.Lightning };
        _parameters = new ModelParameters(rank.Device, DType.BF16, seed: 1, config.InitializerRange);
        _layer = new LinearAttentionLayer(config, 0, "layer.", _parameters, rank.Device, DType.BF16);
        Shape shape = [1, _partition.Length(rank.Rank), config.HiddenSize];
        _x = RandomTensors.Normal(rank.Device, shape, 1 + rank.Rank);
        _dy = RandomTensors.Normal(rank.Device, shape, 11 + rank.Rank);
        _trigger = Variable.Parameter(Tensor.Zeros([1], DType.F32, rank.Device));
    }

    public void ForwardBackward(SequenceParallel strategy, ICommunicator group) => Run(strategy, group, (_, _) => { });

    /// <summary>How far y and dx are from those of another strategy, on the worst rank.</summary>
    public double Error(SequenceParallel strategy, SequenceParallel other, ICommunicator group)
    {
        double[][] first = [], second = [];
        Run(strategy, group, (y, dx) => first = [y.ToDoubles(), dx.ToDoubles()]);
        Run(other, group, (y, dx) => second = [y.ToDoubles(), dx.ToDoubles()]);
        return _meeting.Share(_rank, Heads.RelativeError(first, second)).Max();
    }

    private void Run(SequenceParallel strategy, ICommunicator group, Action<Tensor, Tensor> look)
    {
        (Variable x, Source dx) = Source.Of(_x, _trigger);
        using (dx)
        using (x)
        {
            using Variable y = _layer.Forward(x, new SequenceContext(group, strategy, SoftmaxParallel.All[0], _partition));
            using Tensor output = y.Value.Share();
            y.Backward(_dy);
            look(output, dx.Gradient!);
        }
    }

    public void Dispose()
    {
        _layer.Dispose();
        foreach (NamedParameter parameter in _parameters.All) parameter.Variable.Dispose();
        _x.Dispose();
        _dy.Dispose();
        _trigger.Dispose();
    }
}
