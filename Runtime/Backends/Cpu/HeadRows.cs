namespace LaspNative.Runtime.Cpu;

/// <summary>The rows of one head in a tensor [B, N, H, width], or [B, N, H] with width 1: row i lies at Data + i * Stride.</summary>
internal readonly unsafe struct HeadRows<T>(T* data, long stride, int width) where T : unmanaged
{
    public readonly T* Data = data;
    public readonly long Stride = stride;
    public readonly int Width = width;

    public static HeadRows<T> Of(Tensor tensor, long batch, long head)
    {
        long tokens = tensor.Shape[1], heads = tensor.Shape[2], width = tensor.Shape.Rank == 3 ? 1 : tensor.Shape[3];
        return new HeadRows<T>((T*)tensor.Pointer + (((batch * tokens * heads) + head) * width), heads * width, checked((int)width));
    }

    public T* At(long row) => Data + (row * Stride);

    /// <summary>Rows [start, start + count), widened and packed.</summary>
    public void Gather<A>(long start, int count, A* packed) where A : unmanaged
    {
        T* row = Data + (start * Stride);
        for (int i = 0; i < count; i++, row += Stride, packed += Width) Rows.Copy<T, A, A>(row, packed, Width);
    }

    /// <summary>The inverse of <see cref="Gather"/>.</summary>
    public void Scatter<A>(A* packed, long start, int count) where A : unmanaged
    {
        T* row = Data + (start * Stride);
        for (int i = 0; i < count; i++, row += Stride, packed += Width) Rows.Copy<A, T, A>(packed, row, Width);
    }
}
