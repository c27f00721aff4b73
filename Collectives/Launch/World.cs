using System.Runtime.ExceptionServices;
using LaspNative.Runtime;

namespace LaspNative.Collectives;

/// <summary>How many ranks to run, and on what.</summary>
/// <param name="Ranks">Ranks of this run; null: as many as the launcher started, or one without a launcher.</param>
/// <param name="VirtualRanks">All ranks share GPU 0 instead of having one GPU each.</param>
public sealed record WorldOptions(DeviceKind Device, int? Ranks = null, bool VirtualRanks = false);

/// <summary>
/// Runs the ranks of a program as threads of this process: on the CPU, on one GPU each, or sharing a GPU.
/// </summary>
public static class World
{
    /// <summary>
    /// Calls <paramref name="body"/> once per rank and returns when all have ended. When a rank fails, the others are ended and the first error is thrown as it was.
    /// </summary>
    public static void Run(WorldOptions options, Action<RankContext> body, CancellationToken cancellation = default)
    {
        ArgumentNullException.ThrowIfNull(options);
        ArgumentNullException.ThrowIfNull(body);
        int ranks = options.Ranks ?? 1;
        if (ranks < 1) throw new LaspException($"a world needs at least 1 rank, got {ranks}");
        new RankThreads(Host(options, ranks), ranks, body, cancellation).Run();
    }

    private static RankHost Host(WorldOptions options, int ranks) => new LocalRanks(options.Device, ranks);
}

/// <summary>One thread per rank; a single rank runs on the caller's.</summary>
internal sealed class RankThreads(RankHost host, int size, Action<RankContext> body, CancellationToken cancellation)
{
    private readonly Device?[] _devices = new Device?[size];
    private ExceptionDispatchInfo? _firstError;

    public void Run()
    {
        if (size == 1) RunRank(0);
        else RunAll();
        // Ranks read one another's memory until the last of them has ended, so devices go afterwards.
        foreach (Device? device in _devices) device?.Dispose();
        if (_firstError is { SourceException: not OperationCanceledException } && cancellation.IsCancellationRequested)
            throw new OperationCanceledException("the run was cancelled", _firstError.SourceException, cancellation);
        _firstError?.Throw();
    }

    private void RunAll()
    {
        var threads = new Thread[size];
        for (int i = 0; i < size; i++)
        {
            int rank = i;
            threads[i] = new Thread(() => RunRank(rank)) { Name = $"rank {rank}/{size}", IsBackground = true };
        }
        foreach (Thread thread in threads) thread.Start();
        foreach (Thread thread in threads) thread.Join();
    }

    private void RunRank(int rank)
    {
        ICommunicator? world = null;
        try
        {
            Device device = _devices[rank] = host.OpenDevice(rank);
            world = host.Join(rank, device);
            body(new RankContext(rank, size, device, world, cancellation));
        }
        catch (Exception error)
        {
            // The first error is the cause; the others' are its echoes.
            Interlocked.CompareExchange(ref _firstError, ExceptionDispatchInfo.Capture(error), null);
            host.Abort(rank, error);
        }
        finally
        {
            world?.Dispose();
        }
    }
}
