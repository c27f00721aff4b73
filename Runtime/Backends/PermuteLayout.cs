using System.Runtime.CompilerServices;

namespace LaspNative.Runtime;

/// <summary>
/// How <see cref="IBackend.Permute"/> walks its tensors: the extents of y and, for each, how far its neighbour lies in x, in elements. Dimensions of extent 1 are dropped and those that stay
/// neighbours are merged, so that what is copied in runs shows as one last dimension of stride 1.
/// </summary>
internal readonly struct PermuteLayout
{
    [InlineArray(Shape.MaxRank)]
    private struct Numbers { private long _first; }

    private readonly Numbers _extents;
    private readonly Numbers _strides;

    private PermuteLayout(int rank, Numbers extents, Numbers strides)
    {
        Rank = rank;
        _extents = extents;
        _strides = strides;
    }

    /// <summary>At least 1.</summary>
    public int Rank { get; }

    public long Extent(int dimension) => _extents[dimension];

    public long Stride(int dimension) => _strides[dimension];

    /// <summary>Elements that lie side by side in both x and y.</summary>
    public long Run => _strides[Rank - 1] == 1 ? _extents[Rank - 1] : 1;

    public static PermuteLayout Of(Tensor x, ReadOnlySpan<int> axes, Tensor y)
    {
        RequireFit(x, axes, y);
        Span<long> distances = stackalloc long[Shape.MaxRank];
        long distance = 1;
        for (int i = x.Shape.Rank - 1; i >= 0; i--)
        {
            distances[i] = distance;
            distance *= x.Shape[i];
        }
        var extents = new Numbers();
        var strides = new Numbers();
        int rank = 0;
        foreach (int axis in axes)
        {
            (long extent, long stride) = (x.Shape[axis], distances[axis]);
            if (extent == 1) continue;
            if (rank > 0 && strides[rank - 1] == stride * extent) extents[--rank] *= extent;
            else extents[rank] = extent;
            strides[rank++] = stride;
        }
        if (rank == 0) (extents[rank], strides[rank++]) = (1, 1);
        return new PermuteLayout(rank, extents, strides);
    }

    /// <summary>The same walk in words of <paramref name="elements"/> elements, which must divide <see cref="Run"/> and every other stride.</summary>
    public PermuteLayout InWords(int elements)
    {
        (Numbers extents, Numbers strides) = (_extents, _strides);
        if (elements > 1) extents[Rank - 1] /= elements;
        for (int i = 0; i < Rank - 1; i++) strides[i] /= elements;
        return new PermuteLayout(Rank, extents, strides);
    }

    private static void RequireFit(Tensor x, ReadOnlySpan<int> axes, Tensor y)
    {
        bool fits = axes.Length == x.Shape.Rank && y.Shape.Rank == x.Shape.Rank && x.DType == y.DType;
        int used = 0;
        for (int i = 0; fits && i < axes.Length; i++)
        {
            fits = (uint)axes[i] < (uint)axes.Length && (used & (1 << axes[i])) == 0 && y.Shape[i] == x.Shape[axes[i]];
            used |= 1 << axes[i];
        }
        if (!fits) throw new LaspException($"{x.DType} {x.Shape} with its dimensions in the order [{string.Join(", ", axes.ToArray())}] is not {y.DType} {y.Shape}; name each dimension once");
    }
}
