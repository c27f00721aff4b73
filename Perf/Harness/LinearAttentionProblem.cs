using LaspNative.Runtime;

namespace LaspNative.Perf;

/// <summary>The kinds of log decay: none, [H], [1, N, H], [1, N, H, D]. The last two are learned, so their gradient belongs to the backward pass.</summary>
internal enum DecayKind
{
    None,
    Head,
    Token,
    Channel,
}

/// <summary>
/// Linear attention of one shape, B = 1 and E = D: forward, forward and backward, and each pass alone. Whole groups of heads are compared with fp64: half of them where the sequence is short,
/// the last where it is long. The floor counts every tensor once: forward q, k, v, o; with backward 11, and the decay and its gradient where they are as long as the sequence.
/// </summary>
internal sealed class LinearAttentionProblem : Problem
{
    private const long RotateBytes = 256L << 20;
    private const int CheckedHeadTokens = 65_536;
    private readonly DecayKind _kind;
    private readonly int _tokens;
    private readonly int _heads;
    private readonly int _keyHeads;
    private readonly int _width;
    private readonly double _scale;
    private readonly int[] _checked; // key heads
    private Tensor[][] _sets = [];
    private Tensor? _decay, _dDecay;
    private Tensor _o = null!, _dq = null!, _dk = null!, _dv = null!, _state = null!, _dState = null!;
    private LinearReference[]? _references;

    /// <param name="group">Query heads that share a key head.</param>
    public LinearAttentionProblem(DecayKind kind, int tokens, int heads = 16, int width = 128, int group = 1)
    {
        (_kind, _tokens, _heads, _keyHeads, _width, _scale) = (kind, tokens, heads, heads / group, width, 1 / Math.Sqrt(width));
        int count = Math.Clamp(CheckedHeadTokens / tokens / group, 1, _keyHeads);
        _checked = [.. Enumerable.Range(0, count).Select(i => _keyHeads - 1 - (i * _keyHeads / count))];
        Rows = [.. MakeRows()];
    }

    public override IReadOnlyList<Row> Rows { get; }

    private int Group => _heads / _keyHeads;

    /// <summary>The query heads of the key heads that are compared, group by group.</summary>
    private int[] CheckedQueries => [.. _checked.SelectMany(h => Enumerable.Range(h * Group, Group))];

    private bool Learned => _kind is DecayKind.Token or DecayKind.Channel;

    private IEnumerable<Row> MakeRows()
    {
        long tensor = 2L * _tokens * _heads * _width, keys = tensor / Group, decay = _kind switch { DecayKind.Token => 4L * _tokens * _heads, DecayKind.Channel => 2 * tensor, _ => 0 };
        yield return Line("fwd", Forward, () => Worst((_o, r => r.Output))) with { FloorBytes = (2 * (tensor + keys)) + decay, TellsMemory = true };
        yield return Line("fwd+bwd", ForwardBackward, () => Math.Max(Worst((_o, r => r.Output), (_dq, r => r.Query), (_dk, r => r.Key), (_dv, r => r.Value)), WorstDecay())) with { FloorBytes = (5 * tensor) + (6 * keys) + (3 * decay), TellsMemory = true };
        yield return Line("state", State, () => WorstState(_state, r => r.State)) with { FloorBytes = (2 * keys) + decay };
        yield return Line("dstate", BackwardState, () => WorstState(_dState, r => r.StateGradient)) with { FloorBytes = (2 * tensor) + decay };
        yield return Line("dq", BackwardQuery, () => Worst((_dq, r => r.Query))) with { FloorBytes = (2 * (tensor + keys)) + decay };
        yield return Line("dk,dv", BackwardKeyValue, () => Worst((_dk, r => r.Key), (_dv, r => r.Value))) with { FloorBytes = (2 * tensor) + (4 * keys) + decay };
        if (Learned) yield return Line("dg", BackwardDecay, WorstDecay) with { FloorBytes = (2 * (tensor + keys)) + (2 * decay) };

        Row Line(string what, Action<int> call, Func<double> worst) => new(
            $"linear {_kind.ToString().ToLowerInvariant()} {what} N={_tokens}{(_width == 128 ? "" : $" D={_width}")}{Keys}", $"B=1 H={_heads}{Keys} D=E={_width} bf16", call, () => Checked(call, worst));
    }

    private string Keys => Group == 1 ? "" : $" Hk={_keyHeads}";

    protected override void Allocate()
    {
        Shape shape = [1, _tokens, _heads, _width], keyShape = [1, _tokens, _keyHeads, _width], state = [1, _heads, _width, _width];
        int sets = (int)Math.Clamp(RotateBytes / (2 * shape.Count), 1, 8);
        Shape[] shapes = [shape, keyShape, keyShape, shape];
        _sets = [.. Enumerable.Range(0, sets).Select(s => shapes.Select((x, i) => Random(x, (10 * s) + i + 1)).ToArray())];
        _decay = _kind switch
        {
            DecayKind.None => null,
            DecayKind.Head => Own(Tensor.FromSpan(Enumerable.Range(0, _heads).Select(h => -(float)Math.Pow(2, -8.0 * (h + 1) / _heads)).ToArray(), [_heads], Device)),
            DecayKind.Token => Own(RandomTensors.LogDecays(Device, [1, _tokens, _heads], 0.1, 7)),
            _ => Own(RandomTensors.LogDecays(Device, shape, 0.1, 7)),
        };
        _dDecay = Learned ? Empty(_decay!.Shape, DType.F32) : null;
        (_o, _dq, _dk, _dv) = (Empty(shape, DType.BF16), Empty(shape, DType.BF16), Empty(keyShape, DType.BF16), Empty(keyShape, DType.BF16));
        (_state, _dState) = (Empty(state, DType.F32), Empty(state, DType.F32));
    }

    private (Tensor Q, Tensor K, Tensor V, Tensor DO) Inputs(int i) => _sets[i % _sets.Length] is [var q, var k, var v, var dO] ? (q, k, v, dO) : throw new InvalidOperationException("a set holds four tensors");

    private void State(int i) => Backend.LinearAttentionState(Inputs(i).K, Inputs(i).V, _decay, _state);

    private void BackwardState(int i) => Backend.LinearAttentionBackwardState(Inputs(i).Q, Inputs(i).DO, _decay, _scale, _dState);

    private void Forward(int i)
    {
        (Tensor q, Tensor k, Tensor v, _) = Inputs(i);
        Backend.LinearAttention(q, k, v, _decay, null, _scale, _o);
    }

    private void BackwardQuery(int i)
    {
        (_, Tensor k, Tensor v, Tensor dO) = Inputs(i);
        Backend.LinearAttentionBackwardQuery(k, v, dO, _decay, null, _scale, _dq);
    }

    private void BackwardKeyValue(int i)
    {
        (Tensor q, Tensor k, Tensor v, Tensor dO) = Inputs(i);
        Backend.LinearAttentionBackwardKeyValue(q, k, v, dO, _decay, null, _scale, _dk, _dv);
    }

    private void BackwardDecay(int i)
    {
        (Tensor q, Tensor k, Tensor v, Tensor dO) = Inputs(i);
        Backend.LinearAttentionBackwardDecay(q, k, v, dO, _decay!, null, null, _scale, _dDecay!);
    }

    /// <summary>As a layer on one rank runs it: the segments' states are found once per direction and kept for the passes that need them.</summary>
    private void ForwardBackward(int i)
    {
        (Tensor q, Tensor k, Tensor v, Tensor dO) = Inputs(i);
        using Tensor? entering = Segments(), leaving = _kind == DecayKind.Channel ? null : Segments();
        if (entering is not null) Backend.LinearAttentionState(k, v, _decay, null, entering);
        Backend.LinearAttention(q, k, v, _decay, null, _scale, _o, entering);
        if (leaving is not null) Backend.LinearAttentionBackwardState(q, dO, _decay, _scale, null, leaving);
        if (_kind == DecayKind.Channel)
        {
            Backend.LinearAttentionBackward(q, k, v, dO, _decay!, null, null, _scale, _dq, _dk, _dv, _dDecay!, entering, leaving);
            return;
        }
        long count = Learned ? Backend.LinearAttentionPaths(q, k, v, dO, _decay!) : 0;
        using Tensor? paths = count > 0 ? Tensor.Empty([count], DType.F32, Device, MemoryCategory.Workspace) : null;
        Backend.LinearAttentionBackwardQuery(k, v, dO, _decay, null, _scale, _dq, entering, paths is null ? null : q, paths);
        if (Learned) Backend.LinearAttentionBackwardKeyValueDecay(q, k, v, dO, _decay!, null, null, _scale, _dk, _dv, _dDecay!, entering, leaving, paths);
        else Backend.LinearAttentionBackwardKeyValue(q, k, v, dO, _decay, null, _scale, _dk, _dv, leaving);
    }

    /// <summary>Null where the device does not cut the sequence.</summary>
    private Tensor? Segments()
    {
        long count = Backend.LinearAttentionSegments(1, _tokens, _heads, _width, _width);
        return count > 1 ? Tensor.Empty([count, 1, _heads, _width, _width], DType.F32, Device, MemoryCategory.States) : null;
    }

    private double Checked(Action<int> call, Func<double> worst)
    {
        RunPoisoned(call, _o, _dq, _dk, _dv, _state, _dState, _dDecay);
        return worst();
    }

    private double Worst(params ReadOnlySpan<(Tensor Result, Func<LinearReference, double[]> Expected)> results)
    {
        double worst = 0;
        foreach ((Tensor result, Func<LinearReference, double[]> expected) in results)
        {
            RequireFinite(result);
            bool ofKeys = result.Shape[2] < _heads;
            double[][] values = [.. References.Select(expected)];
            worst = Math.Max(worst, Heads.RelativeError(Heads.Of(result, ofKeys ? _checked : CheckedQueries), ofKeys ? [.. values.Chunk(Group).Select(Sum)] : values));
        }
        return worst;

        static double[] Sum(double[][] group) => [.. Enumerable.Range(0, group[0].Length).Select(i => group.Sum(head => head[i]))];
    }

    private double WorstDecay() => Learned ? Worst((_dDecay!, r => r.Decay)) : 0;

    private double WorstState(Tensor result, Func<LinearReference, double[]> expected)
    {
        RequireFinite(result);
        return Heads.RelativeError(Heads.OfStates(result, CheckedQueries), [.. References.Select(expected)]);
    }

    /// <summary>Of the first set, one per checked query head.</summary>
    private LinearReference[] References => _references ??= ComputeReferences();

    private LinearReference[] ComputeReferences()
    {
        (Tensor q, Tensor k, Tensor v, Tensor dO) = Inputs(0);
        int[] queries = CheckedQueries;
        (double[][] qs, double[][] ks, double[][] vs, double[][] dOs) = (Heads.Of(q, queries), Heads.Of(k, _checked), Heads.Of(v, _checked), Heads.Of(dO, queries));
        double[][]? decays = _decay is null ? null : _decay.Shape.Rank > 1 ? Heads.Of(_decay, queries) : [.. queries.Select(h => (double[])[_decay.ToDoubles()[h]])];
        return [.. queries.Select((_, i) => LinearReference.Of(new HeadInputs(qs[i], ks[i / Group], vs[i / Group], dOs[i], decays?[i], _tokens, _width, _scale)))];
    }
}
