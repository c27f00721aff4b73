using LaspNative.Autograd;
using LaspNative.Runtime;
using LaspNative.Tests.Oracles;

namespace LaspNative.Tests.Backends;

/// <summary>RMSNorm with and without weight, alone and after a residual sum; the per-head norm with and without weight and gate.</summary>
public static partial class OpCases
{
    private const double Eps = 1e-5;

    private static void AddNormalization()
    {
        foreach ((int rows, int width) in ((int, int)[])[(1, 3), (6, 5), (3, 129), (67, 64), (5, 2048), (3, 5000)])
        {
            foreach (bool weighted in (bool[])[true, false])
            {
                AddPlainRmsNorm(rows, width, weighted);
                AddSumAndRmsNorm(rows, width, weighted);
                AddGatedHeadNorm(rows, 2, width, weighted, gated: true);
            }
            AddGatedHeadNorm(rows, 3, width, weighted: true, gated: false);
        }
        AddGatedHeadNorm(2, 3, 7, weighted: false, gated: false);
    }

    private static void AddPlainRmsNorm(int rows, int width, bool weighted)
    {
        Shape shape = [rows, width];
        Operand x = T("x", shape, Representable(TestData.Heads(rows, 1, width, 1)));
        Operand[] weight = weighted ? [T("weight", [width], TestData.Normal(width, 2))] : [];
        string name = $"{shape}{(weighted ? "" : " unweighted")}";
        NormalizationOracle Norm(Func<string, double[]> v) => new(v("x"), width, weighted ? v("weight") : null, Gate: null, Eps);
        s_rows[$"rms norm {name}"] = () => new OpCase
        {
            Operands = [x, .. weight, T("y", shape), Acc("inverseRms", [rows])],
            Call = (backend, t) => backend.RmsNorm(t("x"), weighted ? t("weight") : null, Eps, t("y"), t("inverseRms")),
            Oracle = v => Results(("y", Norm(v).Forward().Y), ("inverseRms", Norm(v).Forward().InverseRms)),
            Apply = v => RmsNorm.Apply(v("x"), weighted ? v("weight") : null, Eps),
        };
        s_rows[$"rms norm backward {name}"] = () => new OpCase
        {
            Operands =
            [
                x, .. weight, Acc("inverseRms", [rows], InverseRms(x, width)), T("dy", shape, TestData.Normal(shape.Count, 3)), T("dx", shape),
                .. weighted ? (Operand[])[Acc("dWeight", [width], TestData.Normal(width, 4))] : [],
            ],
            Call = (backend, t) => backend.RmsNormBackward(t("x"), weighted ? t("weight") : null, t("inverseRms"), t("dy"), t("dx"), weighted ? t("dWeight") : null),
            Oracle = v =>
            {
                NormalizationOracle.Gradients g = Norm(v).Backward(v("dy"));
                return weighted ? Results(("dx", g.X), ("dWeight", Sum(v("dWeight"), g.Weight))) : Results(("dx", g.X));
            },
        };
    }

    private static void AddSumAndRmsNorm(int rows, int width, bool weighted)
    {
        Shape shape = [rows, width];
        Operand[] weight = weighted ? [T("weight", [width], TestData.Normal(width, 2))] : [];
        Operand h = T("h", shape, Sixteenths(shape.Count, 5));
        string name = $"{shape}{(weighted ? "" : " unweighted")}";
        s_rows[$"add and rms norm {name}"] = () => new OpCase
        {
            Operands =
            [
                T("x", shape, Sixteenths(shape.Count, 1)), T("residual", shape, Sixteenths(shape.Count, 3)), .. weight,
                T("h", shape), T("y", shape), Acc("inverseRms", [rows]),
            ],
            Call = (backend, t) => backend.AddRmsNorm(t("x"), t("residual"), weighted ? t("weight") : null, Eps, t("h"), t("y"), t("inverseRms")),
            Oracle = v =>
            {
                double[] sum = Sum(v("x"), v("residual"));
                NormalizationOracle.Values norm = new NormalizationOracle(sum, width, weighted ? v("weight") : null, Gate: null, Eps).Forward();
                return Results(("h", sum), ("y", norm.Y), ("inverseRms", norm.InverseRms));
            },
            Apply = v =>
            {
                (Variable sum, Variable normed) = AddRmsNorm.Apply(v("x"), v("residual"), weighted ? v("weight") : null, Eps);
                using (sum)
                using (normed) return Add.Apply(sum, normed);
            },
        };
        foreach (bool beside in (bool[])[true, false])
        {
            s_rows[$"add and rms norm backward {name}{(beside ? "" : " of the norm alone")}"] = () => new OpCase
            {
                Operands =
                [
                    h, .. weight, Acc("inverseRms", [rows], InverseRms(h, width)), T("dy", shape, TestData.Normal(shape.Count, 3)), T("dx", shape),
                    .. beside ? (Operand[])[T("dh", shape, TestData.Normal(shape.Count, 6))] : [],
                    .. weighted ? (Operand[])[Acc("dWeight", [width], TestData.Normal(width, 4))] : [],
                ],
                Call = (backend, t) => backend.AddRmsNormBackward(
                    t("h"), weighted ? t("weight") : null, t("inverseRms"), t("dy"), beside ? t("dh") : null, t("dx"), weighted ? t("dWeight") : null),
                Oracle = v =>
                {
                    NormalizationOracle.Gradients g = new NormalizationOracle(v("h"), width, weighted ? v("weight") : null, Gate: null, Eps).Backward(v("dy"));
                    Dictionary<string, double[]> results = Results(("dx", beside ? Sum(g.X, v("dh")) : g.X));
                    if (weighted) results["dWeight"] = Sum(v("dWeight"), g.Weight);
                    return results;
                },
            };
        }
    }

    private static void AddGatedHeadNorm(int rows, int heads, int width, bool weighted, bool gated)
    {
        Shape shape = [rows, heads, width];
        Operand x = T("x", shape, Representable(TestData.Heads(rows, heads, width, 1)));
        Operand[] weight = weighted ? [T("weight", [width], TestData.Normal(width, 2))] : [];
        Operand[] gate = gated ? [T("gate", shape, TestData.Normal(shape.Count, 5, scale: 2))] : [];
        string name = $"{shape}{(weighted ? "" : " unweighted")}{(gated ? "" : " ungated")}";
        NormalizationOracle Norm(Func<string, double[]> v) => new(v("x"), width, weighted ? v("weight") : null, gated ? v("gate") : null, Eps);
        s_rows[$"gated head norm {name}"] = () => new OpCase
        {
            Operands = [x, .. weight, .. gate, T("y", shape), Acc("inverseRms", [rows * heads])],
            Call = (backend, t) => backend.GatedHeadNorm(t("x"), weighted ? t("weight") : null, gated ? t("gate") : null, Eps, t("y"), t("inverseRms")),
            Oracle = v => Results(("y", Norm(v).Forward().Y), ("inverseRms", Norm(v).Forward().InverseRms)),
            Apply = v => GatedHeadNorm.Apply(v("x"), weighted ? v("weight") : null, gated ? v("gate") : null, Eps),
        };
        s_rows[$"gated head norm backward {name}"] = () => new OpCase
        {
            Operands =
            [
                x, .. weight, .. gate, Acc("inverseRms", [rows * heads], InverseRms(x, width)), T("dy", shape, TestData.Normal(shape.Count, 3)), T("dx", shape),
                .. gated ? (Operand[])[T("dgate", shape)] : [],
                .. weighted ? (Operand[])[Acc("dWeight", [width], TestData.Normal(width, 4))] : [],
            ],
            Call = (backend, t) => backend.GatedHeadNormBackward(
                t("x"), weighted ? t("weight") : null, gated ? t("gate") : null, t("inverseRms"), t("dy"), t("dx"), gated ? t("dgate") : null, weighted ? t("dWeight") : null),
            Oracle = v =>
            {
                NormalizationOracle.Gradients g = Norm(v).Backward(v("dy"));
                Dictionary<string, double[]> results = Results(("dx", g.X));
                if (gated) results["dgate"] = g.Gate;
                if (weighted) results["dWeight"] = Sum(v("dWeight"), g.Weight);
                return results;
            },
        };
    }

    /// <summary>Values that every type stores exactly, so that the r given to backward belongs to the x given to it.</summary>
    private static double[] Representable(double[] x) => TestData.Rounded(x, DType.BF16);

    /// <summary>Values whose sums of two every type stores exactly, so that each type norms the same sum.</summary>
    private static double[] Sixteenths(long count, int seed) => Array.ConvertAll(TestData.Normal(count, seed), x => Math.Clamp(Math.Round(x * 16), -127, 127) / 16);

    /// <summary>What the forward pass would have left for backward.</summary>
    private static double[] InverseRms(Operand x, int width) => new NormalizationOracle(x.Values!, width, Weight: null, Gate: null, Eps).Forward().InverseRms;

    private static double[] Sum(double[] a, double[] b) => ElementwiseOracle.Map(a, b, (x, y) => x + y);
}
