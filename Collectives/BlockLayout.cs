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

    public static bool AreEqual(ReadOnlySpan<long> counts) => !counts.ContainsAnyExcept(counts[0]);

    public bool Equals(BlockLayout? other) => other is not null && _starts.AsSpan().SequenceEqual(other._starts);

    public override bool Equals(object? obj) => Equals(obj as BlockLayout);

    public override int GetHashCode() => HashCode.Combine(Ranks, Total);

    /// <summary>The counts, as errors show them.</summary>
    public override string ToString() => $"[{string.Join(", ", Enumerable.Range(0, Ranks).Select(Count))}]";
}
