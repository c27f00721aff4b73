namespace LaspNative.Runtime.Cpu;

/// <summary>Dimensions in another order: y is written front to back, in runs where elements stay side by side.</summary>
internal sealed unsafe partial class CpuBackend
{
    public void Permute(Tensor x, ReadOnlySpan<int> axes, Tensor y)
    {
        PermuteLayout layout = PermuteLayout.Of(x, axes, y);
        if (y.Count == 0) return;
        switch (x.DType.Size())
        {
            case 2: Permute<ushort>(layout, x, y); break;
            case 4: Permute<uint>(layout, x, y); break;
            default: Permute<ulong>(layout, x, y); break;
        }
    }

    /// <summary>A row is one index of all dimensions but the last.</summary>
    private void Permute<T>(PermuteLayout layout, Tensor x, Tensor y) where T : unmanaged
    {
        T* source = (T*)x.Pointer, destination = (T*)y.Pointer;
        int last = layout.Rank - 1;
        long width = layout.Extent(last), stride = layout.Stride(last);
        ForRanges(y.Count / width, Math.Max(1, Grain / width), (start, count) =>
        {
            for (long row = start; row < start + count; row++)
            {
                T* from = source + RowStart(layout, row), to = destination + (row * width);
                if (stride == 1) Buffer.MemoryCopy(from, to, width * sizeof(T), width * sizeof(T));
                else for (long i = 0; i < width; i++) to[i] = from[i * stride];
            }
        });
    }

    private static long RowStart(PermuteLayout layout, long row)
    {
        long start = 0;
        for (int i = layout.Rank - 2; i >= 0; i--)
        {
            (row, long index) = Math.DivRem(row, layout.Extent(i));
            start += index * layout.Stride(i);
        }
        return start;
    }
}
