using LaspNative.Runtime;
using LaspNative.Tests.Oracles;

namespace LaspNative.Tests.Backends;

/// <summary>Softmax attention: one row runs all its ops (o, logSumExp, delta, dq, dk, dv) on one problem, the keys given in one or several blocks whose partial results merge.</summary>
public static partial class OpCases
{
    /// <param name="Mask">What the ranges stand for, for the row's name.</param>
    /// <param name="Ranges">Two global key indices per query; their number says how many queries there are.</param>
    /// <param name="Blocks">Keys of each block, one behind the other.</param>
    private sealed record SoftmaxShape(string Mask, long[] Ranges, int[] Blocks, int D, int E, int B = 1, int H = 2, int Hk = 2, long FirstKey = 0)
    {
        public int C => Ranges.Length / 2;

        public int M => Blocks.Sum();

        public double Scale => 1 / Math.Sqrt(D);

        public string Name => $"softmax attention {Mask} C={C} M={string.Join('+', Blocks)} D={D} E={E} B={B} H={H} Hk={Hk}";
    }

    private static readonly long[] s_bounds = [0, 3, 4, 41, 42, 120, 260, 1000];

    private static readonly SoftmaxShape[] s_softmax =
    [
        new("causal", SoftmaxAttentionOracle.Causal(0, 1), [1], 5, 7, B: 2, H: 4),
        new("causal", SoftmaxAttentionOracle.Causal(0, 65), [65], 64, 64, H: 4),
        new("causal", SoftmaxAttentionOracle.Causal(0, 130), [130], 128, 96, Hk: 1),
        new("causal", SoftmaxAttentionOracle.Causal(0, 300), [300], 16, 16, B: 2, H: 4),
        new("causal at 37", SoftmaxAttentionOracle.Causal(37, 63), [100], 5, 7, B: 2, H: 3, Hk: 1),
        new("causal at 101", SoftmaxAttentionOracle.Causal(101, 99), [70, 1, 129], 64, 64, H: 4),
        new("causal at 150", SoftmaxAttentionOracle.Causal(150, 129), [200], 16, 16, FirstKey: 13),
        new("causal one query", SoftmaxAttentionOracle.Causal(300, 1), [150, 151], 128, 128, H: 4, Hk: 1),
        new("causal", SoftmaxAttentionOracle.Causal(0, 385), [385], 128, 128, H: 4, Hk: 2),
        new("causal", SoftmaxAttentionOracle.Causal(0, 129), [129], 64, 64, B: 2, H: 4),
        new("causal at 200", SoftmaxAttentionOracle.Causal(200, 170), [127, 130, 113], 128, 128, Hk: 1),
        new("documents", SoftmaxAttentionOracle.Documents(0, 300, s_bounds), [300], 128, 128, Hk: 1),
        new("some see none", [.. SoftmaxAttentionOracle.Causal(0, 20), .. Spans(70, 0, 0), .. SoftmaxAttentionOracle.Causal(90, 60)], [40, 110], 128, 128, FirstKey: 10),
        new("full", Everything(97), [257], 64, 80, Hk: 1),
        new("full", Everything(64), [64, 65], 128, 96, B: 2),
        new("full wide", Everything(33), [70], 256, 200, H: 1, Hk: 1),
        new("documents", SoftmaxAttentionOracle.Documents(0, 130, s_bounds), [130], 16, 16, H: 4),
        new("documents at 39", SoftmaxAttentionOracle.Documents(39, 250, s_bounds), [100, 189], 64, 64, Hk: 1),
        new("documents both ways", SoftmaxAttentionOracle.Documents(2, 200, s_bounds, causal: false), [128, 128, 4], 5, 7, B: 2, H: 4),
        new("zigzag", [.. SoftmaxAttentionOracle.Causal(50, 70), .. SoftmaxAttentionOracle.Causal(330, 70)], [400], 16, 16, H: 4),
        new("two far spans", [.. Spans(40, 3, 30), .. Spans(40, 600, 630)], [640], 5, 7, H: 4),
        new("some see none", [.. SoftmaxAttentionOracle.Causal(0, 20), .. Spans(30, 0, 0), .. SoftmaxAttentionOracle.Causal(70, 60)], [40, 60], 64, 64, FirstKey: 10),
        new("none visible", SoftmaxAttentionOracle.Causal(0, 70), [65], 16, 16, H: 4, FirstKey: 70),
        new("empty ranges", Spans(33, 5, 4), [65], 5, 7),
        new("no key", SoftmaxAttentionOracle.Causal(0, 5), [0], 16, 16),
        new("no query", [], [5], 16, 16),
    ];

    private static long[] Everything(int queries) => Spans(queries, 0, long.MaxValue);

    private static long[] Spans(int queries, long first, long last) => [.. Enumerable.Repeat((long[])[first, last], queries).SelectMany(r => r)];

    private static void AddSoftmaxAttention()
    {
        foreach (SoftmaxShape shape in s_softmax) s_rows[shape.Name] = () => Softmax(shape);
        AddSoftmaxOfExtremes();
    }

    private static OpCase Softmax(SoftmaxShape s)
    {
        (Shape q, Shape o, Shape rows) = ([s.B, s.C, s.H, s.D], [s.B, s.C, s.H, s.E], [s.B, s.C, s.H]);
        bool merged = s.Blocks.Length > 1;
        return new OpCase
        {
            Operands =
            [
                T("q", q, TestData.Heads(s.B * s.C, s.H, s.D, 1)), T("dO", o, TestData.Heads(s.B * s.C, s.H, s.E, 4)),
                new("ranges", [s.C, 2], OperandKind.I64, Array.ConvertAll(s.Ranges, x => (double)x)),
                merged ? Acc("o", o) : T("o", o), Acc("logSumExp", rows), Acc("delta", rows), Acc("dq", q, TestData.Normal(q.Count, 5)),
                .. merged ? (Operand[])[Acc("partial", o), Acc("partialLog", rows)] : [],
                .. s.Blocks.SelectMany((keys, n) => KeyOperands(s, keys, n)),
            ],
            Call = (backend, t) => RunSoftmax(s, backend, t),
            Oracle = values =>
            {
                SoftmaxAttentionOracle problem = Problem(s, values);
                SoftmaxAttentionOracle.Values forward = problem.Forward();
                SoftmaxAttentionOracle.Gradients g = problem.Backward(values("dO"));
                double[] products = [.. forward.Output.Zip(values("dO"), (x, y) => x * y)];
                return SoftmaxResults(s, values, forward.Output, forward.LogSumExp, [.. products.Chunk(s.E).Select(row => row.Sum())], g.Query, g.Key, g.Value);
            },
            NaiveBf16 = values =>
            {
                NaiveBf16SoftmaxAttention.Results r = new NaiveBf16SoftmaxAttention(Problem(s, values)).Run(values("dO"));
                return SoftmaxResults(s, values, r.Output, r.LogSumExp, r.Delta, r.Query, r.Key, r.Value);
            },
        };
    }

    private static Operand[] KeyOperands(SoftmaxShape s, int keys, int n)
    {
        (Shape k, Shape v) = ([s.B, keys, s.Hk, s.D], [s.B, keys, s.Hk, s.E]);
        return
        [
            T($"k{n}", k, TestData.Heads(s.B * keys, s.Hk, s.D, 2, n)), T($"v{n}", v, TestData.Heads(s.B * keys, s.Hk, s.E, 3, n)),
            Acc($"dk{n}", k, TestData.Normal(k.Count, 6 + n)), Acc($"dv{n}", v, TestData.Normal(v.Count, 9 + n)),
        ];
    }

    private static void RunSoftmax(SoftmaxShape s, IBackend backend, Func<string, Tensor> t)
    {
        long[] firstKeys = new long[s.Blocks.Length];
        for (int n = 0; n < s.Blocks.Length; n++) firstKeys[n] = n == 0 ? s.FirstKey : firstKeys[n - 1] + s.Blocks[n - 1];
        backend.SoftmaxAttention(t("q"), t("k0"), t("v0"), t("ranges"), firstKeys[0], s.Scale, t("o"), t("logSumExp"));
        for (int n = 1; n < s.Blocks.Length; n++)
        {
            backend.SoftmaxAttention(t("q"), t($"k{n}"), t($"v{n}"), t("ranges"), firstKeys[n], s.Scale, t("partial"), t("partialLog"));
            backend.MergeSoftmax(t("partial"), t("partialLog"), t("o"), t("logSumExp"));
        }
        backend.SoftmaxDelta(t("o"), t("dO"), t("delta"));
        for (int n = 0; n < s.Blocks.Length; n++)
            backend.SoftmaxAttentionBackward(t("q"), t($"k{n}"), t($"v{n}"), t("dO"), t("logSumExp"), t("delta"), t("ranges"), firstKeys[n], s.Scale, t("dq"), t($"dk{n}"), t($"dv{n}"));
    }

    private static SoftmaxAttentionOracle Problem(SoftmaxShape s, Func<string, double[]> values) => new(s.B, s.C, s.M, s.H, s.Hk, s.D, s.E)
    {
        Q = values("q"),
        K = JoinBlocks(s, s.Hk * s.D, n => values($"k{n}")),
        V = JoinBlocks(s, s.Hk * s.E, n => values($"v{n}")),
        Ranges = s.Ranges,
        FirstKey = s.FirstKey,
        Scale = s.Scale,
    };

    /// <summary>[B, M, width] from the blocks [B, Mn, width].</summary>
    private static double[] JoinBlocks(SoftmaxShape s, int width, Func<int, double[]> block) =>
        [.. Enumerable.Range(0, s.B).SelectMany(b => s.Blocks.SelectMany((keys, n) => block(n)[(b * keys * width)..((b + 1) * keys * width)]))];

    /// <summary>Block <paramref name="n"/> [B, Mn, width] of [B, M, width], on top of what it held before.</summary>
    private static double[] Block(SoftmaxShape s, int n, int width, double[] joined, double[] before)
    {
        int keys = s.Blocks[n], start = s.Blocks.Take(n).Sum();
        double[] own = [.. Enumerable.Range(0, s.B).SelectMany(b => joined[((b * s.M + start) * width)..((b * s.M + start + keys) * width)])];
        return ElementwiseOracle.Map(own, before, (x, y) => x + y);
    }

    private static Dictionary<string, double[]> SoftmaxResults(
        SoftmaxShape s, Func<string, double[]> values, double[] o, double[] logSumExp, double[] delta, double[] dq, double[] dk, double[] dv)
    {
        Dictionary<string, double[]> results = Results(("o", o), ("logSumExp", logSumExp), ("delta", delta), ("dq", ElementwiseOracle.Map(dq, values("dq"), (x, y) => x + y)));
        for (int n = 0; n < s.Blocks.Length; n++)
        {
            results[$"dk{n}"] = Block(s, n, s.Hk * s.D, dk, values($"dk{n}"));
            results[$"dv{n}"] = Block(s, n, s.Hk * s.E, dv, values($"dv{n}"));
        }
        return results;
    }

    /// <summary>Scores whose exponentials overflow or vanish, met in rising, falling and mixed order; the products are exact in every type.</summary>
    private static void AddSoftmaxOfExtremes()
    {
        const int M = 160, D = 3;
        (Shape q, Shape k, Shape rows) = ([1, 3, 1, D], [1, M, 1, D], [1, 3, 1]);
        double[] queries = [1, 0, 0, -1, 0, 0, 0, 1, 0];
        double[] keys = [.. Enumerable.Range(0, M).SelectMany(j => (double[])[2 * j - 100, j % 3 == 0 ? 300 : -300, 1])];
        s_rows["softmax attention of extremes"] = () => new OpCase
        {
            Operands =
            [
                T("q", q, queries), T("k", k, keys), T("v", k, TestData.Normal(k.Count, 3)), new("ranges", [3, 2], OperandKind.I64, [0, M, 0, M, 0, M]),
                Acc("o", q), Acc("logSumExp", rows),
            ],
            Call = (backend, t) => backend.SoftmaxAttention(t("q"), t("k"), t("v"), t("ranges"), 0, 1, t("o"), t("logSumExp")),
            Oracle = values =>
            {
                SoftmaxAttentionOracle.Values r = Extremes(values).Forward();
                return Results(("o", r.Output), ("logSumExp", r.LogSumExp));
            },
            NaiveBf16 = values =>
            {
                NaiveBf16SoftmaxAttention.Results r = new NaiveBf16SoftmaxAttention(Extremes(values)).Run(new double[3 * D]);
                return Results(("o", r.Output), ("logSumExp", r.LogSumExp));
            },
        };

        static SoftmaxAttentionOracle Extremes(Func<string, double[]> values) => new(1, 3, M, 1, 1, D, D)
        {
            Q = values("q"),
            K = values("k"),
            V = values("v"),
            Ranges = Everything(3),
            Scale = 1,
        };
    }
}
