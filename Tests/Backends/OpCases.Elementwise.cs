using LaspNative.Autograd;
using LaspNative.Runtime;
using LaspNative.Tests.Oracles;

namespace LaspNative.Tests.Backends;

/// <summary>Fill, casts, sums, activations, gated linear units, rotary embedding, reductions.</summary>
public static partial class OpCases
{
    private static void AddElementwise()
    {
        foreach (long count in (long[])[1, 35, 5_003])
        {
            double[] x = TestData.Normal(count, 1, scale: 3);
            double[] y = TestData.Normal(count, 2);
            double[] z = TestData.Normal(count, 3);
            Shape shape = [count];
            s_rows[$"fill {count}"] = () => new OpCase
            {
                Operands = [T("y", shape)],
                Call = (backend, t) => backend.Fill(-1.5, t("y")),
                Oracle = _ => Results(("y", [.. Enumerable.Repeat(-1.5, (int)count)])),
            };
            s_rows[$"cast to accumulator {count}"] = () => new OpCase
            {
                Operands = [T("x", shape, x), Acc("y", shape)],
                Call = (backend, t) => backend.Cast(t("x"), t("y")),
                Oracle = v => Results(("y", v("x"))),
            };
            s_rows[$"cast from accumulator {count}"] = () => new OpCase
            {
                Operands = [Acc("x", shape, x), T("y", shape)],
                Call = (backend, t) => backend.Cast(t("x"), t("y")),
                Oracle = v => Results(("y", v("x"))),
            };
            s_rows[$"copy {count}"] = () => new OpCase
            {
                Operands = [T("x", shape, x), T("y", shape)],
                Call = (backend, t) => backend.Cast(t("x"), t("y")),
                Oracle = v => Results(("y", v("x"))),
            };
            s_rows[$"fill integers {count}"] = () => new OpCase
            {
                Operands = [new("y", shape, OperandKind.I64), new("z", shape, OperandKind.I32)],
                Call = (backend, t) =>
                {
                    backend.Fill(-3, t("y"));
                    backend.Fill(5, t("z"));
                },
                Oracle = _ => Results(("y", [.. Enumerable.Repeat(-3.0, (int)count)]), ("z", [.. Enumerable.Repeat(5.0, (int)count)])),
            };
            s_rows[$"add {count}"] = () => new OpCase
            {
                Operands = [T("a", shape, x), T("b", shape, y), T("y", shape)],
                Call = (backend, t) => backend.Add(t("a"), t("b"), t("y")),
                Oracle = v => Results(("y", ElementwiseOracle.Map(v("a"), v("b"), (a, b) => a + b))),
                Apply = v => Add.Apply(v("a"), v("b")),
            };
            s_rows[$"add scaled {count}"] = () => new OpCase
            {
                Operands = [T("x", shape, x), T("y", shape, y)],
                Call = (backend, t) => backend.AddScaled(t("x"), 0.375, t("y")),
                Oracle = v => Results(("y", ElementwiseOracle.Map(v("x"), v("y"), (a, b) => b + 0.375 * a))),
            };
            s_rows[$"add scaled into accumulator {count}"] = () => new OpCase
            {
                Operands = [T("x", shape, x), Acc("y", shape, y)],
                Call = (backend, t) => backend.AddScaled(t("x"), -2, t("y")),
                Oracle = v => Results(("y", ElementwiseOracle.Map(v("x"), v("y"), (a, b) => b - 2 * a))),
            };
            s_rows[$"add scaled from accumulator {count}"] = () => new OpCase
            {
                Operands = [Acc("x", shape, x), T("y", shape, y)],
                Call = (backend, t) => backend.AddScaled(t("x"), 0.5, t("y")),
                Oracle = v => Results(("y", ElementwiseOracle.Map(v("x"), v("y"), (a, b) => b + 0.5 * a))),
            };
            s_rows[$"scale {count}"] = () => new OpCase
            {
                Operands = [T("x", shape, x), Acc("factor", [1], [-0.375]), T("y", shape)],
                Call = (backend, t) => backend.Scale(t("x"), t("factor"), t("y")),
                Oracle = v => Results(("y", [.. v("x").Select(a => -0.375 * a)])),
            };
            s_rows[$"silu {count}"] = () => new OpCase
            {
                Operands = [T("x", shape, x), T("y", shape)],
                Call = (backend, t) => backend.Silu(t("x"), t("y")),
                Oracle = v => Results(("y", ElementwiseOracle.Map(v("x"), ElementwiseOracle.Silu))),
                Apply = v => Silu.Apply(v("x")),
            };
            s_rows[$"silu backward {count}"] = () => new OpCase
            {
                Operands = [T("x", shape, x), T("dy", shape, y), T("dx", shape)],
                Call = (backend, t) => backend.SiluBackward(t("x"), t("dy"), t("dx")),
                Oracle = v => Results(("dx", ElementwiseOracle.Map(v("x"), v("dy"), (a, d) => d * ElementwiseOracle.SiluSlope(a)))),
            };
            s_rows[$"sum {count}"] = () => new OpCase
            {
                Operands = [T("x", shape, x), Acc("result", [1])],
                Call = (backend, t) => backend.Sum(t("x"), t("result")),
                Oracle = v => Results(("result", [v("x").Sum()])),
            };
            s_rows[$"add sum of squares {count}"] = () => new OpCase
            {
                Operands = [T("x", shape, x), T("y", [7], TestData.Normal(7, 4)), Acc("z", [3 * count], TestData.Normal(3 * count, 5)), Acc("result", [1], [7])],
                Call = (backend, t) => backend.AddSumOfSquares([t("x"), t("y"), t("z")], t("result")),
                Oracle = v => Results(("result", [7 + v("x").Concat(v("y")).Concat(v("z")).Sum(a => a * a)])),
            };
            AddAddSquaring(shape, Array.ConvertAll(x, Math.Round), Array.ConvertAll(y, Math.Round));
            foreach (GateActivation activation in Enum.GetValues<GateActivation>()) AddGatedLinearUnit(activation, shape, x, y, z);
        }
        AddExtremes();
        AddRope(b: 1, n: 1, h: 1, d: 2, first: 0);
        AddRope(b: 2, n: 7, h: 3, d: 10, first: 5);
        AddRope(b: 1, n: 66, h: 2, d: 64, first: 3_000_001);
        AddRope(b: 1, n: 9, h: 1, d: 272, first: 17);
    }

    /// <summary>Whole numbers, so that no sum and no square is rounded in any type. Once more in place: the squares go on growing, from ones.</summary>
    private static void AddAddSquaring(Shape shape, double[] a, double[] b)
    {
        long numbers = (shape.Count / IBackend.SquaresGrain) + 2; // more than are needed
        s_rows[$"add squaring {shape.Count}"] = () => new OpCase
        {
            Operands = [T("a", shape, a), T("b", shape, b), T("y", shape), Acc("squares", [numbers], [.. Enumerable.Repeat(1.0, (int)numbers)]), Acc("all", [1])],
            Call = (backend, t) =>
            {
                backend.AddSquaring(t("a"), t("b"), t("y"), t("squares"));
                backend.AddSquaring(t("a"), t("b"), t("a"), t("squares"));
                backend.Sum(t("squares"), t("all"));
            },
            Oracle = v =>
            {
                double[] y = ElementwiseOracle.Map(v("a"), v("b"), (x, z) => x + z);
                return Results(("y", y), ("a", y), ("all", [numbers + (2 * y.Sum(x => x * x))]));
            },
        };
    }

    private static void AddGatedLinearUnit(GateActivation activation, Shape shape, double[] gate, double[] up, double[] dy)
    {
        s_rows[$"gated linear unit {activation} {shape}"] = () => new OpCase
        {
            Operands = [T("gate", shape, gate), T("up", shape, up), T("y", shape)],
            Call = (backend, t) => backend.GatedLinearUnit(t("gate"), t("up"), activation, t("y")),
            Oracle = v => Results(("y", ElementwiseOracle.Map(v("gate"), v("up"), (g, u) => ElementwiseOracle.Activate(g, activation) * u))),
            Apply = v => GatedLinearUnit.Apply(v("gate"), v("up"), activation),
        };
        s_rows[$"gated linear unit backward {activation} {shape}"] = () => new OpCase
        {
            Operands = [T("gate", shape, gate), T("up", shape, up), T("dy", shape, dy), T("dgate", shape), T("dup", shape)],
            Call = (backend, t) => backend.GatedLinearUnitBackward(t("gate"), t("up"), t("dy"), activation, t("dgate"), t("dup")),
            Oracle = v => Results(
                ("dgate", ElementwiseOracle.Map(v("gate"), v("up"), v("dy"), (g, u, d) => d * u * ElementwiseOracle.ActivateSlope(g, activation))),
                ("dup", ElementwiseOracle.Map(v("gate"), v("dy"), (g, d) => d * ElementwiseOracle.Activate(g, activation)))),
        };
        s_rows[$"gated linear unit backward with y {activation} {shape}"] = () => new OpCase
        {
            Operands = [T("gate", shape, gate), T("up", shape, up), T("dy", shape, dy), T("dgate", shape), T("dup", shape), T("y", shape)],
            Call = (backend, t) => backend.GatedLinearUnitBackward(t("gate"), t("up"), t("dy"), activation, t("dgate"), t("dup"), t("y")),
            Oracle = v => Results(
                ("dgate", ElementwiseOracle.Map(v("gate"), v("up"), v("dy"), (g, u, d) => d * u * ElementwiseOracle.ActivateSlope(g, activation))),
                ("dup", ElementwiseOracle.Map(v("gate"), v("dy"), (g, d) => d * ElementwiseOracle.Activate(g, activation))),
                ("y", ElementwiseOracle.Map(v("gate"), v("up"), (g, u) => ElementwiseOracle.Activate(g, activation) * u))),
        };
    }

    /// <summary>Where exp overflows the sigmoid must still be 0 or 1, not NaN.</summary>
    private static void AddExtremes()
    {
        double[] x = [-1000, -100, -88.8, -20, 0, 20, 88.8, 100, 1000];
        double[] ones = [.. Enumerable.Repeat(1.0, x.Length)];
        s_rows["silu of extremes"] = () => new OpCase
        {
            Operands = [T("x", [x.Length], x), T("y", [x.Length])],
            Call = (backend, t) => backend.Silu(t("x"), t("y")),
            Oracle = v => Results(("y", ElementwiseOracle.Map(v("x"), ElementwiseOracle.Silu))),
        };
        s_rows["silu backward of extremes"] = () => new OpCase
        {
            Operands = [T("x", [x.Length], x), T("dy", [x.Length], ones), T("dx", [x.Length])],
            Call = (backend, t) => backend.SiluBackward(t("x"), t("dy"), t("dx")),
            Oracle = v => Results(("dx", ElementwiseOracle.Map(v("x"), ElementwiseOracle.SiluSlope))),
        };
    }

    private static void AddRope(int b, int n, int h, int d, long first)
    {
        const double Theta = 10_000;
        Shape shape = [b, n, h, d];
        double[] x = TestData.Heads(b * n, h, d, 1);
        foreach (bool inverse in (bool[])[false, true])
        {
            s_rows[$"rope {shape} at {first}{(inverse ? " inverse" : "")}"] = () => new OpCase
            {
                Operands = [T("x", shape, x), T("y", shape)],
                Call = (backend, t) => backend.Rope(t("x"), first, Theta, inverse, t("y")),
                Oracle = v => Results(("y", ElementwiseOracle.Rope(v("x"), b, n, h, d, first, Theta, inverse))),
                Apply = inverse ? null : v => Rope.Apply(v("x"), first, Theta),
            };
        }
        AddSiluRope(b, n, h, d, first);
    }

    private static void AddSiluRope(int b, int n, int h, int d, long first)
    {
        const double Theta = 500_000;
        Shape shape = [b, n, h, d];
        double[] x = TestData.Heads(b * n, h, d, 1), dy = TestData.Heads(b * n, h, d, 2);
        double[] Rotated(double[] values, bool inverse) => ElementwiseOracle.Rope(values, b, n, h, d, first, Theta, inverse);
        s_rows[$"silu and rope {shape} at {first}"] = () => new OpCase
        {
            Operands = [T("x", shape, x), T("y", shape)],
            Call = (backend, t) => backend.SiluRope(t("x"), first, Theta, t("y")),
            Oracle = v => Results(("y", Rotated(ElementwiseOracle.Map(v("x"), ElementwiseOracle.Silu), inverse: false))),
            Apply = v => SiluRope.Apply(v("x"), b == 1 && n > 1 ? [new PositionRun(n - 1, first), new PositionRun(1, 3)] : [new PositionRun(n, first)], Theta),
        };
        s_rows[$"silu and rope backward {shape} at {first}"] = () => new OpCase
        {
            Operands = [T("x", shape, x), T("dy", shape, dy), T("dx", shape)],
            Call = (backend, t) => backend.SiluRopeBackward(t("x"), t("dy"), first, Theta, t("dx")),
            Oracle = v => Results(("dx", ElementwiseOracle.Map(v("x"), Rotated(v("dy"), inverse: true), (a, turned) => turned * ElementwiseOracle.SiluSlope(a)))),
        };
    }
}
