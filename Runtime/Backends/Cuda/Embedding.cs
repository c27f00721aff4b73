namespace LaspNative.Runtime.Cuda;

/// <summary>Rows of a table by index and the gradient that adds them back (embedding.cu).</summary>
internal sealed partial class CudaBackend
{
    private const string EmbeddingFile = "embedding";

    /// <summary>Blocks that share out the ids of the backward pass, per 256 columns; each reads all ids.</summary>
    private const long EmbeddingGroups = 256;

    public void Embedding(Tensor ids, Tensor table, Tensor y)
    {
        RequireElement(table);
        RequireType(y, table.DType);
        RequireIds(ids, table, y);
        Launch(
            EmbeddingFile, IsWide(ids) ? "embedding_fwd_i64" : "embedding_fwd_i32", table.DType, PerWarp(ids.Count),
            ids.Pointer, table.Pointer, ids.Count, table.Shape[0], table.Shape[1], y.Pointer);
    }

    public void EmbeddingBackward(Tensor ids, Tensor dy, Tensor dTable)
    {
        RequireElement(dy);
        RequireType(dTable, DType.F32);
        RequireIds(ids, dTable, dy);
        if (ids.Count == 0) return;
        long vocabulary = dTable.Shape[0], columns = dTable.Shape[1];
        var shape = new LaunchShape((uint)Math.Min(vocabulary, EmbeddingGroups), checked((uint)CeilDivide(columns, BlockThreads)), 1, BlockThreads);
        Launch(
            EmbeddingFile, IsWide(ids) ? "embedding_bwd_i64" : "embedding_bwd_i32", dy.DType, shape,
            ids.Pointer, dy.Pointer, ids.Count, vocabulary, columns, dTable.Pointer);
    }

    private static void RequireIds(Tensor ids, Tensor table, Tensor rows)
    {
        RequireGpu(ids);
        if (ids.DType is not (DType.I32 or DType.I64)) throw new LaspException($"ids are I32 or I64, got {ids.DType}");
        if (table.Shape.Rank != 2 || rows.Count != ids.Count * table.Shape[1]) throw new LaspException($"{ids.Count} rows of the table {table.Shape} do not fill {rows.Shape}");
    }

    private static bool IsWide(Tensor ids) => ids.DType == DType.I64;
}
