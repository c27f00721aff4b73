using LaspNative.Runtime;

namespace LaspNative.Perf;

/// <summary>
/// Causal softmax attention of one shape, B = 1 and D = 128. FLOPs are counted as its peers count them: 4 N^2 D H / 2 forward, and 2.5 times that backward.
/// Compared with fp64 are windows of queries and of keys at the start, in the middle and at the end, for the query heads of the last key head (<see cref="SoftmaxReference"/>).
/// </summary>
internal sealed class SoftmaxProblem : Problem
{
    private const int Width = 128;
    private readonly int _tokens;
    private readonly int _heads;
    private readonly int _keyHeads;
    private readonly double _scale = 1 / Math.Sqrt(Width);
    private Tensor[][] _sets = [];
    private Tensor _ranges = null!, _o = null!, _logSumExp = null!, _delta = null!, _dq = null!, _dk = null!, _dv = null!;

    public SoftmaxProblem(int tokens, int heads, int keyHeads)
    {
        (_tokens, _heads, _keyHeads) = (tokens, heads, keyHeads);
        double flops = 2.0 * tokens * tokens * Width * heads;
        Rows =
        [
            Line("fwd", Forward, ForwardError) with { Flops = flops },
            Line("fwd+bwd", ForwardBackward, BackwardError) with { Flops = 3.5 * flops, TellsMemory = true },
        ];
        Row Line(string what, Action<int> call, Func<double> error) => new($"softmax {what} N={tokens} H={heads} Hk={keyHeads}", $"B=1 D={Width} bf16 causal", call, error);
    }

    public override IReadOnlyList<Row> Rows { get; }

    protected override void Allocate()
    {
        Shape q = [1, _tokens, _heads, Width], k = [1, _tokens, _keyHeads, Width], rows = [1, _tokens, _heads];
        _sets = [.. Enumerable.Range(0, 2).Select(s => (Tensor[])[Random(q, (10 * s) + 1), Random(k, (10 * s) + 2), Random(k, (10 * s) + 3), Random(q, (10 * s) + 4)])];
        long[] causal = [.. Enumerable.Range(0, _tokens).SelectMany(i => (long[])[0, i])];
        _ranges = Own(Tensor.FromSpan(causal, [_tokens, 2], Device));
        (_o, _logSumExp, _delta) = (Empty(q, DType.BF16), Empty(rows, DType.F32), Empty(rows, DType.F32));
        (_dq, _dk, _dv) = (Empty(q, DType.F32), Empty(k, DType.F32), Empty(k, DType.F32));
    }

    private void Forward(int i)
    {
        Tensor[] set = _sets[i % _sets.Length];
        Backend.SoftmaxAttention(set[0], set[1], set[2], _ranges, 0, _scale, _o, _logSumExp);
    }

    private void ForwardBackward(int i)
    {
        Forward(i);
        Tensor[] set = _sets[i % _sets.Length];
        Backend.SoftmaxDelta(_o, set[3], _delta);
        Backend.Fill(0, _dq);
        Backend.Fill(0, _dk);
        Backend.Fill(0, _dv);
        Backend.SoftmaxAttentionBackward(set[0], set[1], set[2], set[3], _logSumExp, _delta, _ranges, 0, _scale, _dq, _dk, _dv);
    }

    private double ForwardError()
    {
        RunPoisoned(Forward, _o, _logSumExp);
        RequireFinite(_o, _logSumExp);
        return Reference(gradients: false).ForwardError(Heads.Of(_o, QueryHeads), Heads.Of(_logSumExp, QueryHeads));
    }

    private double BackwardError()
    {
        RunPoisoned(ForwardBackward, _o, _logSumExp, _delta, _dq, _dk, _dv);
        RequireFinite(_o, _logSumExp, _dq, _dk, _dv);
        SoftmaxReference reference = Reference(gradients: true);
        double forward = reference.ForwardError(Heads.Of(_o, QueryHeads), Heads.Of(_logSumExp, QueryHeads));
        return Math.Max(forward, reference.BackwardError(Heads.Of(_dq, QueryHeads), Heads.Of(_dk, [_keyHeads - 1])[0], Heads.Of(_dv, [_keyHeads - 1])[0]));
    }

    /// <summary>Those that read the last key head.</summary>
    private int[] QueryHeads => [.. Enumerable.Range(_heads - (_heads / _keyHeads), _heads / _keyHeads)];

    private SoftmaxReference Reference(bool gradients)
    {
        Tensor[] set = _sets[0];
        int[] keyHead = [_keyHeads - 1];
        return new SoftmaxReference(
            Heads.Of(set[0], QueryHeads), Heads.Of(set[1], keyHead)[0], Heads.Of(set[2], keyHead)[0], Heads.Of(set[3], QueryHeads),
            gradients ? Heads.Of(_logSumExp, QueryHeads) : [], gradients ? Heads.Of(_delta, QueryHeads) : [], Width, _scale);
    }
}
