using Xunit;

namespace LaspNative.Tests.Backends;

/// <summary>
/// The table of all backend ops, by name; a row is built when a test asks for it. One partial file per family of ops.
/// Extents are odd on purpose: no multiple of a vector, a warp or a tile unless the name says so.
/// </summary>
public static partial class OpCases
{
    private static readonly Dictionary<string, Func<OpCase>> s_rows = new(StringComparer.Ordinal);

    static OpCases()
    {
        AddElementwise();
        AddMatrix();
        AddNormalization();
        AddLinearAttention();
        AddLinearAttentionDecode();
        AddLinearAttentionBlocks();
        AddSoftmaxAttention();
        AddKeyRanges();
        AddPermute();
        AddTraining();
    }

    public static OpCase Get(string name) => s_rows[name]();

    public static TheoryData<string> Names => [.. s_rows.Keys];

    /// <summary>The words of a row's name but for numbers: tests carry them as a trait, so that rows of one kind can be run by themselves.</summary>
    public static string[] Words(string name) => [.. name.Split(' ').Where(word => char.IsLetter(word[0])).Distinct()];

    /// <summary>Rows with an autograd function, small enough for central differences.</summary>
    public static TheoryData<string> DifferentiableNames => [.. s_rows.Keys.Where(IsDifferentiable)];

    private static bool IsDifferentiable(string name)
    {
        OpCase row = Get(name);
        return row.Apply is not null && row.Operands.Sum(o => o.Shape.Count) < 5_000;
    }

    private static Operand T(string name, Runtime.Shape shape, double[]? values = null) => new(name, shape, OperandKind.T, values);

    private static Operand Acc(string name, Runtime.Shape shape, double[]? values = null) => new(name, shape, OperandKind.Acc, values);

    private static Dictionary<string, double[]> Results(params (string Name, double[] Values)[] results) => results.ToDictionary(r => r.Name, r => r.Values, StringComparer.Ordinal);
}
