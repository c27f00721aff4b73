using LaspNative.Collectives;

namespace LaspNative.Perf;

/// <summary>What ranks that are threads of one process tell one another beside their messages. Every rank calls in the same order; a rank that fails ends the others' barriers.</summary>
internal sealed class Meeting(int ranks)
{
    private readonly object?[] _told = new object?[ranks];

    /// <summary>Every rank's value, in rank order.</summary>
    public T[] Share<T>(RankContext rank, T value)
    {
        Volatile.Write(ref _told[rank.Rank], value);
        rank.World.Barrier();
        T[] all = [.. Enumerable.Range(0, ranks).Select(r => (T)Volatile.Read(ref _told[r])!)];
        rank.World.Barrier();
        return all;
    }
}
