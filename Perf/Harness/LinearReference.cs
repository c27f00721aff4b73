using LaspNative.Runtime;
using LaspNative.Runtime.Cpu;

namespace LaspNative.Perf;

/// <summary>Inputs of one head: q, k, dO [N, D|E], and the log decay as the backends take it: one number, [N] or [N, D], or none.</summary>
internal sealed record HeadInputs(double[] Q, double[] K, double[] V, double[] OutputGradient, double[]? Decay, int Tokens, int Width, double Scale);

/// <summary>
/// One head of linear attention and its gradients in fp64, by the CPU backend, which the tests hold to the naive definition. The sequence is cut into segments that run
/// side by side as a batch: each segment is the pair (A, M), and Horner's rule gives the state that enters it and the gradient that leaves it.
/// </summary>
internal sealed class LinearReference : IDisposable
{
    private const int MostSegments = 32;
    private readonly CpuDevice _cpu;
    private readonly List<Tensor> _owned = [];

    private LinearReference(CpuDevice cpu) => _cpu = cpu;

    public double[] Output { get; private set; } = [];

    /// <summary>M: the state that the whole sequence leaves.</summary>
    public double[] State { get; private set; } = [];

    /// <summary>dM: the gradient of the state that enters the sequence.</summary>
    public double[] StateGradient { get; private set; } = [];

    public double[] Query { get; private set; } = [];

    public double[] Key { get; private set; } = [];

    public double[] Value { get; private set; } = [];

    /// <summary>Empty for a decay that is not learned: none, or per head.</summary>
    public double[] Decay { get; private set; } = [];

    public static LinearReference Of(HeadInputs inputs)
    {
        using var cpu = new CpuDevice(Environment.ProcessorCount);
        using var reference = new LinearReference(cpu);
        reference.Compute(inputs);
        return reference;
    }

    private void Compute(HeadInputs x)
    {
        IBackend backend = _cpu.Backend;
        int segments = Enumerable.Range(1, MostSegments).Last(s => x.Tokens % s == 0), tokens = x.Tokens / segments, width = x.Width;
        Shape rows = [segments, tokens, 1, width];
        Tensor q = New(x.Q, rows), k = New(x.K, rows), v = New(x.V, rows), dO = New(x.OutputGradient, rows);
        Tensor? g = x.Decay is null ? null : New(x.Decay, x.Decay.Length == 1 ? [1] : x.Decay.Length == x.Tokens ? [segments, tokens, 1] : rows);
        Tensor factors = New(g is { Shape.Rank: 4 } ? [segments, 1, width] : [segments, 1]);
        backend.RunDecay(g, tokens, factors);

        Tensor left = New([segments, 1, width, width]), leftGradient = New(left.Shape), result = New(rows), second = New(rows);
        backend.LinearAttentionState(k, v, g, left);
        backend.LinearAttentionBackwardState(q, dO, g, x.Scale, leftGradient);
        (Tensor entering, State) = Combine(left, factors, step: 1);
        (Tensor leaving, StateGradient) = Combine(leftGradient, factors, step: -1);

        backend.LinearAttention(q, k, v, g, entering, x.Scale, result);
        Output = result.ToDoubles();
        backend.LinearAttentionBackwardQuery(k, v, dO, g, entering, x.Scale, result);
        Query = result.ToDoubles();
        backend.LinearAttentionBackwardKeyValue(q, k, v, dO, g, leaving, x.Scale, result, second);
        (Key, Value) = (result.ToDoubles(), second.ToDoubles());
        if (g is not { Shape.Rank: > 1 }) return;
        Tensor dg = New(g.Shape);
        backend.LinearAttentionBackwardDecay(q, k, v, dO, g, entering, leaving, x.Scale, dg);
        Decay = dg.ToDoubles();
    }

    /// <summary>The state at the near edge of every segment, coming from the first (step 1) or the last (step -1), and the one behind the far end.</summary>
    private (Tensor AtEdges, double[] Final) Combine(Tensor states, Tensor factors, int step)
    {
        int segments = (int)states.Shape[0], first = step > 0 ? 0 : segments - 1;
        Tensor edges = New(states.Shape), final = New([1, 1, states.Shape[2], states.Shape[3]]);
        for (int s = 0; s < segments; s++)
        {
            using Tensor edge = edges.Slice(s, 1);
            _cpu.Backend.CombineStates(states, factors, first, count: step > 0 ? s : segments - 1 - s, step, initial: null, edge);
        }
        _cpu.Backend.CombineStates(states, factors, first, segments, step, initial: null, final);
        return (edges, final.ToDoubles());
    }

    private Tensor New(double[] values, Shape shape)
    {
        Tensor tensor = Tensor.FromSpan(values, shape, _cpu);
        _owned.Add(tensor);
        return tensor;
    }

    private Tensor New(Shape shape)
    {
        Tensor tensor = Tensor.Empty(shape, DType.F64, _cpu);
        _owned.Add(tensor);
        return tensor;
    }

    public void Dispose() => _owned.ForEach(t => t.Dispose());
}
