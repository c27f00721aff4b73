using LaspNative.Runtime;
using LaspNative.Runtime.Cuda;

namespace LaspNative.Collectives;

/// <summary>
/// Sums and gathers of long tensors by copy engines, beside kernels that keep their multiprocessors: a collective kernel's blocks displace those of a matrix product, which then needs a second wave.
/// A tensor is one shard per rank, a shard is cut into pieces:
///   reduce-scatter   every rank sends each owner its part of the owner's shard, and the owner adds the parts up
///   all-gather       the owner sends its shard to every other rank, which puts it in its place
///   all-reduce       the one, and piece by piece the other
/// An element is summed once, by its owner, in the order of the ranks, whatever the operation and however it was cut: all ranks, and all stages of ZeRO, get the same bits.
/// Additions run in the compute stream, where they displace nothing, and late: a piece's is queued when <see cref="Late"/> other reductions have started since it was sent, or when it is waited for. By then
/// the parts have come, and the compute stream finds them. The last addition leaves the sums' squares, so that a norm need not read the sums again.
/// </summary>
internal sealed class PeerShards : IDisposable
{
    /// <summary>Shorter tensors gain nothing: they are latency.</summary>
    private const long ShortestTensorBytes = 1 << 20;

    /// <summary>Of all ranks' parts of a piece together.</summary>
    private const long DefaultPieceBytes = 64 << 20;

    private const int PartSlots = 6, SumSlots = 2;
    private const int Late = 2;
    private const int AddThreads = 256;
    private const int PartAlignment = 256;

    private readonly CudaDevice _device;
    private readonly PeerMemory _memory;
    private readonly long _partBytes; // of one rank's part of a piece
    private readonly PeerPieces _parts; // of what is to be summed
    private readonly PeerPieces _sums; // or whatever else every rank gets as it is
    private readonly CopyLane _send;
    private readonly CopyLane _share;
    private readonly CopyLane _land;
    private readonly CudaEvent _computed;
    private readonly Queue<Reduction> _open = new(); // whose additions are not all queued
    private readonly Queue<long> _begun = new(); // of the latest reductions: the last piece that was sent when each had begun
    private readonly (CudaKernel F32, CudaKernel BF16) _add, _addSquaring;
    private readonly Tensor _squares; // of what was added up since they were taken, in fp32: one number per block of an addition
    private readonly int[] _peers; // each rank begins with the next one
    private long _summed; // the last piece of which all was added

    private PeerShards(CudaDevice device, PeerMemory memory, long partBytes)
    {
        (_device, _memory, _partBytes) = (device, memory, partBytes);
        (_send, _share, _land) = (memory.Keep(new CopyLane(device)), memory.Keep(new CopyLane(device)), memory.Keep(new CopyLane(device)));
        _computed = memory.Keep(new CudaEvent(device.Context));
        _parts = new PeerPieces(memory, _send.Stream, start: 0, firstFlag: 0, PartSlots, partBytes);
        _sums = new PeerPieces(memory, _share.Stream, PeerPieces.BytesFor(Size, PartSlots, partBytes), PeerPieces.FlagsFor(Size), SumSlots, partBytes);
        _add = (device.Kernels.Get("elementwise", "add", DType.F32), device.Kernels.Get("elementwise", "add", DType.BF16));
        _addSquaring = (device.Kernels.Get("reductions", "add_squaring", DType.F32), device.Kernels.Get("reductions", "add_squaring", DType.BF16));
        _squares = memory.Keep(Tensor.Empty([(partBytes / DType.BF16.Size() / IBackend.SquaresGrain) + 1], DType.F32, device, MemoryCategory.Workspace));
        device.Backend.Fill(0, _squares);
        _peers = [.. Enumerable.Range(1, Size - 1).Select(step => (Rank + step) % Size)];
    }

    private int Rank => _memory.Rank;

    private int Size => _memory.Size;

    /// <summary>As <see cref="PeerMemory.Open"/>.</summary>
    public static PeerShards? Open(CudaDevice device, int rank, ThreadMeeting meeting, long pieceBytes = DefaultPieceBytes)
    {
        long partBytes = pieceBytes / meeting.Size / PartAlignment * PartAlignment;
        long bytes = PeerPieces.BytesFor(meeting.Size, PartSlots + SumSlots, partBytes);
        return PeerMemory.Open(device, rank, meeting, bytes, PeerPieces.FlagsFor(meeting.Size), series: 2, memory => new PeerShards(device, memory, partBytes));
    }

    /// <summary>Whether an operation on these operands is done here: the answer is the same on all ranks.</summary>
    public bool Takes(CollectiveKind kind, Tensor source) => kind switch
    {
        CollectiveKind.AllReduce or CollectiveKind.ReduceScatter => source.DType is DType.F32 or DType.BF16 && source.Bytes >= ShortestTensorBytes,
        CollectiveKind.AllGather => source.Bytes * Size >= ShortestTensorBytes,
        _ => false,
    };

    /// <summary>Starts an operation that is taken, behind the compute work queued so far.</summary>
    public CommunicationWork Start(CollectiveKind kind, Tensor source, Tensor destination) => kind switch
    {
        CollectiveKind.AllGather => Gather(source, destination),
        CollectiveKind.ReduceScatter => Reduce(new Shards(source.Pointer, destination.Bytes, source.Bytes, _partBytes), destination.Pointer, source.DType, isShared: false),
        _ => ReduceAll(source),
    };

    /// <summary>As <see cref="ICommunicator.TakeSquares"/>.</summary>
    public void TakeSquares(Tensor total)
    {
        if (_open.Count > 0) throw new InvalidOperationException($"rank {Rank} asks for the squares of sums of which {_open.Count} were not waited for");
        _device.Backend.Sum(_squares, total);
        _device.Backend.Fill(0, _squares);
    }

    public void Abort()
    {
        _parts.Abort();
        _sums.Abort();
    }

    /// <summary>As <see cref="PeerMemory.Abandon"/>, instead of <see cref="Dispose"/>.</summary>
    public void Abandon() => _memory.Abandon();

    /// <summary>Blocks the host until what was queued has run.</summary>
    public void Drain()
    {
        _send.Stream.Synchronize();
        _share.Stream.Synchronize();
        _land.Stream.Synchronize();
    }

    public void Dispose() => _memory.Dispose();

    private CommunicationWork ReduceAll(Tensor tensor)
    {
        var shards = new Shards(tensor.Pointer, ((tensor.Bytes + Size - 1) / Size + 15) / 16 * 16, tensor.Bytes, _partBytes);
        return Reduce(shards, shards.At(Rank, 0), tensor.DType, isShared: true);
    }

    private Reduction Reduce(Shards shards, nint target, DType type, bool isShared)
    {
        if (_begun.Count == Late)
            for (long sent = _begun.Dequeue(); _summed < sent;) AddNext();
        Follow(_send);
        var reduction = new Reduction(this, shards, target, type, isShared);
        _open.Enqueue(reduction);
        SendWhatFits();
        _begun.Enqueue(_parts.Last);
        return reduction;
    }

    /// <summary>Every rank queues additions and sends at the same points of its program, so what one waits for never waits for it.</summary>
    private void SendWhatFits()
    {
        foreach (Reduction reduction in _open)
            while (reduction.HasUnsent)
            {
                if (_parts.Last - _summed >= _parts.Slots) return;
                reduction.SendNext();
            }
    }

    /// <summary>Queues the additions of the oldest piece.</summary>
    private void AddNext()
    {
        Reduction oldest = _open.Peek();
        oldest.AddNext();
        _summed++;
        if (!oldest.HasUnsummed) _open.Dequeue();
        SendWhatFits();
    }

    private CommunicationWork Gather(Tensor source, Tensor destination)
    {
        var shards = new Shards(destination.Pointer, source.Bytes, destination.Bytes, _partBytes);
        Follow(_share);
        _land.Stream.WaitFor(_computed); // the memory may have served compute work until now
        if (source.Pointer != shards.At(Rank, 0)) _land.Stream.CopyAsync(source.Pointer, shards.At(Rank, 0), source.Bytes);
        for (int piece = 0; piece < shards.Pieces; piece++) Share(shards, piece, source.Pointer + (nint)(piece * _partBytes));
        return new Landing(this, _share.Mark(), _land.Mark());
    }

    /// <summary>Sends a piece of this rank's shard to all others, and puts theirs in their places.</summary>
    private void Share(Shards shards, int piece, nint own)
    {
        long number = _sums.Next();
        foreach (int peer in _peers) _sums.Send(number, peer, own, shards.Length(Rank, piece));
        foreach (int peer in _peers)
        {
            _sums.Await(_land.Stream, peer, number);
            _land.Stream.CopyAsync(_sums.At(number, peer), shards.At(peer, piece), shards.Length(peer, piece));
        }
        _sums.Release(_land.Stream, number);
    }

    private void Follow(CopyLane lane)
    {
        _computed.Record(_device.Stream);
        lane.Stream.WaitFor(_computed);
    }

    /// <summary>A tensor as one shard per rank, of <paramref name="Stride"/> bytes; the last may be shorter, or empty. Pieces of shards are counted from 0.</summary>
    private readonly record struct Shards(nint Start, long Stride, long Bytes, long PieceBytes)
    {
        public int Pieces => (int)((Stride + PieceBytes - 1) / PieceBytes);

        public nint At(int rank, int piece) => Start + (nint)((rank * Stride) + (piece * PieceBytes));

        public long Length(int rank, int piece) => Math.Clamp(Math.Min(Stride, Bytes - (rank * Stride)) - (piece * PieceBytes), 0, PieceBytes);
    }

    private sealed class Reduction(PeerShards owner, Shards shards, nint target, DType type, bool isShared) : CommunicationWork
    {
        private int _sent, _added; // pieces
        private long _lastSent; // number
        private CopyLane.Point? _left, _shared, _landed; // behind the last piece
        private bool _waited;

        public bool HasUnsent => _sent < shards.Pieces;

        public bool HasUnsummed => _added < shards.Pieces;

        public void SendNext()
        {
            _lastSent = owner._parts.Next();
            foreach (int peer in owner._peers) owner._parts.Send(_lastSent, peer, shards.At(peer, _sent), shards.Length(peer, _sent));
            _sent++;
            if (!HasUnsent) _left = owner._send.Mark();
        }

        /// <summary>Adds the ranks' parts of the next piece, in their order, and shares the sum where all want it.</summary>
        public void AddNext()
        {
            long number = _lastSent - (_sent - 1 - _added);
            foreach (int peer in owner._peers) owner._parts.Await(owner._device.Stream, peer, number);
            nint sum = PartOf(0, number);
            for (int rank = 1; rank < owner.Size; rank++)
            {
                // Until this rank's own part is in, the sum stays where the first rank's part came: the target may be the own part.
                nint into = rank < owner.Rank ? sum : target + (nint)(_added * shards.PieceBytes);
                Add(sum, PartOf(rank, number), into, isLast: rank == owner.Size - 1);
                sum = into;
            }
            owner.Follow(owner._share);
            owner._parts.Release(owner._share.Stream, number);
            if (isShared) owner.Share(shards, _added, sum);
            _added++;
            if (isShared && !HasUnsummed) (_shared, _landed) = (owner._share.Mark(), owner._land.Mark());
        }

        public override void Wait()
        {
            if (_waited) throw new LaspException($"rank {owner.Rank} waits twice for one operation; wait once");
            _waited = true;
            owner._device.Context.MakeCurrent();
            while (HasUnsummed) owner.AddNext();
            owner._send.Pass(ref _left);
            owner._share.Pass(ref _shared);
            owner._land.Pass(ref _landed);
        }

        private nint PartOf(int rank, long number) => rank == owner.Rank ? shards.At(rank, _added) : owner._parts.At(number, rank);

        private void Add(nint a, nint b, nint y, bool isLast)
        {
            long count = shards.Length(owner.Rank, _added) / type.Size();
            if (count == 0) return;
            (CudaKernel f32, CudaKernel bf16) = isLast ? owner._addSquaring : owner._add;
            CudaKernel kernel = type == DType.F32 ? f32 : bf16;
            LaunchShape shape = LaunchShape.For((count + 7) / 8, AddThreads);
            if (isLast) kernel.Launch(owner._device.Stream, shape, a, b, count, y, owner._squares.Pointer);
            else kernel.Launch(owner._device.Stream, shape, a, b, count, y);
        }
    }

    private sealed class Landing(PeerShards owner, CopyLane.Point shared, CopyLane.Point landed) : CommunicationWork
    {
        private CopyLane.Point? _shared = shared, _landed = landed;

        public override void Wait()
        {
            if (_landed is null) throw new LaspException($"rank {owner.Rank} waits twice for one operation; wait once");
            owner._device.Context.MakeCurrent();
            owner._share.Pass(ref _shared);
            owner._land.Pass(ref _landed);
        }
    }
}
