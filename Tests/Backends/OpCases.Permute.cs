using LaspNative.Runtime;

namespace LaspNative.Tests.Backends;

/// <summary>Dimensions in another order, for elements of every size.</summary>
public static partial class OpCases
{
    private static void AddPermute()
    {
        AddPermute([7], [0]);
        AddPermute([5, 0, 3], [2, 0, 1]);
        AddPermute([1, 1, 1], [2, 1, 0]);
        AddPermute([33, 65], [1, 0]);
        AddPermute([3, 5, 7], [0, 2, 1]);
        AddPermute([3, 5, 7], [2, 1, 0]);
        AddPermute([2, 9, 4, 8], [1, 0, 2, 3]);
        AddPermute([2, 9, 4, 64], [0, 2, 1, 3]);
        AddPermute([2, 9, 4, 5], [2, 0, 1, 3]);
        AddPermute([2, 3, 130, 4, 16], [2, 0, 1, 3, 4]);
        AddPermute([2, 3, 5, 4, 7], [4, 2, 0, 3, 1]);
        AddPermute([3, 1, 50, 1, 24], [2, 1, 3, 0, 4]);
    }

    private static void AddPermute(Shape x, int[] axes)
    {
        Shape y = new([.. axes.Select(axis => x[axis])]);
        foreach (OperandKind kind in Enum.GetValues<OperandKind>())
        {
            s_rows[$"permute {kind} {x} to [{string.Join(", ", axes)}]"] = () => new OpCase
            {
                Operands = [new("x", x, kind, [.. Enumerable.Range(0, (int)x.Count).Select(i => (double)(i % 251 - 100))]), new("y", y, kind)],
                Call = (backend, t) => backend.Permute(t("x"), axes, t("y")),
                Oracle = v => Results(("y", Permuted(v("x"), x, axes, y))),
            };
        }
    }

    /// <summary>y[index] = x[index'] with index'[axes[n]] = index[n].</summary>
    private static double[] Permuted(double[] x, Shape from, int[] axes, Shape to)
    {
        var y = new double[x.Length];
        var index = new long[axes.Length];
        for (int i = 0; i < y.Length; i++)
        {
            long rest = i;
            for (int n = axes.Length - 1; n >= 0; n--)
            {
                index[axes[n]] = rest % to[n];
                rest /= to[n];
            }
            long source = 0;
            for (int n = 0; n < index.Length; n++) source = source * from[n] + index[n];
            y[i] = x[source];
        }
        return y;
    }
}
