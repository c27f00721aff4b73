using LaspNative.Runtime;
using LaspNative.Runtime.Cpu;

namespace LaspNative.Perf;

/// <summary>How an operand of an op over rows of hidden values is shaped and filled.</summary>
internal enum OperandKind
{
    /// <summary>[1, rows, 16, 128] (viewed as [rows, 2048] by ops on whole rows) of normal bf16 values.</summary>
    Rows,

    /// <summary>As <see cref="Rows"/>, written by the op.</summary>
    RowsOut,

    /// <summary>One positive fp32 value per norm.</summary>
    PerNorm,

    /// <summary>As <see cref="PerNorm"/>, written by the op.</summary>
    PerNormOut,

    /// <summary>A bf16 weight as long as a norm.</summary>
    Weight,

    /// <summary>An fp32 gradient of a weight, added to.</summary>
    WeightGradient,
}

/// <summary>One operand of an op, by name.</summary>
internal sealed record Operand(string Name, OperandKind Kind)
{
    public bool IsResult => Kind is OperandKind.RowsOut or OperandKind.PerNormOut or OperandKind.WeightGradient;

    public bool IsRows => Kind is not (OperandKind.Weight or OperandKind.WeightGradient);
}

/// <summary>
/// One elementwise or row-wise op of a layer: its operands, each read or written once (so their bytes are the floor), and the call. A new op is a new entry of <see cref="LayerOps"/>.
/// </summary>
/// <param name="NormWidth">Values per norm: 128 for heads, 2048 for whole rows.</param>
/// <param name="Call">The backend, the operands by name, and the position of their first row.</param>
internal sealed record LayerOp(string Name, int NormWidth, Operand[] Operands, Action<IBackend, Func<string, Tensor>, long> Call);

/// <summary>
/// A <see cref="LayerOp"/> on all rows. Compared with fp64 are all results of the op on its first rows alone, and the last rows of the whole call.
/// </summary>
internal sealed class ElementwiseProblem : Problem
{
    public const int Hidden = 2048;
    private const int HeadWidth = 128;
    private const int CheckedRows = 256;
    private readonly LayerOp _op;
    private readonly int _rows;
    private readonly Dictionary<string, Tensor> _tensors = new(StringComparer.Ordinal);

    public ElementwiseProblem(LayerOp op, int rows)
    {
        (_op, _rows) = (op, rows);
        long bytes = op.Operands.Sum(o => Extents(o, rows).Count * Type(o).Size());
        Rows = [new Row($"{op.Name} {rows}x{Hidden}", "bf16", _ => Call(_tensors, Backend, 0), Error) { FloorBytes = bytes, FloorUnit = Units.CopyPercent }];
    }

    public override IReadOnlyList<Row> Rows { get; }

    protected override void Allocate()
    {
        foreach ((int i, Operand operand) in _op.Operands.Index())
        {
            Shape shape = Extents(operand, _rows);
            _tensors[operand.Name] = operand.Kind switch
            {
                OperandKind.Rows or OperandKind.Weight => Random(shape, i + 1),
                OperandKind.PerNorm => Own(RandomTensors.Positive(Device, shape, i + 1)),
                OperandKind.WeightGradient => Own(Tensor.Zeros(shape, DType.F32, Device)),
                _ => Empty(shape, Type(operand)),
            };
        }
    }

    private static DType Type(Operand operand) => operand.Kind is OperandKind.Rows or OperandKind.RowsOut or OperandKind.Weight ? DType.BF16 : DType.F32;

    /// <summary>Rows come first in every shape, so that a slice of the first dimension is a slice of rows.</summary>
    private Shape Extents(Operand operand, long rows) => operand.Kind switch
    {
        OperandKind.Rows or OperandKind.RowsOut => _op.NormWidth == HeadWidth ? [rows, Hidden / HeadWidth, HeadWidth] : [rows, Hidden],
        OperandKind.PerNorm or OperandKind.PerNormOut => [rows, Hidden / _op.NormWidth],
        _ => [_op.NormWidth],
    };

    private void Call(Dictionary<string, Tensor> tensors, IBackend backend, long firstRow) => _op.Call(backend, name => tensors[name], firstRow);

    private double Error()
    {
        RunPoisoned(_ => Call(_tensors, Backend, 0), [.. _op.Operands.Where(o => o.IsResult && o.IsRows).Select(o => _tensors[o.Name])]);
        RequireFinite([.. _op.Operands.Where(o => o.IsResult).Select(o => _tensors[o.Name])]);
        double last = Compare(_rows - CheckedRows, o => o.IsRows, _tensors);

        Dictionary<string, Tensor> first = Cut(0);
        try
        {
            foreach (Operand operand in _op.Operands.Where(o => o.Kind == OperandKind.WeightGradient)) Backend.Fill(0, first[operand.Name]);
            Call(first, Backend, 0);
            return Math.Max(last, Compare(0, _ => true, first));
        }
        finally
        {
            foreach (Tensor tensor in first.Values) tensor.Dispose();
        }
    }

    /// <summary>The worst error of the rows [start, start + 256) of the results in <paramref name="actual"/> that a filter lets through.</summary>
    private double Compare(int start, Func<Operand, bool> filter, Dictionary<string, Tensor> actual)
    {
        using var cpu = new CpuDevice(Environment.ProcessorCount);
        Dictionary<string, Tensor> cut = Cut(start), wide = new(StringComparer.Ordinal);
        foreach (Operand operand in _op.Operands)
            wide[operand.Name] = operand.IsResult ? Tensor.Zeros(cut[operand.Name].Shape, DType.F64, cpu) : Tensor.FromSpan(cut[operand.Name].ToDoubles(), cut[operand.Name].Shape, cpu);
        Call(wide, cpu.Backend, start);
        double worst = 0;
        foreach (Operand operand in _op.Operands.Where(o => o.IsResult && filter(o)))
        {
            Tensor whole = actual[operand.Name];
            using Tensor rows = operand.IsRows && whole.Shape[0] > CheckedRows ? whole.Slice(start, CheckedRows) : whole.Share();
            double error = Heads.RelativeError([rows.ToDoubles()], [wide[operand.Name].ToDoubles()]);
            if (!(error <= worst)) worst = error;
        }
        foreach (Tensor tensor in cut.Values.Concat(wide.Values)) tensor.Dispose();
        return worst;
    }

    /// <summary>All operands, those with rows cut to 256 of them from <paramref name="start"/>.</summary>
    private Dictionary<string, Tensor> Cut(int start) =>
        _op.Operands.ToDictionary(o => o.Name, o => o.IsRows ? _tensors[o.Name].Slice(start, CheckedRows) : _tensors[o.Name].Share(), StringComparer.Ordinal);
}
