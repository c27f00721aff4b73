using LaspNative.Autograd;
using LaspNative.Collectives;
using LaspNative.Runtime;

namespace LaspNative.Perf;

/// <summary>
/// Linear attention with a decay per head over the ranks, B = 1, H = 16, D = E = 128: every rank has its chunk of one sequence. The results of the last head of the whole sequence, on all ranks together,
/// are compared with fp64.
/// </summary>
internal sealed class OperatorProblem : IDisposable
{
    public const string Shape = "B=1 H=16 D=E=128 bf16, per-head decay";
    private const int HeadCount = 16;
    private const int Width = 128;
    private readonly RankContext _rank;
    private readonly Meeting _meeting;
    private readonly int _tokens;
    private readonly Tensor[] _inputs; // q, k, v, dO of this rank's chunk, [1, C, H, D]
    private readonly Variable[] _constants;
    private readonly Variable _decay;
    private readonly Variable _trigger;
    private readonly double[] _slopes = [.. Enumerable.Range(0, HeadCount).Select(h => -Math.Pow(2, -8.0 * (h + 1) / HeadCount))];
    private double[][]? _sequence; // q, k, v, dO of the last head, on rank 0
    private LinearReference? _reference;

    public OperatorProblem(RankContext rank, Meeting meeting, int tokens)
    {
        (_rank, _meeting, _tokens) = (rank, meeting, tokens);
        Runtime.Shape shape = [1, tokens / rank.Size, HeadCount, Width];
        _inputs = [.. Enumerable.Range(0, 4).Select(i => RandomTensors.Normal(rank.Device, shape, (10 * rank.Rank) + i + 1))];
        _constants = [.. _inputs.Take(3).Select(t => Variable.Constant(t.Share()))];
        _decay = Variable.Constant(Tensor.FromSpan(Array.ConvertAll(_slopes, x => (float)x), [HeadCount], rank.Device));
        _trigger = Variable.Parameter(Tensor.Zeros([1], DType.F32, rank.Device));
    }

    public void Forward(SequenceParallel strategy, ICommunicator group)
    {
        using Variable o = LinearAttention.Apply(_constants[0], _constants[1], _constants[2], _decay, group, strategy);
    }

    public void ForwardBackward(SequenceParallel strategy, ICommunicator group) => RunBackward(strategy, group, (_, _) => { });

    /// <summary>The worst relative error of o, dq, dk, dv, the same on every rank.</summary>
    public double Error(SequenceParallel strategy, ICommunicator group)
    {
        int[] head = [HeadCount - 1];
        double[][] own = [];
        RunBackward(strategy, group, (o, gradients) => own = [Heads.Of(o, head)[0], .. gradients.Select(g => Heads.Of(g, head)[0])]);
        double[][] results = Join(own);
        _sequence ??= Join([.. _inputs.Select(t => Heads.Of(t, head)[0])]);
        double error = 0;
        if (_rank.Rank == 0)
        {
            _reference ??= LinearReference.Of(new HeadInputs(_sequence[0], _sequence[1], _sequence[2], _sequence[3], [(double)(float)_slopes[^1]], _tokens, Width, 1 / Math.Sqrt(Width)));
            double[][] expected = [_reference.Output, _reference.Query, _reference.Key, _reference.Value];
            foreach ((double[] actual, double[] right) in results.Zip(expected))
            {
                double e = Heads.RelativeError([actual], [right]);
                if (!(e <= error)) error = e;
            }
        }
        return _meeting.Share(_rank, error)[0];
    }

    private void RunBackward(SequenceParallel strategy, ICommunicator group, Action<Tensor, IEnumerable<Tensor>> look)
    {
        (Variable q, Source dq) = Source.Of(_inputs[0], _trigger);
        (Variable k, Source dk) = Source.Of(_inputs[1], _trigger);
        (Variable v, Source dv) = Source.Of(_inputs[2], _trigger);
        using (dq)
        using (dk)
        using (dv)
        {
            using (q)
            using (k)
            using (v)
            using (Variable o = LinearAttention.Apply(q, k, v, _decay, group, strategy))
            {
                using Tensor output = o.Value.Share();
                o.Backward(_inputs[3]);
                look(output, [dq.Gradient!, dk.Gradient!, dv.Gradient!]);
            }
        }
    }

    /// <summary>Chunks of single heads as whole sequences, on rank 0; elsewhere nothing.</summary>
    private double[][] Join(double[][] own)
    {
        double[][][] all = _meeting.Share(_rank, own);
        return _rank.Rank != 0 ? [] : [.. Enumerable.Range(0, own.Length).Select(i => all.SelectMany(r => r[i]).ToArray())];
    }

    public void Dispose()
    {
        foreach (Variable constant in _constants) constant.Dispose();
        foreach (Tensor input in _inputs) input.Dispose();
        _decay.Dispose();
        _trigger.Dispose();
    }
}
