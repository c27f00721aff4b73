using LaspNative.Runtime;

namespace LaspNative.Autograd;

/// <summary>
/// y[r] = table[ids[r]]                    ids of any shape [..] (I32 or I64), table [V, C], y [.., C]
/// dTable[ids[r]] += dy[r], r ascending    added straight into the table's fp32 gradient
/// An id outside [0, V) gives a zero row and no gradient.
/// </summary>
public sealed class Embedding : Function
{
    private readonly Tensor _ids;

    private Embedding(Variable ids) => _ids = Save(ids.Value);

    public static Variable Apply(Variable ids, Variable table)
    {
        ArgumentNullException.ThrowIfNull(ids);
        ArgumentNullException.ThrowIfNull(table);
        if (ids.DType is not (DType.I32 or DType.I64) || table.Shape.Rank != 2)
            throw new LaspException($"an embedding takes ids of I32 or I64 and a table [V, C], got {ids.DType} {ids.Shape} and {table.DType} {table.Shape}");
        Tensor y = Tensor.Empty(Append(ids.Shape, table.Shape[1]), table.DType, table.Device);
        table.Device.Backend.Embedding(ids.Value, table.Value, y);
        return new Embedding(ids).Record([ids, table], y);
    }

    protected internal override void Backward(BackwardPass pass)
    {
        if (!pass.Wants(1)) return;
        Tensor dTable = pass.AddingBuffer(1);
        _ids.Device.Backend.EmbeddingBackward(_ids, pass.RequiredOutput(0), dTable);
    }

    private static Shape Append(Shape shape, long extent)
    {
        Span<long> extents = stackalloc long[shape.Rank + 1];
        for (int i = 0; i < shape.Rank; i++) extents[i] = shape[i];
        extents[^1] = extent;
        return new Shape(extents);
    }
}
