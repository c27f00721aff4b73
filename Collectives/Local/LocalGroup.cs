using LaspNative.Runtime;

namespace LaspNative.Collectives;

/// <summary>
/// Ranks that are threads of one process, on the CPU or sharing one GPU. They meet here: an operation stages the rank's data and returns,
/// and its Wait blocks until every rank has staged. Nothing hangs: when ranks call different things, one fails or leaves, or all wait for one another,
/// every rank gets the reason.
/// </summary>
public sealed class LocalGroup
{
    private readonly object _gate = new();
    private readonly Dictionary<(LocalChannel Channel, long Sequence), LocalExchange> _exchanges = [];
    private readonly LocalCommunicator?[] _ranks;
    private readonly LocalExchange?[] _waitingFor;
    private readonly bool[] _left;
    private (string Message, Exception? Reason)? _failure;

    public LocalGroup(int size)
    {
        if (size < 1) throw new LaspException($"a group needs at least 1 rank, got {size}");
        Size = size;
        _ranks = new LocalCommunicator?[size];
        _waitingFor = new LocalExchange?[size];
        _left = new bool[size];
    }

    public int Size { get; }

    /// <summary>
    /// The group as one rank sees it; once per rank. Every rank needs a device of its own (several may share a GPU), all of one kind.
    /// Ranks read each other's memory: dispose the devices after the last communicator.
    /// </summary>
    public ICommunicator Communicator(int rank, Device device)
    {
        var communicator = new LocalCommunicator(this, rank, device);
        lock (_gate)
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
        lock (_gate) Fail($"the group was aborted: {reason.Message}", reason);
    }

    /// <summary>As <see cref="Abort(Exception)"/>, naming the rank that failed.</summary>
    public void Abort(int rank, Exception reason)
    {
        ArgumentNullException.ThrowIfNull(reason);
        lock (_gate) Fail($"rank {rank} failed: {reason.Message}", reason);
    }

    /// <summary>Adds the rank's contribution to the operation that is next in the channel. Does not wait.</summary>
    internal LocalExchange Post(int rank, LocalChannel channel, long sequence, LocalOperation operation, StagedBlock? block)
    {
        lock (_gate)
        {
            ThrowIfFailed();
            if (!_exchanges.TryGetValue((channel, sequence), out LocalExchange? exchange))
            {
                exchange = new LocalExchange(channel, sequence, operation, rank, Size);
                _exchanges.Add((channel, sequence), exchange);
            }
            else if (exchange.Operation != operation)
            {
                Fail($"rank {rank} called {operation} where rank {exchange.FirstRank} called {exchange.Describe()}; all ranks must call the same operations in the same order", null);
            }
            FailIfAbandoned(exchange);
            ThrowIfFailed();
            exchange.Arrive(rank, block);
            if (exchange.IsComplete) Monitor.PulseAll(_gate);
            return exchange;
        }
    }

    /// <summary>Blocks until all ranks have posted: then the blocks may be read, without a lock, until <see cref="Read"/>.</summary>
    internal void Await(int rank, LocalExchange exchange)
    {
        lock (_gate)
        {
            _waitingFor[rank] = exchange;
            FailIfAbandoned(exchange);
            FailIfDeadlocked();
            while (!exchange.IsComplete && _failure is null) Monitor.Wait(_gate);
            _waitingFor[rank] = null;
            if (!exchange.IsComplete) ThrowIfFailed();
        }
    }

    /// <summary>The rank has read what it needed (on a GPU: its copies are queued, <paramref name="fence"/> behind them).</summary>
    internal void Read(int rank, LocalExchange exchange, CopyFence? fence)
    {
        lock (_gate)
            if (exchange.Read(rank, fence)) Retire(exchange);
    }

    /// <summary>The rank will call nothing more: whoever still waits for it fails.</summary>
    internal void Leave(int rank)
    {
        lock (_gate)
        {
            _left[rank] = true;
            foreach (LocalExchange exchange in _exchanges.Values.ToArray())
                if (exchange.Read(rank, null)) Retire(exchange);
            foreach (LocalExchange? exchange in _waitingFor)
                if (exchange is not null) FailIfAbandoned(exchange);
            FailIfDeadlocked();
            if (Array.TrueForAll(_left, left => left)) Close();
        }
    }

    /// <summary>Ends the group because two ranks gave different counts for what one sends the other.</summary>
    internal GroupFailedException Disagreement(int from, long sent, int to, long expected)
    {
        lock (_gate)
        {
            Fail($"AllToAll: rank {from} sends rank {to} {sent} elements, but rank {to} expects {expected}; both need one count", null);
            return Failure(_failure!.Value);
        }
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
            if (_left[rank] && exchange.Expects(rank)) Fail($"rank {rank} left the group before {exchange.Describe()}, which rank {exchange.FirstRank} called", null);
    }

    /// <summary>When every rank that is left waits for something incomplete, nobody is there to complete it.</summary>
    private void FailIfDeadlocked()
    {
        int[] present = [.. Enumerable.Range(0, Size).Where(r => !_left[r] && _ranks[r] is not null)];
        if (present.Length == 0 || present.Length + _left.Count(left => left) < Size) return;
        if (!Array.TrueForAll(present, r => _waitingFor[r] is { IsComplete: false })) return;
        string waits = string.Join(", ", present.Select(r => $"rank {r} for {_waitingFor[r]!.Describe()}"));
        Fail($"all ranks wait for one another ({waits}); all ranks must call the same operations in the same order", null);
    }

    private void Fail(string message, Exception? reason)
    {
        _failure ??= (message, reason);
        Monitor.PulseAll(_gate);
    }

    private void ThrowIfFailed()
    {
        if (_failure is { } failure) throw Failure(failure);
    }

    private static GroupFailedException Failure((string Message, Exception? Reason) failure) =>
        failure.Reason is null ? new GroupFailedException(failure.Message) : new GroupFailedException(failure.Message, failure.Reason);
}
