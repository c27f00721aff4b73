using LaspNative.Runtime;

namespace LaspNative.Perf;

/// <summary>The elementwise and row-wise ops of a layer, by name.</summary>
internal static class LayerOps
{
    private const double Eps = 1e-5;
    private const double Theta = 10_000;
    private const int Head = 128;
    private const int Row = ElementwiseProblem.Hidden;

    public static IReadOnlyList<LayerOp> All { get; } =
    [
        new("add", Row, [In("a"), In("b"), Out("y")], (b, t, _) => b.Add(t("a"), t("b"), t("y"))),
        new("silu fwd", Row, [In("x"), Out("y")], (b, t, _) => b.Silu(t("x"), t("y"))),
        new("silu bwd", Row, [In("x"), In("dy"), Out("dx")], (b, t, _) => b.SiluBackward(t("x"), t("dy"), t("dx"))),
        new("gated linear unit fwd", Row, [In("gate"), In("up"), Out("y")], (b, t, _) => b.GatedLinearUnit(t("gate"), t("up"), GateActivation.Silu, t("y"))),
        new("gated linear unit bwd", Row, [In("gate"), In("up"), In("dy"), Out("dgate"), Out("dup")],
            (b, t, _) => b.GatedLinearUnitBackward(t("gate"), t("up"), t("dy"), GateActivation.Silu, t("dgate"), t("dup"))),
        new("rope", Head, [In("x"), Out("y")], (b, t, first) => b.Rope(Sequence(t("x")), first, Theta, inverse: false, Sequence(t("y")))),
        new("silu and rope fwd", Head, [In("x"), Out("y")], (b, t, first) => b.SiluRope(Sequence(t("x")), first, Theta, Sequence(t("y")))),
        new("silu and rope bwd", Head, [In("x"), In("dy"), Out("dx")], (b, t, first) => b.SiluRopeBackward(Sequence(t("x")), Sequence(t("dy")), first, Theta, Sequence(t("dx")))),
        new("rms norm fwd", Row, [In("x"), Weight("w"), Out("y"), PerNormOut("r")], (b, t, _) => b.RmsNorm(t("x"), t("w"), Eps, t("y"), t("r"))),
        new("rms norm bwd", Row, [In("x"), Weight("w"), PerNorm("r"), In("dy"), Out("dx"), WeightGradient("dw")],
            (b, t, _) => b.RmsNormBackward(t("x"), t("w"), t("r"), t("dy"), t("dx"), t("dw"))),
        new("add and rms norm fwd", Row, [In("x"), In("residual"), Weight("w"), Out("h"), Out("y"), PerNormOut("r")],
            (b, t, _) => b.AddRmsNorm(t("x"), t("residual"), t("w"), Eps, t("h"), t("y"), t("r"))),
        new("add and rms norm bwd", Row, [In("h"), Weight("w"), PerNorm("r"), In("dy"), In("dh"), Out("dx"), WeightGradient("dw")],
            (b, t, _) => b.AddRmsNormBackward(t("h"), t("w"), t("r"), t("dy"), t("dh"), t("dx"), t("dw"))),
        new("gated head norm fwd", Head, [In("x"), Weight("w"), In("gate"), Out("y"), PerNormOut("r")], (b, t, _) => b.GatedHeadNorm(t("x"), t("w"), t("gate"), Eps, t("y"), t("r"))),
        new("gated head norm bwd", Head, [In("x"), Weight("w"), In("gate"), PerNorm("r"), In("dy"), Out("dx"), Out("dgate"), WeightGradient("dw")],
            (b, t, _) => b.GatedHeadNormBackward(t("x"), t("w"), t("gate"), t("r"), t("dy"), t("dx"), t("dgate"), t("dw"))),
    ];

    /// <summary>[rows, H, D] as [1, rows, H, D], at the same address.</summary>
    private static Tensor Sequence(Tensor x) => Tensor.WrapDevicePointer(x.Pointer, [1, x.Shape[0], x.Shape[1], x.Shape[2]], x.DType, x.Device);

    private static Operand In(string name) => new(name, OperandKind.Rows);

    private static Operand Out(string name) => new(name, OperandKind.RowsOut);

    private static Operand PerNorm(string name) => new(name, OperandKind.PerNorm);

    private static Operand PerNormOut(string name) => new(name, OperandKind.PerNormOut);

    private static Operand Weight(string name) => new(name, OperandKind.Weight);

    private static Operand WeightGradient(string name) => new(name, OperandKind.WeightGradient);
}
