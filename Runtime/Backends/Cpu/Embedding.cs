using System.Numerics;

namespace LaspNative.Runtime.Cpu;

/// <summary>Rows of a table by index, and the gradient that adds them back.</summary>
internal sealed unsafe partial class CpuBackend
{
    /// <summary>Columns of the table that one task of the backward pass owns; it takes the rows in order, so no two tasks meet.</summary>
    private const int EmbeddingColumns = 64;

    public void Embedding(Tensor ids, Tensor table, Tensor y)
    {
        RequireType(y, table.DType);
        long width = table.Shape[1] * table.DType.Size(), vocabulary = table.Shape[0];
        if (y.Bytes != ids.Count * width) throw new LaspException($"{ids.Count} rows of the table {table.Shape} do not fill {y.Shape}");
        byte* rows = (byte*)table.Pointer, destination = (byte*)y.Pointer;
        nint indices = ids.Pointer;
        bool wide = ids.DType == DType.I64;
        ForRanges(ids.Count, Math.Max(1, Grain / Math.Max(1, table.Shape[1])), (start, length) =>
        {
            for (long r = start; r < start + length; r++)
            {
                long id = IndexAt(indices, wide, r);
                var target = new Span<byte>(destination + (r * width), checked((int)width));
                if ((ulong)id < (ulong)vocabulary) new ReadOnlySpan<byte>(rows + (id * width), (int)width).CopyTo(target);
                else target.Clear();
            }
        });
    }

    public void EmbeddingBackward(Tensor ids, Tensor dy, Tensor dTable)
    {
        RequireType(dTable, dy.DType.Accumulator());
        if (dy.Count != ids.Count * dTable.Shape[1]) throw new LaspException($"{ids.Count} rows of the table {dTable.Shape} do not fill {dy.Shape}");
        if (dy.DType == DType.F64) EmbeddingBackward<double, double>(ids, dy, dTable);
        else if (dy.DType == DType.F32) EmbeddingBackward<float, float>(ids, dy, dTable);
        else EmbeddingBackward<BF16, float>(ids, dy, dTable);
    }

    private void EmbeddingBackward<T, A>(Tensor ids, Tensor dy, Tensor dTable) where T : unmanaged where A : unmanaged, IBinaryFloatingPointIeee754<A>
    {
        T* source = (T*)dy.Pointer;
        A* table = (A*)dTable.Pointer;
        long vocabulary = dTable.Shape[0], width = dTable.Shape[1], count = ids.Count;
        nint indices = ids.Pointer;
        bool wide = ids.DType == DType.I64;
        ForRanges(width, EmbeddingColumns, (start, length) =>
        {
            for (long r = 0; r < count; r++)
            {
                long id = IndexAt(indices, wide, r);
                if ((ulong)id < (ulong)vocabulary) Rows.Add<T, A>(source + (r * width) + start, table + (id * width) + start, length);
            }
        });
    }

    private static long IndexAt(nint indices, bool wide, long position) => wide ? ((long*)indices)[position] : ((int*)indices)[position];
}
