using LaspNative.Runtime;

namespace LaspNative.Collectives;

/// <summary>What a rank of a <see cref="World"/> is given to work with. Device and communicator belong to the world, which disposes them.</summary>
public sealed class RankContext
{
    internal RankContext(int rank, int size, Device device, ICommunicator world, CancellationToken cancellation)
    {
        Rank = rank;
        Size = size;
        Device = device;
        World = world;
        Cancellation = cancellation;
    }

    public int Rank { get; }

    public int Size { get; }

    public Device Device { get; }

    /// <summary>The group of all ranks.</summary>
    public ICommunicator World { get; }

    /// <summary>Set on Ctrl-C. Ranks see it at different moments: agree on the step to stop after before stopping.</summary>
    public CancellationToken Cancellation { get; }
}
