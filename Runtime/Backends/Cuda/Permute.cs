namespace LaspNative.Runtime.Cuda;

/// <summary>Dimensions in another order, of any dtype, moved in words as wide as runs and addresses allow (permute.cu).</summary>
internal sealed partial class CudaBackend
{
    private const int PermuteWordsPerThread = 4;
    private const int WidestWord = 16;

    public void Permute(Tensor x, ReadOnlySpan<int> axes, Tensor y)
    {
        RequireGpu(x);
        RequireGpu(y);
        PermuteLayout layout = PermuteLayout.Of(x, axes, y);
        int size = x.DType.Size(), word = WordBytes(layout, x, y);
        PermuteLayout words = layout.InWords(word / size);
        string kernel = word switch { 2 => "permute_16", 4 => "permute_32", 8 => "permute_64", _ => "permute_128" };
        long count = x.Count / (word / size);
        Launch(
            "permute", kernel, DType.F32, LaunchShape.For(CeilDivide(count, PermuteWordsPerThread), BlockThreads), x.Pointer,
            Extent(words, 1), Extent(words, 2), Extent(words, 3), Extent(words, 4), Stride(words, 0), Stride(words, 1), Stride(words, 2), Stride(words, 3), Stride(words, 4),
            count, y.Pointer);
    }

    /// <summary>Bytes of the widest word in which both tensors can be moved.</summary>
    private static int WordBytes(PermuteLayout layout, Tensor x, Tensor y)
    {
        int size = x.DType.Size();
        long multiples = x.Pointer | y.Pointer | (layout.Run * size); // a power of two divides all of them when it divides the lowest set bit
        for (int i = 0; i < layout.Rank - 1; i++) multiples |= layout.Stride(i) * size;
        int word = WidestWord;
        while (word > size && multiples % word != 0) word /= 2;
        return word;
    }

    // The kernel walks five dimensions: those in front of the layout's own have extent 1.
    private static long Extent(PermuteLayout layout, int dimension)
    {
        int own = dimension - Shape.MaxRank + layout.Rank;
        return own < 0 ? 1 : layout.Extent(own);
    }

    private static long Stride(PermuteLayout layout, int dimension)
    {
        int own = dimension - Shape.MaxRank + layout.Rank;
        return own < 0 ? 0 : layout.Stride(own);
    }
}
