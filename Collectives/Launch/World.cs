using System.Runtime.ExceptionServices;
using LaspNative.Runtime;

namespace LaspNative.Collectives;

/// <summary>How many ranks to run, and on what.</summary>
/// <param name="Ranks">Ranks of this run; null: as many as the launcher started, or one without a launcher.</param>
/// <param name="VirtualRanks">All ranks share GPU 0 instead of having one GPU each.</param>
public sealed record WorldOptions(DeviceKind Device, int? Ranks = null, bool VirtualRanks = false)
{
    /// <summary>Whether copy engines carry long sums and gathers between GPUs of one process.</summary>
    internal bool PeerSums { get; init; } = LaspOptions.Current.PeerSums;
}

/// <summary>
/// Runs the ranks of a program: as threads of this process on the CPU, on one GPU each, or sharing a GPU; or, under a launcher, the one rank that this process is,
/// joined to the others by NCCL, or by TCP on the CPU.
/// </summary>
public static class World
{
    /// <summary>
    /// Calls <paramref name="body"/> once per rank of this process and returns when all have ended. When a rank fails, the others are ended and the first error is thrown as it was.
    /// Over several GPUs, one world at a time: two on the same GPUs of one process can wait for each other for ever.
    /// </summary>
    public static void Run(WorldOptions options, Action<RankContext> body, CancellationToken cancellation = default) =>
        Run(options, LaunchedRank.FromEnvironment(), body, cancellation);

    internal static void Run(WorldOptions options, LaunchedRank? launched, Action<RankContext> body, CancellationToken cancellation)
    {
        ArgumentNullException.ThrowIfNull(options);
        ArgumentNullException.ThrowIfNull(body);
        if (options.Ranks < 1) throw new LaspException($"a world needs at least 1 rank, got {options.Ranks}");
        int size = launched?.WorldSize ?? options.Ranks ?? 1;
        if (launched is not null) CheckLaunched(options, launched);
        RankHost host = Host(options, launched, size);
        using (host as IDisposable)
            new RankThreads(host, size, body, cancellation).Run(launched?.Rank);
    }

    private static void CheckLaunched(WorldOptions options, LaunchedRank launched)
    {
        if (options.Ranks is { } ranks && ranks != launched.WorldSize)
            throw new LaspException($"{ranks} ranks were asked for but the launcher started {launched.WorldSize} processes (WORLD_SIZE); leave --ranks out, or make them equal");
        if (launched.WorldSize == 1) return;
        if (options.VirtualRanks)
            throw new LaspException($"virtual ranks are threads of one process, but a launcher started {launched.WorldSize}; leave out --virtual-ranks or the launcher");
    }

    private static RankHost Host(WorldOptions options, LaunchedRank? launched, int size)
    {
        if (launched is { WorldSize: > 1 }) return options.Device == DeviceKind.Cpu ? new TcpProcess(launched) : new NcclProcess(launched);
        return size == 1 || options.Device == DeviceKind.Cpu || options.VirtualRanks ? new LocalRanks(options.Device, size) : new NcclThreads(size, options.PeerSums);
    }
}

/// <summary>The ranks of this process, one thread each; a single one runs on the caller's.</summary>
internal sealed class RankThreads(RankHost host, int size, Action<RankContext> body, CancellationToken cancellation)
{
    private readonly Device?[] _devices = new Device?[size];
    private ExceptionDispatchInfo? _firstError;

    /// <summary>Runs one rank on the calling thread, or all ranks on threads of their own.</summary>
    public void Run(int? only)
    {
        if (only is { } rank) RunRank(rank);
        else if (size == 1) RunRank(0);
        else RunAll();
        // Ranks read one another's memory until the last of them has ended, so devices go afterwards.
        foreach (Device? device in _devices) device?.Dispose();
        // Ranks that stop at different moments after Ctrl-C leave one another waiting.
        if (_firstError is { SourceException: GroupFailedException } && cancellation.IsCancellationRequested)
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

    /// <summary>
    /// Keeps the cause: the first error that is not an echo of another rank's. An echo may come first, when the failing rank gave up its groups before it could say why.
    /// </summary>
    private void Remember(Exception error)
    {
        lock (_devices)
        {
            if (_firstError is null || (_firstError.SourceException is GroupFailedException && error is not GroupFailedException))
                _firstError = ExceptionDispatchInfo.Capture(error);
        }
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
            Remember(error);
            host.Abort(rank, error);
        }
        finally
        {
            if (world is not null) host.Leave(world);
        }
    }
}
