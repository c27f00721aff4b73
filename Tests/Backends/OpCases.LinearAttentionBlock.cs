using LaspNative.Runtime;
using LaspNative.Tests.Oracles;

namespace LaspNative.Tests.Backends;

/// <summary>Left products between two runs, forward and backward in one row; the decay's weights towards a run's edges; the paths of its gradient.</summary>
public static partial class OpCases
{
    private enum BlockWeights
    {
        None,
        PerHead,
        PerChannel,
    }

    private sealed record BlockShape(int C, int M, int D, int E, int B = 1, int H = 2, int Hk = 2, BlockWeights Weights = BlockWeights.None)
    {
        public string Name => $"left product C={C} M={M} D={D} E={E} B={B} H={H} Hk={Hk} weights={Weights}";
    }

    private static readonly BlockShape[] s_blocks =
    [
        new(0, 3, 16, 16),
        new(3, 0, 5, 7, Weights: BlockWeights.PerHead),
        new(1, 1, 5, 7, B: 2, H: 4, Weights: BlockWeights.PerHead),
        new(1, 65, 64, 64, Weights: BlockWeights.PerChannel),
        new(63, 2, 16, 16, B: 2, Hk: 1),
        new(64, 64, 64, 64, Weights: BlockWeights.PerHead),
        new(65, 130, 5, 7, B: 2, H: 4, Weights: BlockWeights.PerChannel),
        new(130, 65, 128, 96, Weights: BlockWeights.PerChannel),
        new(130, 200, 128, 96, Hk: 1, Weights: BlockWeights.PerHead),
        new(200, 130, 16, 16, H: 3, Hk: 1, Weights: BlockWeights.PerChannel),
        new(100, 100, 256, 256),
        new(130, 200, 64, 48, Hk: 1, Weights: BlockWeights.PerHead),
        new(129, 257, 128, 128),
        new(257, 129, 64, 128, B: 2, H: 4, Weights: BlockWeights.PerHead),
        new(257, 140, 104, 72, B: 2, H: 4, Weights: BlockWeights.PerChannel),
    ];

    private static void AddLinearAttentionBlocks()
    {
        foreach (BlockShape shape in s_blocks) s_rows[shape.Name] = () => Block(shape);
        foreach (int tokens in (int[])[0, 1, 65, 300])
        {
            foreach (bool toEnd in (bool[])[false, true])
            {
                AddDecayWeights("none", [], [2, tokens, 3], toEnd, between: tokens == 65);
                AddDecayWeights("per head", [3], [2, tokens, 3], toEnd, between: tokens != 65);
                AddDecayWeights("per token", [2, tokens, 3], [2, tokens, 3], toEnd, between: true);
                AddDecayWeights("per channel", [2, tokens, 3, 5], [2, tokens, 3, 5], toEnd, between: tokens == 65);
                foreach (int keyHeads in (int[])[4, 2])
                {
                    AddPaths("per head", [4], tokens, keyHeads, toEnd);
                    AddPaths("per token", [2, tokens, 4], tokens, keyHeads, toEnd);
                    AddPaths("per channel", [2, tokens, 4, 5], tokens, keyHeads, toEnd);
                }
            }
        }
    }

    private static OpCase Block(BlockShape s)
    {
        double scale = 1 / Math.Sqrt(s.D);
        bool weighted = s.Weights != BlockWeights.None;
        (Shape q, Shape o) = ([s.B, s.C, s.H, s.D], [s.B, s.C, s.H, s.E]);
        (Shape dk, Shape dv) = ([s.B, s.M, s.H, s.D], [s.B, s.M, s.H, s.E]);
        Shape queryWeights = s.Weights == BlockWeights.PerChannel ? q : [s.B, s.C, s.H];
        Shape keyWeights = s.Weights == BlockWeights.PerChannel ? dk : [s.B, s.M, s.H];
        double[] before = TestData.Normal(o.Count, 5), dqBefore = TestData.Normal(q.Count, 6), dkBefore = TestData.Normal(dk.Count, 7), dvBefore = TestData.Normal(dv.Count, 8);
        LinearAttentionBlockOracle Problem(Func<string, double[]> v) => new(s.B, s.C, s.M, s.H, s.Hk, s.D, s.E)
        {
            Q = v("q"),
            K = v("k"),
            V = v("v"),
            DOutput = v("dO"),
            QueryWeights = weighted ? v("queryWeights") : null,
            KeyWeights = weighted ? v("keyWeights") : null,
            PerChannel = s.Weights == BlockWeights.PerChannel,
            Scale = scale,
        };
        Dictionary<string, double[]> Added(Func<string, double[]> v, LinearAttentionBlockOracle problem)
        {
            double[] Onto(string name, double[] added) => [.. v(name).Zip(added, (x, y) => x + y)];
            LinearAttentionBlockOracle.Results r = problem.Run();
            return Results(("o", Onto("o", r.Output)), ("dq", Onto("dq", r.Query)), ("dk", Onto("dk", r.Key)), ("dv", Onto("dv", r.Value)));
        }
        return new OpCase
        {
            Operands =
            [
                T("q", q, TestData.Heads(s.B * s.C, s.H, s.D, 1)), T("k", [s.B, s.M, s.Hk, s.D], TestData.Heads(s.B * s.M, s.Hk, s.D, 2)),
                T("v", [s.B, s.M, s.Hk, s.E], TestData.Heads(s.B * s.M, s.Hk, s.E, 3)), T("dO", o, TestData.Heads(s.B * s.C, s.H, s.E, 4)),
                .. weighted ? (Operand[])[Acc("queryWeights", queryWeights, Weights(queryWeights, 9)), Acc("keyWeights", keyWeights, Weights(keyWeights, 10))] : [],
                Acc("o", o, before), Acc("dq", q, dqBefore), Acc("dk", dk, dkBefore), Acc("dv", dv, dvBefore),
            ],
            Call = (backend, t) =>
            {
                (Tensor? wq, Tensor? wk) = weighted ? (t("queryWeights"), t("keyWeights")) : ((Tensor?)null, (Tensor?)null);
                backend.LinearAttentionBlock(t("q"), t("k"), t("v"), wq, wk, scale, t("o"));
                backend.LinearAttentionBlockBackward(t("q"), t("k"), t("v"), t("dO"), wq, wk, scale, t("dq"), t("dk"), t("dv"));
            },
            Oracle = v => Added(v, Problem(v)),
            NaiveBf16 = v => Added(v, Problem(v) with { Bf16 = true }),
        };
    }

    private static double[] Weights(Shape shape, int seed) => Array.ConvertAll(TestData.Normal(shape.Count, seed), x => Math.Exp(-Math.Abs(x)));

    private static double[] LogDecays(Shape shape) => Array.ConvertAll(TestData.Normal(shape.Count, 1, 0.1), x => -Math.Abs(x));

    private static void AddDecayWeights(string kind, Shape decay, Shape weights, bool toEnd, bool between)
    {
        bool none = decay.Rank == 0;
        (int tokens, int columns) = ((int)weights[1], (int)(weights[2] * (weights.Rank == 4 ? weights[3] : 1)));
        Shape edge = weights.Rank == 4 ? [weights[0], weights[2], weights[3]] : [weights[0], weights[2]];
        s_rows[$"decay weights {kind} over {tokens} tokens to the {(toEnd ? "end" : "entry")}{(between ? " and beyond" : "")}"] = () => new OpCase
        {
            Operands =
            [
                .. none ? [] : (Operand[])[Acc("decay", decay, LogDecays(decay))],
                .. between ? (Operand[])[Acc("between", edge, Weights(edge, 2))] : [],
                Acc("weights", weights),
            ],
            Call = (backend, t) => backend.DecayWeights(none ? null : t("decay"), toEnd, between ? t("between") : null, t("weights")),
            Oracle = v => Results(("weights", [.. Enumerable.Range(0, (int)weights.Count).Select(at =>
            {
                (int row, int column) = (at / columns, at % columns);
                (int batch, int n) = (row / tokens, row % tokens);
                IEnumerable<int> crossed = toEnd ? Enumerable.Range(n + 1, tokens - 1 - n) : Enumerable.Range(0, n + 1);
                double sum = none ? 0 : crossed.Sum(i => v("decay")[decay.Rank == 1 ? column : (batch * tokens + i) * columns + column]);
                return (between ? v("between")[batch * columns + column] : 1) * Math.Exp(sum);
            })])),
        };
    }

    private static void AddPaths(string kind, Shape decay, int tokens, int keyHeads, bool toEnd)
    {
        const int B = 2, H = 4, D = 5;
        s_rows[$"decay paths {kind} over {tokens} tokens of {keyHeads} heads {(toEnd ? "to the end" : "from the entry")}"] = () => new OpCase
        {
            Operands =
            [
                T("x", [B, tokens, keyHeads, D], TestData.Heads(B * tokens, keyHeads, D, 1)), Acc("dx", [B, tokens, H, D], TestData.Heads(B * tokens, H, D, 2)),
                Acc("dDecay", decay, TestData.Normal(decay.Count, 3)),
            ],
            Call = (backend, t) => backend.AddDecayPaths(t("x"), t("dx"), fromEntry: !toEnd, t("dDecay")),
            Oracle = v =>
            {
                double[] sums = [.. v("dDecay")];
                for (int at = 0; at < B * tokens * H * D; at++)
                {
                    (int d, int h, int i, int b) = (at % D, at / D % H, at / (D * H) % tokens, at / (D * H * tokens));
                    double product = v("x")[((b * tokens + i) * keyHeads + h / (H / keyHeads)) * D + d] * v("dx")[at];
                    for (int n = toEnd ? i + 1 : 0; n < (toEnd ? tokens : i + 1); n++)
                        sums[decay.Rank switch { 1 => h, 3 => (b * tokens + n) * H + h, _ => ((b * tokens + n) * H + h) * D + d }] += product;
                }
                return Results(("dDecay", sums));
            },
        };
    }
}
