using LaspNative.Runtime;

namespace LaspNative.Collectives;

/// <summary>
/// The world's ranks as a grid of data-parallel rows and sequence-parallel columns (LASP, Algorithm 1), seen from one rank r = DpRank SpSize + SpRank:
/// sequence-parallel group g = ranks [g SpSize, (g+1) SpSize) share a sequence, data-parallel group i = {i, i + SpSize, ...} hold the same chunk of different sequences.
/// Every rank of the world makes the mesh at the same point. Its groups are the mesh's, the world stays its owner's.
/// </summary>
public sealed class ProcessMesh : IDisposable
{
    /// <param name="dpSize">Sequence-parallel groups, each with its own part of the batch.</param>
    /// <param name="spSize">Ranks that share one sequence; dpSize x spSize must be the world.</param>
    public ProcessMesh(ICommunicator world, int dpSize, int spSize)
    {
        ArgumentNullException.ThrowIfNull(world);
        if (dpSize < 1 || spSize < 1) throw new LaspException($"a mesh of {dpSize} data-parallel x {spSize} sequence-parallel ranks is empty; both need at least 1 (--dp, --ranks)");
        if ((long)dpSize * spSize != world.Size)
            throw new LaspException($"a mesh of {dpSize} data-parallel x {spSize} sequence-parallel ranks needs {(long)dpSize * spSize} ranks, but the world has {world.Size}; choose --dp x --ranks equal to the world");
        World = world;
        DpSize = dpSize;
        SpSize = spSize;
        SequenceParallel = Join(dpSize, SpRanks);
        DataParallel = Join(spSize, DpRanks);
        Gradients = world.Size == 1 ? world : world.Background();
    }

    public int DpSize { get; }

    public int SpSize { get; }

    /// <summary>Which sequence-parallel group this rank is in, and its rank in the data-parallel group.</summary>
    public int DpRank => World.Rank / SpSize;

    /// <summary>Which chunk this rank holds, and its rank in the sequence-parallel group.</summary>
    public int SpRank => World.Rank % SpSize;

    public ICommunicator World { get; }

    /// <summary>The ranks that share this rank's sequences.</summary>
    public ICommunicator SequenceParallel { get; }

    /// <summary>The ranks that hold the same chunk of other sequences.</summary>
    public ICommunicator DataParallel { get; }

    /// <summary>All ranks of the world, for sums of gradients: large messages that have time until the pass ends, and that short ones must not queue behind.</summary>
    public ICommunicator Gradients { get; }

    /// <summary>Bytes that this rank has sent in the world and in all of the mesh's groups.</summary>
    public long BytesSent => new HashSet<ICommunicator>([World, SequenceParallel, DataParallel, Gradients], ReferenceEqualityComparer.Instance).Sum(group => group.Counters.BytesSent);

    /// <summary>World ranks of sequence-parallel group <paramref name="group"/>.</summary>
    public int[] SpRanks(int group) => [.. Enumerable.Range(group * SpSize, SpSize)];

    /// <summary>World ranks of data-parallel group <paramref name="group"/>.</summary>
    public int[] DpRanks(int group) => [.. Enumerable.Range(0, DpSize).Select(row => row * SpSize + group)];

    public void Dispose()
    {
        if (Gradients != World) Gradients.Dispose();
        if (DataParallel != World) DataParallel.Dispose();
        if (SequenceParallel != World) SequenceParallel.Dispose();
    }

    /// <summary>Makes all groups of one direction, as every rank must, and keeps the one that this rank is in.</summary>
    private ICommunicator Join(int groups, Func<int, int[]> ranksOf)
    {
        if (groups == 1) return World;
        ICommunicator? own = null;
        for (int group = 0; group < groups; group++) own = World.Split(ranksOf(group)) ?? own;
        return own!;
    }
}
