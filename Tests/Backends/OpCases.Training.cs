using LaspNative.Autograd;
using LaspNative.Runtime;
using LaspNative.Tests.Oracles;

namespace LaspNative.Tests.Backends;

/// <summary>The loss and the optimizer.</summary>
public static partial class OpCases
{
    private static void AddTraining()
    {
        foreach ((int rows, int vocabulary) in ((int, int)[])[(1, 1), (7, 13), (5, 257), (3, 5_003)])
        {
            AddCrossEntropy(rows, vocabulary, OperandKind.T);
            AddCrossEntropy(rows, vocabulary, OperandKind.Acc);
            AddCrossEntropy(rows, vocabulary, OperandKind.Acc, isInPlace: false);
        }
        AddCrossEntropy(rows: 1, vocabulary: 65_544, OperandKind.Acc);
        AddCrossEntropy(rows: 1, vocabulary: 65_544, OperandKind.Acc, isInPlace: false);
        AddCrossEntropy(rows: 7, vocabulary: 128_256, OperandKind.Acc, isInPlace: false);
        AddLinearCrossEntropy(rows: 7, vocabulary: 11, width: 5);
        foreach (OperandKind gradient in (OperandKind[])[OperandKind.Acc, OperandKind.T])
            foreach (long step in (long[])[1, 1000]) AddAdamW(gradient, step);
        AddSkippedAdamW();
        foreach ((double squares, double loss, double bound) in ((double, double, double)[])[(4, 1, 1), (0.25, 1, 1), (100, 1, 0), (0, 1, 1), (double.NaN, 1, 1), (double.PositiveInfinity, 1, 0), (4, double.NaN, 1)])
            AddClipFactor(squares, loss, bound);
        foreach (long count in (long[])[0, 1, 8191, (5L << 20) + 3]) AddCountReciprocal(count);
    }

    private static long[] Labels(int rows, int vocabulary) => [.. Enumerable.Range(0, rows).Select(r => r % 4 == 2 ? -1L - r : (r * 7 + 3) % vocabulary)];

    /// <summary>The gradient of type T beside the logits, or in their place.</summary>
    private static void AddCrossEntropy(int rows, int vocabulary, OperandKind kind, bool isInPlace = true)
    {
        const double Scale = 0.125;
        long[] labels = Labels(rows, vocabulary);
        string gradient = isInPlace ? "logits" : "gradient";
        s_rows[$"cross entropy {rows}x{vocabulary} {kind}{(isInPlace ? "" : " beside")}"] = () => new OpCase
        {
            Operands =
            [
                new Operand("logits", [rows, vocabulary], kind, TestData.Heads(1, rows, vocabulary, 1, rank: 3)),
                new Operand("labels", [rows], OperandKind.I32, Array.ConvertAll(labels, l => (double)l)), Acc("scale", [1], [Scale]), Acc("losses", [rows]),
                .. isInPlace ? (Operand[])[] : [T("gradient", [rows, vocabulary])],
            ],
            Call = (backend, t) => backend.CrossEntropy(t("logits"), t("labels"), t("scale"), t("losses"), t(gradient)),
            Oracle = v =>
            {
                (double[] losses, double[] dLogits) = MatrixOracle.CrossEntropy(v("logits"), labels, vocabulary, Scale);
                return Results(("losses", losses), (gradient, dLogits));
            },
        };
    }

    private static void AddLinearCrossEntropy(int rows, int vocabulary, int width)
    {
        long[] labels = Labels(rows, vocabulary);
        s_rows[$"linear cross entropy {rows}x{vocabulary}x{width}"] = () => new OpCase
        {
            Operands =
            [
                T("x", [rows, width], TestData.Normal(rows * width, 1)), T("weight", [vocabulary, width], TestData.Normal(vocabulary * width, 2)),
                new Operand("labels", [rows], OperandKind.I32, Array.ConvertAll(labels, l => (double)l)), Acc("loss", [1]),
            ],
            Call = (backend, t) =>
            {
                using var x = Variable.Constant(t("x").Share());
                using var weight = Variable.Constant(t("weight").Share());
                using Variable loss = LinearCrossEntropy.Apply(x, weight, t("labels"), normalizer: 5);
                backend.Cast(loss.Value, t("loss"));
            },
            Oracle = v =>
            {
                double[] logits = MatrixOracle.Gemm(v("x"), transposeA: false, v("weight"), transposeB: true, 1, 0, [], 1, rows, vocabulary, width);
                return Results(("loss", [MatrixOracle.CrossEntropy(logits, labels, vocabulary, 1).Losses.Sum() / 5]));
            },
            Apply = v => LinearCrossEntropy.Apply(v("x"), v("weight"), v("labels").Value, normalizer: 5),
        };
    }

    /// <summary>Three tensors in one call: many chunks with a rest, less than one, and none; only the first decays.</summary>
    private static void AddAdamW(OperandKind gradient, long step)
    {
        var scalars = new AdamWStep(LearningRate: 0.01, Beta1: 0.9, Beta2: 0.95, Epsilon: 1e-8, step);
        const double Scale = 0.7;
        (string Suffix, int Count, double WeightDecay)[] tensors = [(" a", 9_099, 0.1), (" b", 131, 0), (" c", 0, 0)];
        s_rows[$"adamw step {step} gradient {gradient}"] = () => new OpCase
        {
            Operands =
            [
                Acc("scale", [1], [Scale]),
                .. tensors.SelectMany((x, i) => (Operand[])
                [
                    new("gradient" + x.Suffix, [x.Count], gradient, TestData.Normal(x.Count, 5 * i + 1)), Acc("m" + x.Suffix, [x.Count], TestData.Normal(x.Count, 5 * i + 2)),
                    Acc("v" + x.Suffix, [x.Count], Array.ConvertAll(TestData.Normal(x.Count, 5 * i + 3), v => v * v)), Acc("master" + x.Suffix, [x.Count], TestData.Normal(x.Count, 5 * i + 4)),
                    T("parameter" + x.Suffix, [x.Count]),
                ]),
            ],
            Call = (backend, t) => backend.AdamW([.. tensors.Select(x => Row(t, x.Suffix, x.WeightDecay))], scalars, t("scale")),
            Oracle = values => tensors.SelectMany(x =>
            {
                double[] g = values("gradient" + x.Suffix), m = values("m" + x.Suffix), v = values("v" + x.Suffix), w = values("master" + x.Suffix);
                (double M, double V, double W)[] after = [.. Enumerable.Range(0, x.Count).Select(i => MatrixOracle.AdamW(Scale * g[i], scalars, x.WeightDecay, m[i], v[i], w[i]))];
                return Results(
                    ("m" + x.Suffix, [.. after.Select(a => a.M)]), ("v" + x.Suffix, [.. after.Select(a => a.V)]),
                    ("master" + x.Suffix, [.. after.Select(a => a.W)]), ("parameter" + x.Suffix, [.. after.Select(a => a.W)]));
            }).ToDictionary(r => r.Key, r => r.Value),
        };
    }

    private static AdamWRow Row(Func<string, Tensor> t, string suffix, double weightDecay) =>
        new(t("gradient" + suffix), t("m" + suffix), t("v" + suffix), t("master" + suffix), t("parameter" + suffix), weightDecay);

    /// <summary>A scale of NaN: not one bit changes.</summary>
    private static void AddSkippedAdamW() => s_rows["adamw skipped"] = () => new OpCase
    {
        Operands =
        [
            Acc("scale", [1], [double.NaN]), Acc("gradient", [4_099], TestData.Normal(4_099, 1)), Acc("m", [4_099], TestData.Normal(4_099, 2)), Acc("v", [4_099], TestData.Normal(4_099, 3)),
            Acc("master", [4_099], TestData.Normal(4_099, 4)), T("parameter", [4_099], TestData.Normal(4_099, 5)),
        ],
        Call = (backend, t) => backend.AdamW([Row(t, "", 0.1)], new AdamWStep(0.01, 0.9, 0.95, 1e-8, 3), t("scale")),
        Oracle = v => Results(("m", v("m")), ("v", v("v")), ("master", v("master")), ("parameter", v("parameter"))),
    };

    /// <summary>NaN cannot be compared within a tolerance, so the update that reads the factor is part of the call.</summary>
    private static void AddClipFactor(double squaredNorm, double loss, double bound) => s_rows[$"clip factor {squaredNorm} {loss} {bound}"] = () => new OpCase
    {
        Operands =
        [
            Acc("squared norm", [1], [squaredNorm]), Acc("loss", [1], [loss]), Acc("factor", [1]),
            Acc("gradient", [3], [1, -2, 3]), Acc("m", [3], [0, 0, 0]), Acc("v", [3], [0, 0, 0]), Acc("master", [3], [1, 2, 3]), T("parameter", [3], [1, 2, 3]),
        ],
        Call = (backend, t) =>
        {
            backend.ClipFactor(t("squared norm"), t("loss"), bound, t("factor"));
            backend.AdamW([Row(t, "", 0)], new AdamWStep(0, 0.5, 0.5, 1, 1), t("factor"));
        },
        Oracle = v =>
        {
            bool isFinite = double.IsFinite(squaredNorm) && double.IsFinite(loss);
            double factor = bound == 0 || Math.Sqrt(squaredNorm) <= bound ? 1 : bound / Math.Sqrt(squaredNorm);
            return isFinite ? Results(("factor", [factor]), ("m", [.. v("gradient").Select(g => g * factor / 2)])) : Results(("m", v("m")), ("master", v("master")));
        },
    };

    private static void AddCountReciprocal(long count) => s_rows[$"count reciprocal {count}"] = () => new OpCase
    {
        Operands = [new Operand("count", [2], OperandKind.F32, [count / IBackend.CountDigit, count % IBackend.CountDigit]), Acc("reciprocal", [1])],
        Call = (backend, t) => backend.CountReciprocal(t("count"), t("reciprocal")),
        Oracle = _ => Results(("reciprocal", [1.0 / Math.Max(1, count)])),
    };
}
