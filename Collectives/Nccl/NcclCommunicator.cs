using System.Diagnostics;
using LaspNative.Runtime;
using LaspNative.Runtime.Cuda;
using LaspNative.Runtime.Interop;

namespace LaspNative.Collectives;

/// <summary>
/// One rank of a NCCL communicator. Operations run on the device's communication stream behind the compute work queued so far; waiting orders the compute stream
/// behind them and leaves the host free. Errors carry the rank and NCCL's last error.
/// </summary>
public sealed partial class NcclCommunicator : Communicator
{
    private static readonly TimeSpan s_patienceBeforeAbort = TimeSpan.FromSeconds(2);
    private readonly object _gate = new();
    private readonly Lock _ending = new();
    private readonly CudaDevice _device;
    private readonly CudaEvent _computed;
    private readonly EventPool _marks; // under the gate
    private readonly Tensor _token;
    private readonly NcclCommunicator? _whole;
    private readonly List<NcclCommunicator> _parts = [];
    private readonly ThreadMeeting? _meeting;
    private readonly bool _peerSums;
    private CudaStream? _ownStream;
    private PeerBlocks? _blocks;
    private PeerShards? _shards;
    private nint _handle;
    private volatile Exception? _failure;
    private bool _disposed;
    private bool _destroyed;

    /// <summary>
    /// Joins the communicator of all ranks that were given <paramref name="uniqueId"/>; returns when all have come and every connection has been used once:
    /// what NCCL allocates it allocates here, not behind a collective that waits. Everything travels through NCCL: copy engines serve only ranks that <see cref="World"/> runs as threads.
    /// </summary>
    public NcclCommunicator(CudaDevice device, int rank, int size, byte[] uniqueId) : this(device, rank, size, uniqueId, meeting: null, peerSums: false) { }

    /// <param name="meeting">Where all ranks are threads of this process: then copy engines may do what the options leave to them, where the GPUs reach one another.</param>
    /// <param name="peerSums">As <see cref="WorldOptions.PeerSums"/>.</param>
    internal NcclCommunicator(CudaDevice device, int rank, int size, byte[] uniqueId, ThreadMeeting? meeting, bool peerSums) : base(rank, size, device)
    {
        ArgumentNullException.ThrowIfNull(uniqueId);
        if (uniqueId.Length != ncclUniqueId.Size) throw new LaspException($"a NCCL unique id has {ncclUniqueId.Size} bytes, got {uniqueId.Length}; draw one with NcclCommunicator.NewUniqueId");
        (_device, _marks, _meeting, _peerSums) = (device, new EventPool(device.Context), meeting, peerSums);
        _device.Context.MakeCurrent();
        Nccl.ncclCommInitRank(out _handle, size, Read(uniqueId), rank).Check(rank, 0);
        Begin(out _computed, out _token);
    }

    /// <summary>A group split from <paramref name="whole"/>, which ends with it; in the background on a stream of its own.</summary>
    private NcclCommunicator(NcclCommunicator whole, int rank, int size, nint handle, ThreadMeeting? meeting, bool background) : base(rank, size, whole.Device)
    {
        (_device, _marks, _meeting, _peerSums, _whole, _handle) = (whole._device, new EventPool(whole._device.Context), meeting, whole._peerSums, whole, handle);
        lock (whole._parts) whole._parts.Add(this);
        if (whole._failure is { } failure) Abort(failure);
        Begin(out _computed, out _token, background);
    }

    /// <summary>From here on NCCL knows this rank, and the others come to wait for it: whatever fails ends the communicator.</summary>
    private void Begin(out CudaEvent computed, out Tensor token, bool background = false)
    {
        // Until this rank is known by its communicator, nobody else can end what it waits for.
        using CancellationTokenRegistration failing = _meeting?.WhenFailed(() => Abort(new GroupFailedException("another rank failed"))) ?? default;
        try
        {
            if (background) _ownStream = new CudaStream(_device.Context, urgent: true);
            computed = new CudaEvent(_device.Context);
            token = Tensor.Empty([Size], DType.F32, _device, MemoryCategory.Workspace);
            WarmUp();
            if (_meeting is null || Size == 1) return;
            if (!background && LaspOptions.Current.PeerCopies) _blocks = PeerBlocks.Open(_device, Rank, _meeting);
            if (background && _peerSums) _shards = PeerShards.Open(_device, Rank, _meeting);
        }
        catch (Exception error)
        {
            Abort(error);
            Destroy();
            throw;
        }
    }

    /// <summary>Drawn by one rank and given to all: 128 bytes.</summary>
    public static unsafe byte[] NewUniqueId()
    {
        NativeLibraries.Require(NativeLibraries.Nccl);
        Nccl.ncclGetUniqueId(out ncclUniqueId id).Check(0, 0);
        return new ReadOnlySpan<byte>(id.data, ncclUniqueId.Size).ToArray();
    }

    /// <summary>Ends what is in flight on this rank, in the groups split from it too, from any thread; later calls throw <paramref name="reason"/>'s message. The first reason stays.</summary>
    public void Abort(Exception reason)
    {
        ArgumentNullException.ThrowIfNull(reason);
        Thread[] parts;
        lock (_parts) parts = [.. _parts.Select(part => new Thread(() => part.Abort(reason)) { IsBackground = true, Name = "NCCL abort" })];
        // All at once: NCCL gives memory back here, which may wait for all of the GPU, another group's kernels among it.
        foreach (Thread part in parts) part.Start();
        AbortAlone(reason);
        foreach (Thread part in parts) part.Join();
    }

    private void AbortAlone(Exception reason)
    {
        // The rank's own thread may hold the gate inside a NCCL call that only this abort can end.
        bool entered = Monitor.TryEnter(_gate, s_patienceBeforeAbort);
        try
        {
            _failure ??= reason;
            LetPass(); // before NCCL, which may wait for the GPU
            End();
        }
        finally
        {
            if (entered) Monitor.Exit(_gate);
        }
    }

    /// <summary>Ends NCCL's part, whatever is in flight. When it returns it is over, on whichever thread it was ended: what it works with may go.</summary>
    private void End()
    {
        lock (_ending)
            if (Interlocked.Exchange(ref _handle, 0) is not 0 and var handle) Nccl.ncclCommAbort(handle);
    }

    /// <summary>Ends what waits for copies of other ranks, here and in the parts.</summary>
    internal void LetPass()
    {
        _blocks?.Abort();
        _shards?.Abort();
        lock (_parts)
            foreach (NcclCommunicator part in _parts) part.LetPass();
    }

    /// <summary>Blocks, asleep, until every rank's queued work has run; notices errors of other ranks while it waits.</summary>
    public override void Barrier()
    {
        CudaEvent arrived = Enqueue(c => Nccl.ncclAllReduce(_token.Pointer, _token.Pointer, 1, ncclDataType_t.ncclFloat32, ncclRedOp_t.ncclSum, c, Stream).Check(Rank, c));
        long start = Stopwatch.GetTimestamp();
        while (!arrived.IsComplete)
        {
            ThrowIfFailed();
            // Most barriers are short; a long one must not burn a core.
            Thread.Sleep(Stopwatch.GetElapsedTime(start) < TimeSpan.FromMilliseconds(2) ? 0 : 1);
        }
        ThrowIfFailed();
        Retire(arrived);
    }

    /// <summary>Null where ranks are processes.</summary>
    internal ThreadMeeting? Meeting => _meeting;

    private CudaStream Queue => _ownStream ?? _device.CommunicationStream;

    private nint Stream => Queue.Handle;

    public override ICommunicator Background() => Size == 1 ? base.Background() : SplitOff([.. Enumerable.Range(0, Size)], background: true)!;

    private protected override ICommunicator? SplitOff(int[] ranks) => SplitOff(ranks, background: false);

    private NcclCommunicator? SplitOff(int[] ranks, bool background)
    {
        int index = Array.IndexOf(ranks, Rank);
        nint part;
        lock (_gate)
        {
            ThrowIfAborted();
            _device.Context.MakeCurrent();
            try
            {
                Nccl.ncclCommSplit(_handle, index < 0 ? Nccl.NoColor : 0, Math.Max(index, 0), out part, 0).Check(Rank, _handle);
            }
            catch (EntryPointNotFoundException error)
            {
                throw new LaspException($"NCCL on rank {Rank} cannot split groups; NCCL 2.18 or later is needed ('lasp doctor' shows the version found)", error);
            }
        }
        ThreadMeeting? meeting = _meeting?.Part(Rank, ranks);
        return index < 0 ? null : new NcclCommunicator(this, index, ranks.Length, part, meeting, background);
    }

    /// <summary>A part waits for its whole: destroying it waits for the other ranks, which come to the whole's end together.</summary>
    protected override void Dispose(bool disposing)
    {
        if (_whole is null) Destroy();
        _disposed = true;
    }

    private void Destroy()
    {
        if (_destroyed) return;
        _disposed = _destroyed = true;
        foreach (NcclCommunicator part in _parts) part.Destroy();
        // Destroying waits for what is in flight; after an error that might be for ever.
        if (_failure is not null) End();
        else if (Interlocked.Exchange(ref _handle, 0) is not 0 and var handle) Nccl.ncclCommDestroy(handle);
        // After a failure another rank may still write here: then the memory goes with the context.
        if (_failure is null)
        {
            _blocks?.Dispose();
            _shards?.Dispose();
        }
        else
        {
            _blocks?.Abandon();
            _shards?.Abandon();
        }
        _ownStream?.Dispose();
        _token?.Dispose(); // null where they could not be made
        _computed?.Dispose();
        _marks.Dispose();
    }

    /// <summary>Uses every kind of connection once: rings and trees, and a pair per peer.</summary>
    private void WarmUp()
    {
        using Tensor target = Tensor.Empty([Size], DType.F32, _device, MemoryCategory.Workspace);
        _device.Stream.FillAsync(0, _token.Pointer, _token.Bytes);
        if (Size > 1)
        {
            AllToAll(_token, target).Wait();
            using Tensor own = _token.Slice(Rank, 1);
            AllGather(own, target).Wait();
            ReduceScatter(target, own).Wait();
            Broadcast(_token, 0).Wait();
        }
        Barrier();
        Counters.Reset();
    }

    /// <summary>Blocks the host until what this rank queued here has run; what fails then has been told elsewhere.</summary>
    internal void Drain()
    {
        foreach (NcclCommunicator part in _parts) part.Drain();
        try
        {
            _device.Context.MakeCurrent();
            Queue.Synchronize();
            _shards?.Drain();
            _device.Stream.Synchronize(); // it may wait for a message too, and is let pass only until this communicator goes
        }
        catch (LaspException error)
        {
            _failure ??= error;
        }
    }

    /// <summary>Starts something that is not NCCL's.</summary>
    private T Beside<T>(Func<T> start)
    {
        ObjectDisposedException.ThrowIf(_disposed, this);
        lock (_gate)
        {
            ThrowIfAborted();
            _device.Context.MakeCurrent();
            return start();
        }
    }

    private Work Launch(Action<nint> operation) => new(this, Enqueue(operation));

    /// <summary>Runs an operation behind the compute work queued so far; the event lies behind it.</summary>
    private CudaEvent Enqueue(Action<nint> operation)
    {
        ObjectDisposedException.ThrowIf(_disposed, this);
        lock (_gate)
        {
            ThrowIfAborted();
            _device.Context.MakeCurrent();
            _computed.Record(_device.Stream);
            Queue.WaitFor(_computed);
            ILaunchObserver? observer = _device.Kernels.Observer;
            observer?.BeforeOther("message", Queue);
            try
            {
                operation(_handle);
            }
            catch (LaspException error)
            {
                _failure ??= error;
                throw;
            }
            observer?.AfterOther("message", Queue);
            return _marks.Mark(Queue);
        }
    }

    private void Retire(CudaEvent done)
    {
        lock (_gate) _marks.Return(done);
    }

    private void ThrowIfAborted()
    {
        if (_failure is { } failure) throw new GroupFailedException($"NCCL on rank {Rank} was ended: {failure.Message}", failure);
    }

    private void ThrowIfFailed()
    {
        lock (_gate)
        {
            ThrowIfAborted();
            Nccl.ncclCommGetAsyncError(_handle, out ncclResult_t error).Check(Rank, _handle);
            error.Check(Rank, _handle, "an operation in flight");
        }
    }

    private static unsafe ncclUniqueId Read(byte[] bytes)
    {
        ncclUniqueId id;
        bytes.CopyTo(new Span<byte>(id.data, ncclUniqueId.Size));
        return id;
    }

    private sealed class Work(NcclCommunicator communicator, CudaEvent done) : CommunicationWork
    {
        private CudaEvent? _done = done;

        public override void Wait()
        {
            communicator.ThrowIfAborted();
            CudaEvent finished = Interlocked.Exchange(ref _done, null) ?? throw new LaspException($"rank {communicator.Rank} waits twice for one operation; wait once");
            communicator._device.Context.MakeCurrent();
            communicator._device.Stream.WaitFor(finished);
            communicator.Retire(finished);
        }
    }

    /// <summary>An operation that copy engines do.</summary>
    private sealed class PeerWork(NcclCommunicator communicator, CommunicationWork work) : CommunicationWork
    {
        public override void Wait()
        {
            communicator.ThrowIfAborted();
            work.Wait();
        }
    }
}
