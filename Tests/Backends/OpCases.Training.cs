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
        }
        AddLinearCrossEntropy(rows: 7, vocabulary: 11, width: 5);
        foreach (long step in (long[])[1, 1000]) AddAdamW(count: 4_099, step);
    }

    private static long[] Labels(int rows, int vocabulary) => [.. Enumerable.Range(0, rows).Select(r => r % 4 == 2 ? -1L - r : (r * 7 + 3) % vocabulary)];

    private static void AddCrossEntropy(int rows, int vocabulary, OperandKind kind)
    {
        const double Scale = 0.125;
        long[] labels = Labels(rows, vocabulary);
        s_rows[$"cross entropy {rows}x{vocabulary} {kind}"] = () => new OpCase
        {
            Operands =
            [
                new Operand("logits", [rows, vocabulary], kind, TestData.Heads(1, rows, vocabulary, 1, rank: 3)),
                new Operand("labels", [rows], OperandKind.I32, Array.ConvertAll(labels, l => (double)l)), Acc("losses", [rows]),
            ],
            Call = (backend, t) => backend.CrossEntropyInPlace(t("logits"), t("labels"), Scale, t("losses")),
            Oracle = v =>
            {
                (double[] losses, double[] gradient) = MatrixOracle.CrossEntropy(v("logits"), labels, vocabulary, Scale);
                return Results(("losses", losses), ("logits", gradient));
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

    private static void AddAdamW(int count, long step)
    {
        var scalars = new AdamWStep(LearningRate: 0.01, Beta1: 0.9, Beta2: 0.95, Epsilon: 1e-8, WeightDecay: 0.1, step, GradientScale: 0.7);
        s_rows[$"adamw step {step}"] = () => new OpCase
        {
            Operands =
            [
                Acc("gradient", [count], TestData.Normal(count, 1)), Acc("m", [count], TestData.Normal(count, 2)),
                Acc("v", [count], Array.ConvertAll(TestData.Normal(count, 3), x => x * x)), Acc("master", [count], TestData.Normal(count, 4)), T("parameter", [count]),
            ],
            Call = (backend, t) => backend.AdamW(t("gradient"), scalars, t("m"), t("v"), t("master"), t("parameter")),
            Oracle = values =>
            {
                (double M, double V, double W)[] after =
                    [.. Enumerable.Range(0, count).Select(i => MatrixOracle.AdamW(values("gradient")[i], scalars, values("m")[i], values("v")[i], values("master")[i]))];
                return Results(("m", [.. after.Select(a => a.M)]), ("v", [.. after.Select(a => a.V)]), ("master", [.. after.Select(a => a.W)]), ("parameter", [.. after.Select(a => a.W)]));
            },
        };
    }
}
