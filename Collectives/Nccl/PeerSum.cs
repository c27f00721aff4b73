using LaspNative.Runtime;
using LaspNative.Runtime.Cuda;

namespace LaspNative.Collectives;

/// <summary>
/// Sums of long fp32 tensors over ranks by copy engines, beside kernels that keep their multiprocessors: a collective kernel's blocks displace those of a matrix product, which then needs a second wave.
/// A tensor is cut into pieces, a piece into one shard per rank. On three streams, for piece after piece:
///   send     shard p of what this rank has goes to rank p
///   sum      what has come is added to this rank's own shard, rank after rank; the sum goes to every other rank
///   land     the other ranks' sums take their places
/// Every element is summed once, by the owner of its shard, so all ranks get the same bits. Sends 2 (W-1)/W x the tensor. Piece n uses slot n mod 4 of what lies between streams; whoever writes
/// there again waits until piece n - 4 has been read.
/// </summary>
internal sealed class PeerSum : IDisposable
{
    /// <summary>Shorter tensors gain nothing: they are latency.</summary>
    private const long ShortestTensorBytes = 1 << 20;

    private const long PieceBytes = 32 << 20;
    private const int Slots = 4;
    private const int AddThreads = 256;

    private enum Flags
    {
        PartArrived,
        PartRead,
        SumArrived,
        SumRead,
    }

    private readonly CudaDevice _device;
    private readonly PeerMemory _memory; // parts [Slots, W-1, ShardBytes], sums [Slots, W-1, ShardBytes]; flags [4, Slots, W]
    private readonly CudaStream _send;
    private readonly CudaStream _sum;
    private readonly CudaStream _land;
    private readonly CudaEvent _computed;
    private readonly Stack<CudaEvent> _idle = [];
    private readonly CudaKernel _add;
    private readonly int[] _peers; // each rank begins with the next one
    private uint _pieces;

    private PeerSum(CudaDevice device, PeerMemory memory)
    {
        (_device, _memory) = (device, memory);
        (_send, _sum, _land) = (new CudaStream(device.Context, urgent: true), new CudaStream(device.Context, urgent: true), new CudaStream(device.Context, urgent: true));
        _computed = new CudaEvent(device.Context);
        _peers = [.. Enumerable.Range(1, Size - 1).Select(step => (Rank + step) % Size)];
        _add = device.Kernels.Get("elementwise", "add_scaled_to_f32", DType.F32);
    }

    private int Rank => _memory.Rank;

    private int Size => _memory.Size;

    /// <summary>As <see cref="PeerMemory.Open"/>.</summary>
    public static PeerSum? Open(CudaDevice device, int rank, ThreadMeeting meeting) =>
        PeerMemory.Open(device, rank, meeting, 2 * Slots * (meeting.Size - 1) * ShardBytes(meeting.Size), 4 * Slots * meeting.Size) is { } memory ? new PeerSum(device, memory) : null;

    public static bool Takes(Tensor tensor) => tensor.DType == DType.F32 && tensor.Bytes >= ShortestTensorBytes && tensor.Pointer % 16 == 0;

    /// <summary>tensor = sum over ranks, behind the compute work queued so far.</summary>
    public CommunicationWork Start(Tensor tensor)
    {
        _computed.Record(_device.Stream);
        _send.WaitFor(_computed);
        _sum.WaitFor(_computed);
        _land.WaitFor(_computed); // the memory may have served compute work until now
        for (long first = 0; first < tensor.Bytes; first += PieceBytes)
        {
            var piece = new Piece(this, ++_pieces, tensor.Pointer + (nint)first, Math.Min(PieceBytes, tensor.Bytes - first));
            piece.Send();
            piece.Sum();
            piece.Land();
        }
        return new Work(this, Mark(_sum), Mark(_land));
    }

    public void Abort() => _memory.Abort(_pieces);

    /// <summary>Blocks the host until what was queued has run.</summary>
    public void Drain()
    {
        _send.Synchronize();
        _sum.Synchronize();
        _land.Synchronize();
    }

    public void Dispose()
    {
        _memory.Dispose();
        _computed.Dispose();
        foreach (CudaEvent idle in _idle) idle.Dispose();
        _send.Dispose();
        _sum.Dispose();
        _land.Dispose();
    }

    /// <summary>Of a whole piece; of a multiple of 16 bytes.</summary>
    private static long ShardBytes(int ranks) => (((PieceBytes / ranks) + 15) / 16 * 16) + 16;

    private CudaEvent Mark(CudaStream stream)
    {
        CudaEvent mark = _idle.TryPop(out CudaEvent? idle) ? idle : new CudaEvent(_device.Context);
        mark.Record(stream);
        return mark;
    }

    private sealed class Work(PeerSum owner, CudaEvent summed, CudaEvent landed) : CommunicationWork
    {
        private bool _waited;

        public override void Wait()
        {
            if (_waited) throw new LaspException($"rank {owner.Rank} waits twice for one operation; wait once");
            _waited = true;
            owner._device.Context.MakeCurrent();
            owner._device.Stream.WaitFor(summed);
            owner._device.Stream.WaitFor(landed);
            owner._idle.Push(summed);
            owner._idle.Push(landed);
        }
    }

    /// <summary>One piece on its way through the three streams.</summary>
    private readonly struct Piece(PeerSum owner, uint number, nint start, long bytes)
    {
        private readonly int _slot = (int)(number % Slots);
        private readonly long _shard = ((bytes + owner.Size - 1) / owner.Size + 15) / 16 * 16;

        public void Send()
        {
            foreach (int peer in owner._peers)
            {
                AwaitRoom(owner._send, Flags.PartRead, peer);
                owner._send.CopyAsync(Shard(peer), Place(0, peer, owner.Rank), Length(peer));
                owner._memory.Raise(owner._send, peer, Flag(Flags.PartArrived, owner.Rank), number);
            }
        }

        public void Sum()
        {
            long count = Length(owner.Rank) / sizeof(float);
            foreach (int peer in owner._peers)
            {
                owner._memory.Await(owner._sum, Flag(Flags.PartArrived, peer), number);
                owner._add.Launch(owner._sum, LaunchShape.For((count + 7) / 8, AddThreads), Place(0, owner.Rank, peer), 1f, count, Shard(owner.Rank));
                owner._memory.Raise(owner._sum, peer, Flag(Flags.PartRead, owner.Rank), number);
            }
            foreach (int peer in owner._peers)
            {
                AwaitRoom(owner._sum, Flags.SumRead, peer);
                owner._sum.CopyAsync(Shard(owner.Rank), Place(1, peer, owner.Rank), Length(owner.Rank));
                owner._memory.Raise(owner._sum, peer, Flag(Flags.SumArrived, owner.Rank), number);
            }
        }

        public void Land()
        {
            foreach (int peer in owner._peers)
            {
                owner._memory.Await(owner._land, Flag(Flags.SumArrived, peer), number);
                owner._land.CopyAsync(Place(1, owner.Rank, peer), Shard(peer), Length(peer));
                owner._memory.Raise(owner._land, peer, Flag(Flags.SumRead, owner.Rank), number);
            }
        }

        private void AwaitRoom(CudaStream writer, Flags read, int peer)
        {
            if (number > Slots) owner._memory.Await(writer, Flag(read, peer), number - Slots);
        }

        private nint Shard(int rank) => start + (nint)Math.Min(rank * _shard, bytes);

        private long Length(int rank) => Math.Clamp(bytes - (rank * _shard), 0, _shard);

        /// <summary>Where <paramref name="reader"/> keeps what <paramref name="sender"/> writes: parts in the first half (0), sums in the second (1).</summary>
        private nint Place(int half, int reader, int sender)
        {
            int others = owner.Size - 1, index = (sender - reader - 1 + owner.Size) % owner.Size;
            return owner._memory.At(reader, ((((half * Slots) + _slot) * others) + index) * ShardBytes(owner.Size));
        }

        private int Flag(Flags kind, int other) => ((((int)kind * Slots) + _slot) * owner.Size) + other;
    }
}
