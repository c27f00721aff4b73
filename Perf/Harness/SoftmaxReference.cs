using LaspNative.Runtime;
using LaspNative.Runtime.Cpu;

namespace LaspNative.Perf;

/// <summary>
/// Causal softmax attention of the query heads of one key head in fp64, by the CPU backend, on windows of the sequence: a window of queries sees all keys before it and gives o, log-sum-exp and dq;
/// a window of keys is seen by all queries after it and gives dk and dv. The latter takes the log-sum-exp and delta of all queries as the GPU left them, which the former judges.
/// Arrays are q, dO [G][N, D] and k, v [N, D].
/// </summary>
internal sealed class SoftmaxReference(
    double[][] q, double[] k, double[] v, double[][] dO, double[][] logSumExp, double[][] delta, int width, double scale)
{
    private const int Window = 32;
    private readonly int _tokens = k.Length / width;

    private int[] Starts => [0, ((_tokens - Window) / 2) | 1, _tokens - Window];

    /// <summary>What one window has to say about the tensors [N, D] and [N] of a head.</summary>
    private sealed record Piece(int Head, int Start, double[] Output, double[] LogSumExp, double[] Query, double[] Key, double[] Value);

    public double ForwardError(double[][] o, double[][] rows)
    {
        Piece[] pieces = Run(QueryWindow);
        double output = Heads.RelativeError([.. pieces.Select(p => Cut(o[p.Head], p.Start, width))], [.. pieces.Select(p => p.Output)]);
        return Math.Max(output, Heads.RelativeError([.. pieces.Select(p => Cut(rows[p.Head], p.Start, 1))], [.. pieces.Select(p => p.LogSumExp)]));
    }

    public double BackwardError(double[][] dq, double[] dk, double[] dv)
    {
        Piece[] queries = Run(QueryWindow);
        double error = Heads.RelativeError([.. queries.Select(p => Cut(dq[p.Head], p.Start, width))], [.. queries.Select(p => p.Query)]);
        foreach (IGrouping<int, Piece> window in Run(KeyWindow).GroupBy(p => p.Start))
        {
            error = Math.Max(error, Heads.RelativeError([Cut(dk, window.Key, width)], [Sum(window.Select(p => p.Key))]));
            error = Math.Max(error, Heads.RelativeError([Cut(dv, window.Key, width)], [Sum(window.Select(p => p.Value))]));
        }
        return error;
    }

    /// <summary>One window of one head per thread.</summary>
    private Piece[] Run(Func<int, int, Piece> window)
    {
        (int Head, int Start)[] jobs = [.. Enumerable.Range(0, q.Length).SelectMany(h => Starts.Select(s => (h, s)))];
        var pieces = new Piece[jobs.Length];
        Parallel.For(0, jobs.Length, i => pieces[i] = window(jobs[i].Head, jobs[i].Start));
        return pieces;
    }

    private Piece QueryWindow(int head, int start)
    {
        using var cpu = new CpuDevice(1);
        int keys = start + Window;
        using Tensor queries = New(cpu, Cut(q[head], start, width), width), gradients = New(cpu, Cut(dO[head], start, width), width);
        using Tensor seen = New(cpu, k[..(keys * width)], width), values = New(cpu, v[..(keys * width)], width), ranges = Causal(cpu, start, Window);
        using Tensor o = Zeros(cpu, Window, width), rows = Tensor.Zeros([1, Window, 1], DType.F64, cpu), deltas = Tensor.Zeros([1, Window, 1], DType.F64, cpu);
        using Tensor dq = Zeros(cpu, Window, width), dk = Zeros(cpu, keys, width), dv = Zeros(cpu, keys, width);
        cpu.Backend.SoftmaxAttention(queries, seen, values, ranges, 0, scale, o, rows);
        cpu.Backend.SoftmaxDelta(o, gradients, deltas);
        cpu.Backend.SoftmaxAttentionBackward(queries, seen, values, gradients, rows, deltas, ranges, 0, scale, dq, dk, dv);
        return new Piece(head, start, o.ToDoubles(), rows.ToDoubles(), dq.ToDoubles(), [], []);
    }

    private Piece KeyWindow(int head, int start)
    {
        using var cpu = new CpuDevice(1);
        int queries = _tokens - start;
        using Tensor seeing = New(cpu, q[head][(start * width)..], width), gradients = New(cpu, dO[head][(start * width)..], width), ranges = Causal(cpu, start, queries);
        using Tensor keys = New(cpu, Cut(k, start, width), width), values = New(cpu, Cut(v, start, width), width);
        using Tensor rows = Tensor.FromSpan(logSumExp[head][start..], [1, queries, 1], cpu), deltas = Tensor.FromSpan(delta[head][start..], [1, queries, 1], cpu);
        using Tensor dq = Zeros(cpu, queries, width), dk = Zeros(cpu, Window, width), dv = Zeros(cpu, Window, width);
        cpu.Backend.SoftmaxAttentionBackward(seeing, keys, values, gradients, rows, deltas, ranges, start, scale, dq, dk, dv);
        return new Piece(head, start, [], [], [], dk.ToDoubles(), dv.ToDoubles());
    }

    private static double[] Cut(double[] rows, int start, int width) => rows[(start * width)..((start + Window) * width)];

    private static double[] Sum(IEnumerable<double[]> parts) => parts.Aggregate((a, b) => [.. a.Zip(b, (x, y) => x + y)]);

    private static Tensor New(CpuDevice cpu, double[] rows, int width) => Tensor.FromSpan(rows, [1, rows.Length / width, 1, width], cpu);

    private static Tensor Zeros(CpuDevice cpu, int rows, int width) => Tensor.Zeros([1, rows, 1, width], DType.F64, cpu);

    private static Tensor Causal(CpuDevice cpu, int first, int count)
    {
        long[] ranges = [.. Enumerable.Range(first, count).SelectMany(i => (long[])[0, i])];
        return Tensor.FromSpan(ranges, [count, 2], cpu);
    }
}
