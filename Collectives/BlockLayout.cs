using LaspNative.Runtime;

namespace LaspNative.Collectives;

/// <summary>
/// How one tensor is cut into a block of elements per rank, in rank order; blocks may be empty. Two layouts are equal when their counts are.
/// </summary>
internal sealed class BlockLayout : IEquatable<BlockLayout>
{
    private readonly long[] _starts;

    public BlockLayout(ReadOnlySpan<long> counts)
    {
        _starts = new long[counts.Length + 1];
        for (int rank = 0; rank < counts.Length; rank++) _starts[rank + 1] = _starts[rank] + counts[rank];
    }

    public int Ranks => _starts.Length - 1;

    public long Total => _starts[^1];

    /// <summary>Elements before the rank's block.</summary>
    public long Start(int rank) => _starts[rank];

    public long Count(int rank) => _starts[rank + 1] - _starts[rank];

    /// <summary>A tensor cut into pieces of whole rows of its first dimension, as <see cref="SequencePartition"/> cuts tokens: a "rank" is a piece here.</summary>
    public static BlockLayout OfRows(Shape shape, int pieces)
    {
        long rows = shape[0], row = rows == 0 ? 0 : shape.Count / rows;
        return new BlockLayout([.. new SequencePartition(rows, pieces).Lengths().Select(length => length * row)]);
    }

    /// <summary>The piece behind those that a rank passes on in a relay of a type, whole ones from <paramref name="first"/> on; checks that they are.</summary>
    public int EndOf(Tensor pieces, DType dtype, int first, int rank)
    {
        if (pieces.DType != dtype) throw new LaspException($"Relay on rank {rank}: the relay is of {dtype}, but {pieces.Shape} is {pieces.DType}; cast it first");
        if (first >= Ranks) throw new LaspException($"Relay on rank {rank}: all {Ranks} pieces were passed on already; a block has no more");
        int end = first + 1;
        while (end < Ranks && Start(end) - Start(first) < pieces.Count) end++;
        long count = Start(end) - Start(first);
        if (count != pieces.Count) throw new LaspException($"Relay on rank {rank}: pieces {first} to {end - 1} of {Ranks} have {count} elements, but {pieces.Shape} has {pieces.Count}; pass whole pieces on");
        return end;
    }

    public static bool AreEqual(ReadOnlySpan<long> counts) => !counts.ContainsAnyExcept(counts[0]);

    public bool Equals(BlockLayout? other) => other is not null && _starts.AsSpan().SequenceEqual(other._starts);

    public override bool Equals(object? obj) => Equals(obj as BlockLayout);

    public override int GetHashCode() => HashCode.Combine(Ranks, Total);

    /// <summary>The counts, as errors show them.</summary>
    public override string ToString() => $"[{string.Join(", ", Enumerable.Range(0, Ranks).Select(Count))}]";
}
