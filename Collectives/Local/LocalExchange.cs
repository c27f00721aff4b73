using LaspNative.Runtime;

namespace LaspNative.Collectives;

/// <summary>Operations of one channel meet in order: (-1, -1) is the collectives' channel, (from, to) the messages' between two ranks.</summary>
internal readonly record struct LocalChannel(int From, int To)
{
    public static LocalChannel Collective { get; } = new(-1, -1);
}

/// <summary>
/// What every rank that takes part must agree on. Elements counts one rank's contribution, or that of all ranks together where their blocks differ;
/// it is 0 where each pair of ranks has its own count.
/// </summary>
internal readonly record struct LocalOperation(string Name, DType DType, long Elements, int Root, BlockLayout? Blocks = null)
{
    public static LocalOperation Barrier { get; } = new("Barrier", default, 0, 0);

    public override string ToString() => Name switch
    {
        "Barrier" => Name,
        "Broadcast" => $"{Name} of {Elements} {DType} elements from rank {Root}",
        "AllToAll by counts" => $"{Name} of {DType} elements",
        _ when Blocks is not null => $"{Name} of {Blocks} {DType} elements",
        _ => $"{Name} of {Elements} {DType} elements",
    };
}

/// <summary>
/// One operation's meeting place: the blocks that ranks have staged for one another. Touched under the group's lock only, except that blocks may be read
/// without it once all of them are there (<see cref="IsComplete"/>) and until the reader says that it has read, and that each owner then frees its own.
/// </summary>
internal sealed class LocalExchange
{
    private readonly bool[] _expected;
    private readonly bool[] _unread;
    private int _held;

    public LocalExchange(LocalGroup group, LocalChannel channel, long sequence, LocalOperation operation, int firstRank)
    {
        int size = group.Size;
        Group = group;
        Key = (channel, sequence);
        Operation = operation;
        FirstRank = firstRank;
        Blocks = new StagedBlock?[size];
        _expected = new bool[size];
        _unread = new bool[size];
        bool collective = channel == LocalChannel.Collective;
        for (int rank = 0; rank < size; rank++)
        {
            _expected[rank] = collective || rank == channel.From || rank == channel.To;
            _unread[rank] = collective || rank == channel.To;
        }
    }

    public (LocalChannel Channel, long Sequence) Key { get; }

    public LocalGroup Group { get; }

    public LocalOperation Operation { get; }

    /// <summary>The rank that posted first and so said what the operation is.</summary>
    public int FirstRank { get; }

    /// <summary>What each rank has staged; null for ranks that contribute nothing.</summary>
    public StagedBlock?[] Blocks { get; }

    /// <summary>Points behind each reader's copies: memory of a block is reused only after all of them.</summary>
    public List<CopyFence> Readers { get; } = [];

    public bool IsComplete => !_expected.Contains(true);

    public bool IsRead => !_unread.Contains(true);

    /// <summary>Whether the rank takes part and has not posted.</summary>
    public bool Expects(int rank) => _expected[rank];

    public void Arrive(int rank, StagedBlock? block)
    {
        _expected[rank] = false;
        Blocks[rank] = block;
        if (block is not null) _held++;
    }

    /// <summary>The rank needs the blocks no longer. True when it was the last.</summary>
    public bool Read(int rank, CopyFence? fence)
    {
        if (!_unread[rank]) return false;
        _unread[rank] = false;
        if (fence is not null) Readers.Add(fence);
        return IsRead;
    }

    /// <summary>Frees a rank's block behind its readers; the last block takes the fences with it.</summary>
    public void Free(int rank, CopyQueue owner)
    {
        if (Blocks[rank] is not { } block) return;
        foreach (CopyFence reader in Readers) owner.Follow(reader);
        owner.LeadCompute();
        block.Tensor.Dispose();
        block.Filled?.Dispose();
        if (Interlocked.Decrement(ref _held) == 0) Readers.ForEach(r => r.Dispose());
    }

    public string Describe() => Key.Channel == LocalChannel.Collective
        ? $"{Operation} (operation {Key.Sequence}{Group.Description})"
        : $"{Operation} from rank {Key.Channel.From} to rank {Key.Channel.To} (message {Key.Sequence}{Group.Description})";
}

/// <summary>A rank's contribution: memory of its own device, when it is filled, and which part is whose where every pair of ranks has its own count.</summary>
internal sealed record StagedBlock(Tensor Tensor, CopyFence? Filled, BlockLayout? Parts);
