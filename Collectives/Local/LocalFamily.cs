namespace LaspNative.Collectives;

/// <summary>
/// What a group and all groups split from it share: one lock, one failure that ends them all, and which rank waits for what, whichever group it waits in.
/// Ranks are counted as in the first group here.
/// </summary>
internal sealed class LocalFamily(int size)
{
    private readonly LocalExchange?[] _waitingFor = new LocalExchange?[size];
    private (string Message, Exception? Reason)? _failure;

    /// <summary>Held around every call below, and pulsed when something that a rank waits for may have happened.</summary>
    public object Gate { get; } = new();

    /// <summary>The first failure stays.</summary>
    public void Fail(string message, Exception? reason)
    {
        _failure ??= (message, reason);
        Monitor.PulseAll(Gate);
    }

    public void ThrowIfFailed()
    {
        if (_failure is not { } failure) return;
        throw failure.Reason is null ? new GroupFailedException(failure.Message) : new GroupFailedException(failure.Message, failure.Reason);
    }

    /// <summary>Blocks the rank until the exchange is complete.</summary>
    public void Await(int rank, LocalExchange exchange)
    {
        if (exchange.IsComplete) return;
        _waitingFor[rank] = exchange;
        FailIfDeadlocked(rank);
        while (!exchange.IsComplete && _failure is null) Monitor.Wait(Gate);
        _waitingFor[rank] = null;
        if (!exchange.IsComplete) ThrowIfFailed();
    }

    /// <summary>The exchanges that ranks wait for.</summary>
    public IEnumerable<LocalExchange> Awaited() => _waitingFor.OfType<LocalExchange>();

    /// <summary>A rank that waits posts nothing: when it waits for a rank that waits for it, directly or through others and in any group, all of them wait for ever.</summary>
    private void FailIfDeadlocked(int rank)
    {
        Span<bool> seen = size <= 256 ? stackalloc bool[size] : new bool[size];
        seen.Clear();
        if (!LeadsBack(rank, rank, seen)) return;
        IEnumerable<string> waits = Enumerable.Range(0, _waitingFor.Length).Where(r => _waitingFor[r] is { IsComplete: false }).Select(r => $"rank {r} for {_waitingFor[r]!.Describe()}");
        Fail($"ranks wait for one another ({string.Join(", ", waits)}); all ranks must call the same operations in the same order", null);
    }

    private bool LeadsBack(int from, int to, Span<bool> seen)
    {
        if (_waitingFor[from] is not { } exchange) return false;
        for (int rank = 0; rank < exchange.Group.Size; rank++)
        {
            if (!exchange.Expects(rank)) continue;
            int missing = exchange.Group.Members[rank];
            if (missing == to) return true;
            if (seen[missing]) continue;
            seen[missing] = true;
            if (LeadsBack(missing, to, seen)) return true;
        }
        return false;
    }
}
