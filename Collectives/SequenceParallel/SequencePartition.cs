using LaspNative.Runtime;

namespace LaspNative.Collectives;

/// <summary>
/// Which tokens of a sequence each rank holds: contiguous chunks in rank order whose lengths differ by at most one token.
/// With fewer tokens than ranks the last ranks hold none.
/// </summary>
public sealed record SequencePartition
{
    /// <param name="tokens">Tokens N of the whole sequence, 0 or more.</param>
    /// <param name="ranks">Ranks W of the sequence-parallel group, at least 1.</param>
    public SequencePartition(long tokens, int ranks)
    {
        if (tokens < 0 || ranks < 1) throw new LaspException($"{tokens} tokens cannot be divided among {ranks} ranks");
        Tokens = tokens;
        Ranks = ranks;
    }

    public long Tokens { get; }

    public int Ranks { get; }

    /// <summary>Whether all ranks hold equally many tokens.</summary>
    public bool IsEven => Tokens % Ranks == 0;

    /// <summary>Index of the first token of a rank's chunk.</summary>
    public long Start(int rank) => rank * (Tokens / Ranks) + Math.Min(rank, Tokens % Ranks);

    /// <summary>Tokens of a rank's chunk.</summary>
    public long Length(int rank) => Start(rank + 1) - Start(rank);

    /// <summary>All ranks' chunk lengths.</summary>
    public long[] Lengths() => [.. Enumerable.Range(0, Ranks).Select(Length)];
}
