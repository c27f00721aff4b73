using LaspNative.Runtime;

namespace LaspNative.Collectives;

/// <summary>
/// Ranks that are threads of one process, on the CPU or sharing one GPU. They meet here: an operation stages the rank's data and returns,
/// and its Wait blocks until every rank has staged. Nothing hangs: when ranks call different things, one fails or leaves, or all wait for one another,
/// every rank gets the reason.
/// </summary>
public sealed class LocalGroup
{
    private readonly LocalFamily _family;
    private readonly Dictionary<(LocalChannel Channel, long Sequence), LocalExchange> _exchanges = [];
    private readonly List<LocalGroup> _splits = [];
    private readonly LocalCommunicator?[] _ranks;
    private readonly bool[] _left;

    public LocalGroup(int size) : this(size < 1 ? throw new LaspException($"a group needs at least 1 rank, got {size}") : [.. Enumerable.Range(0, size)], new LocalFamily(size), "") { }

    private LocalGroup(int[] members, LocalFamily family, string description)
    {
        Members = members;
        Description = description;
        _family = family;
        _ranks = new LocalCommunicator?[members.Length];
        _left = new bool[members.Length];
    }

    public int Size => Members.Length;

    /// <summary>This group's ranks as the first group of the family counts them.</summary>
    internal int[] Members { get; }

    /// <summary>What errors add to say which group they speak of; nothing for the first.</summary>
    internal string Description { get; }

    /// <summary>
    /// The group as one rank sees it; once per rank. Every rank needs a device of its own (several may share a GPU), all of one kind.
    /// Ranks read each other's memory: dispose the devices after the last communicator.
    /// </summary>
    public ICommunicator Communicator(int rank, Device device)
    {
        var communicator = new LocalCommunicator(this, rank, device);
        lock (_family.Gate)
        {
            if (_ranks[rank] is not null) throw new LaspException($"rank {rank} of this group is taken; ask once per rank");
            if (Array.Find(_ranks, r => r is not null) is { } other && other.Device.Kind != device.Kind)
                throw new LaspException($"rank {rank} is on {device.Name} but rank {other.Rank} on {other.Device.Name}; ranks of one group need devices of one kind");
            _ranks[rank] = communicator;
        }
        return communicator;
    }

    /// <summary>Ends the group: whatever waits or is called later throws <paramref name="reason"/>'s message. The first reason stays.</summary>
    public void Abort(Exception reason)
    {
        ArgumentNullException.ThrowIfNull(reason);
        lock (_family.Gate) _family.Fail($"the group was aborted: {reason.Message}", reason);
    }

    /// <summary>As <see cref="Abort(Exception)"/>, naming the rank that failed.</summary>
    public void Abort(int rank, Exception reason)
    {
        ArgumentNullException.ThrowIfNull(reason);
        lock (_family.Gate) _family.Fail($"rank {rank} failed: {reason.Message}", reason);
    }

    /// <summary>Adds the rank's contribution to the operation that is next in the channel. Does not wait.</summary>
    internal LocalExchange Post(int rank, LocalChannel channel, long sequence, LocalOperation operation, StagedBlock? block)
    {
        lock (_family.Gate)
        {
            _family.ThrowIfFailed();
            if (!_exchanges.TryGetValue((channel, sequence), out LocalExchange? exchange))
            {
                exchange = new LocalExchange(this, channel, sequence, operation, rank);
                _exchanges.Add((channel, sequence), exchange);
            }
            else if (exchange.Operation != operation)
            {
                _family.Fail($"rank {rank} called {operation} where rank {exchange.FirstRank} called {exchange.Describe()}; all ranks must call the same operations in the same order", null);
            }
            FailIfAbandoned(exchange);
            _family.ThrowIfFailed();
            exchange.Arrive(rank, block);
            if (exchange.IsComplete) Monitor.PulseAll(_family.Gate);
            return exchange;
        }
    }

    /// <summary>Blocks until all ranks have posted: then the blocks may be read, without a lock, until <see cref="Read"/>.</summary>
    internal void Await(int rank, LocalExchange exchange)
    {
        lock (_family.Gate)
        {
            FailIfAbandoned(exchange);
            _family.Await(Members[rank], exchange);
        }
    }

    /// <summary>The rank has read what it needed (on a GPU: its copies are queued, <paramref name="fence"/> behind them).</summary>
    internal void Read(int rank, LocalExchange exchange, CopyFence? fence)
    {
        lock (_family.Gate)
            if (exchange.Read(rank, fence)) Retire(exchange);
    }

    /// <summary>The rank will call nothing more: whoever still waits for it fails.</summary>
    internal void Leave(int rank)
    {
        lock (_family.Gate)
        {
            _left[rank] = true;
            foreach (LocalExchange exchange in _exchanges.Values.ToArray())
                if (exchange.Read(rank, null)) Retire(exchange);
            foreach (LocalExchange exchange in _family.Awaited()) exchange.Group.FailIfAbandoned(exchange);
            if (Array.TrueForAll(_left, left => left)) Close();
        }
    }

    /// <summary>Ends the group because two ranks gave different counts for what one sends the other.</summary>
    internal void Disagree(int from, long sent, int to, long expected)
    {
        lock (_family.Gate)
        {
            _family.Fail($"AllToAll: rank {from} sends rank {to} {sent} elements, but rank {to} expects {expected}; both need one count", null);
            _family.ThrowIfFailed();
        }
    }

    /// <summary>The group of some of these ranks as one of them sees it, null elsewhere. <paramref name="sequence"/> counts the rank's splits; the first rank to come makes the group.</summary>
    internal ICommunicator? Split(int rank, int sequence, int[] ranks, Device device)
    {
        LocalGroup part;
        lock (_family.Gate)
        {
            _family.ThrowIfFailed();
            int[] members = [.. ranks.Select(r => Members[r])];
            if (sequence == _splits.Count) _splits.Add(new LocalGroup(members, _family, $" in the group of ranks {string.Join(", ", members)}"));
            part = _splits[sequence];
            if (!part.Members.AsSpan().SequenceEqual(members))
                _family.Fail($"rank {rank} splits off ranks {string.Join(", ", members)} where another rank splits off {string.Join(", ", part.Members)}; all ranks must split in the same order", null);
            _family.ThrowIfFailed();
        }
        int index = Array.IndexOf(ranks, rank);
        return index < 0 ? null : part.Communicator(index, device);
    }

    private void Close()
    {
        foreach (LocalCommunicator? rank in _ranks) rank?.Close();
    }

    /// <summary>Everyone has read: the blocks go back to their owners.</summary>
    private void Retire(LocalExchange exchange)
    {
        _exchanges.Remove(exchange.Key);
        foreach (LocalCommunicator? owner in _ranks) owner?.Return(exchange, alone: _left[owner.Rank]);
    }

    /// <summary>A rank that has left posts nothing more.</summary>
    private void FailIfAbandoned(LocalExchange exchange)
    {
        for (int rank = 0; rank < Size; rank++)
            if (_left[rank] && exchange.Expects(rank)) _family.Fail($"rank {rank} left the group before {exchange.Describe()}, which rank {exchange.FirstRank} called", null);
    }
}
