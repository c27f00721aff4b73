namespace LaspNative.Collectives;

/// <summary>
/// Where ranks that are threads of one process wait for one another on the host, without their GPUs: around calls of the driver that wait for a GPU, or for all of them. Such a call behind a message
/// that waits for the very rank that makes it would never return. Every rank calls the same in the same order; when a rank fails, the others are let go with a <see cref="GroupFailedException"/>.
/// </summary>
internal sealed class ThreadMeeting : IDisposable
{
    private readonly Barrier _barrier;
    private readonly object?[] _told;
    private readonly CancellationToken _failed;
    private readonly Dictionary<(int Split, int First), ThreadMeeting> _parts = [];
    private readonly int[] _splits; // that each rank has taken part in

    /// <param name="failed">Cancelled when a rank has failed.</param>
    public ThreadMeeting(int size, CancellationToken failed)
    {
        (_barrier, _told, _splits, _failed) = (new Barrier(size), new object?[size], new int[size], failed);
    }

    public int Size => _told.Length;

    /// <summary>Calls the action when a rank fails, on that rank's thread, until what is returned is disposed; at once where one has failed.</summary>
    public CancellationTokenRegistration WhenFailed(Action letGo) => _failed.Register(letGo);

    public void Meet()
    {
        try
        {
            _barrier.SignalAndWait(_failed);
        }
        catch (OperationCanceledException error)
        {
            throw new GroupFailedException("another rank failed", error);
        }
    }

    /// <summary>Every rank's value, in rank order.</summary>
    public T[] Share<T>(int rank, T value)
    {
        _told[rank] = value;
        Meet();
        T[] all = Array.ConvertAll(_told, told => (T)told!);
        Meet(); // before anyone tells something else
        return all;
    }

    /// <summary>The meeting of a group split from this one, for the ranks in it; every rank of this meeting calls, also with none of the ranks.</summary>
    public ThreadMeeting? Part(int rank, int[] ranks)
    {
        int split = _splits[rank]++;
        if (Array.IndexOf(ranks, rank) < 0) return null;
        lock (_parts)
        {
            if (_parts.TryGetValue((split, ranks[0]), out ThreadMeeting? known)) return known;
            var part = new ThreadMeeting(ranks.Length, _failed); // by the first of them
            _parts.Add((split, ranks[0]), part);
            return part;
        }
    }

    public void Dispose()
    {
        foreach (ThreadMeeting part in _parts.Values) part.Dispose();
        _barrier.Dispose();
    }
}
