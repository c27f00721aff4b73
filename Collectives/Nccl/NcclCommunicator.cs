using System.Diagnostics;
using LaspNative.Runtime;
using LaspNative.Runtime.Cuda;
using LaspNative.Runtime.Interop;

namespace LaspNative.Collectives;

/// <summary>
/// One rank of a NCCL communicator. Operations run on the device's communication stream behind the compute work queued so far; waiting orders the compute stream
/// behind them and leaves the host free. Errors carry the rank and NCCL's last error.
/// </summary>
public sealed class NcclCommunicator : Communicator
{
    private static readonly TimeSpan s_patienceBeforeAbort = TimeSpan.FromSeconds(2);
    private readonly object _gate = new();
    private readonly CudaDevice _device;
    private readonly CudaEvent _computed;
    private readonly Stack<CudaEvent> _idleEvents = [];
    private readonly Tensor _token;
    private readonly NcclCommunicator? _whole;
    private readonly List<NcclCommunicator> _parts = [];
    private nint _handle;
    private volatile Exception? _failure;
    private bool _disposed;
    private bool _destroyed;

    /// <summary>
    /// Joins the communicator of all ranks that were given <paramref name="uniqueId"/>; returns when all have come and every connection has been used once:
    /// what NCCL allocates it allocates here, not behind a collective that waits.
    /// </summary>
    public NcclCommunicator(CudaDevice device, int rank, int size, byte[] uniqueId) : base(rank, size, device)
    {
        ArgumentNullException.ThrowIfNull(uniqueId);
        if (uniqueId.Length != ncclUniqueId.Size) throw new LaspException($"a NCCL unique id has {ncclUniqueId.Size} bytes, got {uniqueId.Length}; draw one with NcclCommunicator.NewUniqueId");
        _device = device;
        _device.Context.MakeCurrent();
        Nccl.ncclCommInitRank(out _handle, size, Read(uniqueId), rank).Check(rank, 0);
        _computed = new CudaEvent(device.Context);
        _token = Tensor.Empty([size], DType.F32, device, MemoryCategory.Workspace);
        Begin();
    }

    /// <summary>A group split from <paramref name="whole"/>, which ends with it.</summary>
    private NcclCommunicator(NcclCommunicator whole, int rank, int size, nint handle) : base(rank, size, whole.Device)
    {
        _device = whole._device;
        _whole = whole;
        _handle = handle;
        _computed = new CudaEvent(_device.Context);
        _token = Tensor.Empty([size], DType.F32, _device, MemoryCategory.Workspace);
        lock (whole._parts) whole._parts.Add(this);
        if (whole._failure is { } failure) Abort(failure);
        Begin();
    }

    private void Begin()
    {
        try
        {
            WarmUp();
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

    /// <summary>Ends what is in flight on this rank, from any thread; later calls throw <paramref name="reason"/>'s message. The first reason stays.</summary>
    public void Abort(Exception reason)
    {
        ArgumentNullException.ThrowIfNull(reason);
        // The rank's own thread may hold the gate inside a NCCL call that only this abort can end.
        bool entered = Monitor.TryEnter(_gate, s_patienceBeforeAbort);
        try
        {
            _failure ??= reason;
            nint handle = Interlocked.Exchange(ref _handle, 0);
            if (handle != 0) Nccl.ncclCommAbort(handle);
        }
        finally
        {
            if (entered) Monitor.Exit(_gate);
        }
        lock (_parts)
            foreach (NcclCommunicator part in _parts) part.Abort(reason);
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

    private nint Stream => _device.CommunicationStream.Handle;

    private protected override CommunicationWork Start(CollectiveKind kind, Tensor source, Tensor destination, int root)
    {
        if (source.Count == 0) return CommunicationWork.Done;
        nint from = source.Pointer, to = destination.Pointer;
        nuint count = (nuint)source.Count;
        ncclDataType_t type = TypeOf(source.DType);
        return Launch(c =>
        {
            switch (kind)
            {
                case CollectiveKind.AllGather:
                    Nccl.ncclAllGather(from, to, count, type, c, Stream).Check(Rank, c);
                    break;
                case CollectiveKind.AllReduce:
                    Nccl.ncclAllReduce(from, to, count, type, ncclRedOp_t.ncclSum, c, Stream).Check(Rank, c);
                    break;
                case CollectiveKind.ReduceScatter:
                    Nccl.ncclReduceScatter(from, to, (nuint)destination.Count, type, ncclRedOp_t.ncclSum, c, Stream).Check(Rank, c);
                    break;
                case CollectiveKind.Broadcast:
                    Nccl.ncclBroadcast(from, to, count, type, root, c, Stream).Check(Rank, c);
                    break;
                default:
                    AllToAll(from, to, source.Bytes / Size, c);
                    break;
            }
        });
    }

    private protected override CommunicationWork StartAllGather(Tensor source, Tensor destination, BlockLayout blocks) => Launch(c => Group(c, () =>
    {
        for (int peer = 0; peer < Size; peer++)
        {
            Send(source, 0, blocks.Count(Rank), peer, c);
            Receive(destination, blocks.Start(peer), blocks.Count(peer), peer, c);
        }
    }));

    private protected override CommunicationWork StartReduceScatter(Tensor source, Tensor destination, BlockLayout blocks) => Launch(c => Group(c, () =>
    {
        ncclDataType_t type = TypeOf(source.DType);
        for (int root = 0; root < Size; root++)
        {
            if (blocks.Count(root) == 0) continue;
            Nccl.ncclReduce(At(source, blocks.Start(root)), destination.Pointer, (nuint)blocks.Count(root), type, ncclRedOp_t.ncclSum, root, c, Stream).Check(Rank, c);
        }
    }));

    private protected override CommunicationWork StartAllToAll(Tensor source, BlockLayout sent, Tensor destination, BlockLayout received) => Launch(c => Group(c, () =>
    {
        for (int peer = 0; peer < Size; peer++)
        {
            Send(source, sent.Start(peer), sent.Count(peer), peer, c);
            Receive(destination, received.Start(peer), received.Count(peer), peer, c);
        }
    }));

    private protected override CommunicationWork StartSend(Tensor source, int peer) =>
        source.Count == 0 ? CommunicationWork.Done : Launch(c => Send(source, 0, source.Count, peer, c));

    private protected override CommunicationWork StartReceive(Tensor destination, int peer) =>
        destination.Count == 0 ? CommunicationWork.Done : Launch(c => Receive(destination, 0, destination.Count, peer, c));

    private protected override CommunicationWork StartSendReceive(Tensor source, int to, Tensor destination, int from) => Launch(c => Group(c, () =>
    {
        Send(source, 0, source.Count, to, c);
        Receive(destination, 0, destination.Count, from, c);
    }));

    private protected override ICommunicator? SplitOff(int[] ranks)
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
        return index < 0 ? null : new NcclCommunicator(this, index, ranks.Length, part);
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
        nint handle = Interlocked.Exchange(ref _handle, 0);
        // Destroying waits for what is in flight; after an error that might be for ever.
        if (handle != 0 && _failure is null) Nccl.ncclCommDestroy(handle);
        else if (handle != 0) Nccl.ncclCommAbort(handle);
        _token.Dispose();
        _computed.Dispose();
        foreach (CudaEvent idle in _idleEvents) idle.Dispose();
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
            _device.CommunicationStream.WaitFor(_computed);
            ILaunchObserver? observer = _device.Kernels.Observer;
            observer?.BeforeOther("message", _device.CommunicationStream);
            try
            {
                operation(_handle);
            }
            catch (LaspException error)
            {
                _failure ??= error;
                throw;
            }
            observer?.AfterOther("message", _device.CommunicationStream);
            CudaEvent done = _idleEvents.TryPop(out CudaEvent? idle) ? idle : new CudaEvent(_device.Context);
            done.Record(_device.CommunicationStream);
            return done;
        }
    }

    /// <summary>The event may be recorded anew: waits queued for it keep their mark.</summary>
    private void Retire(CudaEvent done)
    {
        lock (_gate) _idleEvents.Push(done);
    }

    private void AllToAll(nint source, nint destination, long block, nint communicator) => Group(communicator, () =>
    {
        for (int peer = 0; peer < Size; peer++)
        {
            nint offset = (nint)(peer * block);
            Nccl.ncclSend(source + offset, (nuint)block, ncclDataType_t.ncclUint8, peer, communicator, Stream).Check(Rank, communicator);
            Nccl.ncclRecv(destination + offset, (nuint)block, ncclDataType_t.ncclUint8, peer, communicator, Stream).Check(Rank, communicator);
        }
    });

    /// <summary>Sends some elements of a tensor; none need no message, and the peer posts none either.</summary>
    private void Send(Tensor source, long first, long count, int peer, nint communicator)
    {
        if (count > 0) Nccl.ncclSend(At(source, first), (nuint)count, TypeOf(source.DType), peer, communicator, Stream).Check(Rank, communicator);
    }

    private void Receive(Tensor destination, long first, long count, int peer, nint communicator)
    {
        if (count > 0) Nccl.ncclRecv(At(destination, first), (nuint)count, TypeOf(destination.DType), peer, communicator, Stream).Check(Rank, communicator);
    }

    private static nint At(Tensor tensor, long element) => tensor.Pointer + (nint)(element * tensor.DType.Size());

    private void Group(nint communicator, Action operations)
    {
        Nccl.ncclGroupStart().Check(Rank, communicator);
        try
        {
            operations();
        }
        catch
        {
            Nccl.ncclGroupEnd(); // The first error is the one to report.
            throw;
        }
        Nccl.ncclGroupEnd().Check(Rank, communicator);
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

    private static ncclDataType_t TypeOf(DType dtype) => dtype switch
    {
        DType.F64 => ncclDataType_t.ncclFloat64,
        DType.F32 => ncclDataType_t.ncclFloat32,
        DType.BF16 => ncclDataType_t.ncclBfloat16,
        DType.I64 => ncclDataType_t.ncclInt64,
        _ => ncclDataType_t.ncclInt32,
    };

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
}
