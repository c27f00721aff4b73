using LaspNative.Autograd;
using LaspNative.Runtime;
using LaspNative.Tests.Oracles;

namespace LaspNative.Tests.Backends;

/// <summary>Matrix products in every transposition, single and batched, and embeddings.</summary>
public static partial class OpCases
{
    private static void AddMatrix()
    {
        foreach ((int m, int n, int k) in ((int, int, int)[])[(1, 1, 1), (3, 5, 7), (33, 1, 65), (1, 67, 31), (130, 65, 129), (64, 128, 64)])
        {
            foreach ((bool transposeA, bool transposeB) in ((bool, bool)[])[(false, false), (false, true), (true, false), (true, true)])
                AddGemm(1, m, n, k, transposeA, transposeB, alpha: 1, beta: 0, OperandKind.T);
            AddGemm(1, m, n, k, transposeA: true, transposeB: false, alpha: 1, beta: 1, OperandKind.Acc);
            AddGemm(1, m, n, k, transposeA: false, transposeB: true, alpha: 1, beta: 0, OperandKind.Acc);
            AddGemm(1, m, n, k, transposeA: false, transposeB: false, alpha: -0.5, beta: 0.25, OperandKind.T);
            AddGemm(3, m, n, k, transposeA: false, transposeB: true, alpha: 1, beta: 0, OperandKind.T);
        }
        AddGemm(2, 9, 17, 33, transposeA: true, transposeB: false, alpha: 1, beta: 1, OperandKind.Acc);
        AddLinear(rows: 6, n: 5, k: 7);
        foreach (GateActivation activation in Enum.GetValues<GateActivation>()) AddGatedProjection(activation, rows: 6, n: 5, k: 24);
        AddEmbedding(vocabulary: 11, width: 5, rows: 17, OperandKind.I32);
        AddEmbedding(vocabulary: 300, width: 129, rows: 70, OperandKind.I64);
    }

    private static void AddGemm(int g, int m, int n, int k, bool transposeA, bool transposeB, double alpha, double beta, OperandKind result)
    {
        Shape Matrix(long rows, long columns) => g == 1 ? [rows, columns] : [g, rows, columns];
        Shape a = transposeA ? Matrix(k, m) : Matrix(m, k);
        Shape b = transposeB ? Matrix(n, k) : Matrix(k, n);
        Shape c = Matrix(m, n);
        s_rows[$"gemm {g}x {m}x{n}x{k} {(transposeA ? "T" : "N")}{(transposeB ? "T" : "N")} alpha {alpha} beta {beta} into {result}"] = () => new OpCase
        {
            Operands =
            [
                T("a", a, TestData.Normal(a.Count, 1)),
                T("b", b, TestData.Normal(b.Count, 2)),
                new Operand("c", c, result, beta == 0 ? null : TestData.Normal(c.Count, 3)),
            ],
            Call = (backend, t) => backend.Gemm(t("a"), transposeA, t("b"), transposeB, alpha, beta, t("c")),
            Oracle = v => Results(("c", MatrixOracle.Gemm(v("a"), transposeA, v("b"), transposeB, alpha, beta, beta == 0 ? [] : v("c"), g, m, n, k))),
        };
    }

    private static void AddLinear(int rows, int n, int k) => s_rows[$"linear {rows}x{n}x{k}"] = () => new OpCase
    {
        Operands = [T("x", [2, rows / 2, k], TestData.Normal(rows * k, 1)), T("weight", [n, k], TestData.Normal(n * k, 2)), T("y", [2, rows / 2, n])],
        Call = (backend, t) =>
        {
            using Tensor x = t("x").View([rows, k]);
            using Tensor y = t("y").View([rows, n]);
            backend.Gemm(x, transposeA: false, t("weight"), transposeB: true, alpha: 1, beta: 0, y);
        },
        Oracle = v => Results(("y", MatrixOracle.Gemm(v("x"), transposeA: false, v("weight"), transposeB: true, 1, 0, [], 1, rows, n, k))),
        Apply = v => Linear.Apply(v("x"), v("weight")),
    };

    private static void AddGatedProjection(GateActivation activation, int rows, int n, int k) => s_rows[$"gated projection {activation} {rows}x{n}x{k}"] = () => new OpCase
    {
        Operands =
        [
            T("gate", [2, rows / 2, k], TestData.Normal(rows * k, 1)), T("up", [2, rows / 2, k], TestData.Normal(rows * k, 2)), T("weight", [n, k], TestData.Normal(n * k, 3)),
            T("h", [2, rows / 2, k]), T("y", [2, rows / 2, n]),
        ],
        Call = (backend, t) =>
        {
            backend.GatedLinearUnit(t("gate"), t("up"), activation, t("h"));
            using Tensor h = t("h").View([rows, k]), y = t("y").View([rows, n]);
            backend.Gemm(h, transposeA: false, t("weight"), transposeB: true, alpha: 1, beta: 0, y);
        },
        Oracle = v =>
        {
            double[] h = ElementwiseOracle.Map(v("gate"), v("up"), (g, u) => ElementwiseOracle.Activate(g, activation) * u);
            return Results(("h", h), ("y", MatrixOracle.Gemm(h, transposeA: false, v("weight"), transposeB: true, 1, 0, [], 1, rows, n, k)));
        },
        Apply = v => GatedProjection.Apply(v("gate"), v("up"), activation, v("weight")),
    };

    private static void AddEmbedding(int vocabulary, int width, int rows, OperandKind kind)
    {
        var random = new Random(3);
        long[] ids = [.. Enumerable.Range(0, rows).Select(i => i == 2 ? -1 : i == 5 ? vocabulary : random.NextInt64(i % 3 == 0 ? 3 : vocabulary))];
        var idsOperand = new Operand("ids", [rows], kind, Array.ConvertAll(ids, i => (double)i));
        double[] table = TestData.Normal(vocabulary * width, 1);
        s_rows[$"embedding {vocabulary}x{width} of {rows} {kind}"] = () => new OpCase
        {
            Operands = [idsOperand, T("table", [vocabulary, width], table), T("y", [rows, width])],
            Call = (backend, t) => backend.Embedding(t("ids"), t("table"), t("y")),
            Oracle = v => Results(("y", MatrixOracle.Embedding(ids, v("table"), width))),
            Apply = v => Embedding.Apply(v("ids"), v("table")),
        };
        s_rows[$"embedding backward {vocabulary}x{width} of {rows} {kind}"] = () => new OpCase
        {
            Operands = [idsOperand, T("dy", [rows, width], TestData.Normal(rows * width, 2)), Acc("dTable", [vocabulary, width], table)],
            Call = (backend, t) => backend.EmbeddingBackward(t("ids"), t("dy"), t("dTable")),
            Oracle = v => Results(("dTable", MatrixOracle.EmbeddingBackward(ids, v("dy"), v("dTable"), width))),
        };
    }
}
