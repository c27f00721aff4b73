using System.Runtime.InteropServices;
using LaspNative.Runtime;
using LaspNative.Runtime.Cuda;
using LaspNative.Runtime.Interop;

namespace LaspNative.Collectives;

/// <summary>
/// Ranks that are threads of this process with one GPU each, joined by NCCL. Two such ranks can lock each other up when NCCL or the driver allocates behind a
/// collective that waits, so communicators are made before any other work, and all connections at once.
/// </summary>
internal sealed class NcclThreads : RankHost, IDisposable
{
    private readonly NcclCommunicator?[] _communicators;
    private readonly CancellationTokenSource _failed = new();
    private readonly ThreadMeeting _meeting;
    private readonly Lock _lock = new();
    private readonly Lazy<byte[]> _uniqueId = new(NcclCommunicator.NewUniqueId);
    private readonly bool _peerSums;
    private volatile Failure? _failure; // the first

    /// <param name="peerSums">As <see cref="WorldOptions.PeerSums"/>.</param>
    public NcclThreads(int size, bool peerSums)
    {
        _peerSums = peerSums;
        int gpus = GpuCount();
        if (gpus < size) throw new LaspException($"{gpus} GPUs for {size} ranks; use --virtual-ranks to share one");
        NativeLibraries.Require(NativeLibraries.Nccl);
        NcclEnvironment.ConnectAtStart();
        _communicators = new NcclCommunicator?[size];
        _meeting = new ThreadMeeting(size, _failed.Token);
    }

    public override Device OpenDevice(int rank) => Device.Open($"cuda:{rank}");

    public override ICommunicator Join(int rank, Device device)
    {
        // What a rank loads later, it would load behind the others' collectives.
        ((CudaDevice)device).Prepare(DType.F32, DType.BF16);
        // A rank that could not open its GPU has said so by now, and nobody waits for it inside NCCL.
        Meet();
        var communicator = new NcclCommunicator((CudaDevice)device, rank, _communicators.Length, _uniqueId.Value, _meeting, _peerSums);
        lock (_lock)
        {
            _communicators[rank] = communicator;
            if (_failure is { } failure) communicator.Abort(failure.Echo());
        }
        return communicator;
    }

    /// <summary>Destroying a communicator waits for the other ranks' work: it must not begin before all have ended well, or one has failed. Nor may its memory go while another rank still writes there.</summary>
    public override void Leave(ICommunicator communicator)
    {
        try
        {
            ((NcclCommunicator)communicator).Drain();
            Meet();
        }
        catch (GroupFailedException)
        {
            // The failure is known and was aborted for; what is left is to give back what this rank holds.
        }
        communicator.Dispose();
    }

    public override void Abort(int rank, Exception reason)
    {
        lock (_lock)
        {
            _failure ??= new Failure(rank, reason);
            // No GPU may wait for another when a rank that is let go gives memory back, which waits for its GPU.
            foreach (NcclCommunicator? communicator in _communicators) communicator?.LetPass();
        }
        _failed.Cancel(); // at once: NCCL takes its time
        lock (_lock)
            foreach (NcclCommunicator? communicator in _communicators) communicator?.Abort(_failure.Echo());
    }

    public void Dispose()
    {
        _meeting.Dispose();
        _failed.Dispose();
    }

    internal static int GpuCount()
    {
        CudaContext.Initialize();
        CudaDriver.cuDeviceGetCount(out int count).Check();
        return count;
    }

    /// <summary>Says which rank failed.</summary>
    private void Meet()
    {
        try
        {
            _meeting.Meet();
        }
        catch (GroupFailedException) when (_failure is { } failure)
        {
            throw failure.Echo();
        }
    }

    private sealed record Failure(int Rank, Exception Reason)
    {
        /// <summary>What the other ranks throw.</summary>
        public GroupFailedException Echo() => new($"rank {Rank} failed: {Reason.Message}", Reason);
    }
}

/// <summary>The one rank that this process is under a launcher; the others are processes too. Its launcher ends them when this one fails.</summary>
internal sealed class NcclProcess(LaunchedRank launched) : RankHost
{
    private NcclCommunicator? _communicator;

    public override Device OpenDevice(int rank)
    {
        int gpus = NcclThreads.GpuCount();
        // Some launchers show each process its own GPU only.
        int index = gpus == 1 ? 0 : launched.LocalRank;
        if (index >= gpus) throw new LaspException($"{gpus} GPUs for local rank {launched.LocalRank}; start at most {gpus} processes on this node (--nproc)");
        return Device.Open($"cuda:{index}");
    }

    public override ICommunicator Join(int rank, Device device)
    {
        byte[] own = rank == 0 ? NcclCommunicator.NewUniqueId() : [];
        using var rendezvous = new Rendezvous(rank, launched.WorldSize, launched.MasterAddress, launched.MasterPort);
        return _communicator = new NcclCommunicator((CudaDevice)device, rank, launched.WorldSize, rendezvous.Broadcast(own));
    }

    public override void Abort(int rank, Exception reason) => _communicator?.Abort(reason);
}

/// <summary>NCCL's settings that ranks in one process need. What the user has set stays.</summary>
internal static partial class NcclEnvironment
{
    /// <summary>Without this NCCL connects each algorithm at its first use, in the middle of a step.</summary>
    public static void ConnectAtStart() => _ = SetVariable("NCCL_RUNTIME_CONNECT", "0", overwrite: 0);

    // NCCL reads C's environment, which Environment.SetEnvironmentVariable does not reach.
    [LibraryImport("libc", EntryPoint = "setenv", StringMarshalling = StringMarshalling.Utf8)]
    private static partial int SetVariable(string name, string value, int overwrite);
}
