using System.Runtime.InteropServices;
using LaspNative.Runtime;

namespace LaspNative.Collectives;

/// <summary>
/// A group of processes without a GPU. Starting an operation copies what each other rank needs into frames that are sent in the background;
/// waiting takes the others' frames and copies or sums them into the destination. Sums take the ranks in order and, for bf16, are kept in fp32 and
/// rounded once: every rank gets the same bits, and the same as ranks that are threads. An all-reduce sends whole tensors; counters follow the interface's formula.
/// </summary>
internal sealed class TcpCommunicator : Communicator
{
    private const int SplitBits = 16;
    private readonly TcpWorld _world;
    private readonly int[] _members;
    private readonly long _group;
    private readonly long[] _sent;
    private readonly long[] _received;
    private long _sequence;
    private int _splits;
    private bool _disposed;

    /// <summary>The group of all ranks, which owns the connections.</summary>
    public TcpCommunicator(TcpWorld world, Device device) : this(world, device, [.. Enumerable.Range(0, world.Size)], 0) { }

    /// <param name="members">The group's ranks as the world counts them.</param>
    /// <param name="group">The splits that led to the group, 16 bits for each: the same number on all its ranks, another for every group that two ranks share.</param>
    private TcpCommunicator(TcpWorld world, Device device, int[] members, long group) : base(Array.IndexOf(members, world.Rank), members.Length, device)
    {
        _world = world;
        _members = members;
        _group = group;
        _sent = new long[members.Length];
        _received = new long[members.Length];
    }

    public override string Carrier => "TCP";

    public override void Barrier() => Exchange(TcpKind.Barrier, default, Everyone([]), new long[Size], _ => { }).Wait();

    private protected override CommunicationWork Start(CollectiveKind kind, Tensor source, Tensor destination, int root) => kind switch
    {
        CollectiveKind.AllGather => StartAllGather(source, destination, Even(destination)),
        CollectiveKind.AllToAll => StartAllToAll(source, Even(source), destination, Even(destination)),
        CollectiveKind.ReduceScatter => StartReduceScatter(source, destination, Even(source)),
        CollectiveKind.AllReduce => Exchange(TcpKind.AllReduce, source.DType, Everyone(Bytes(source, 0, source.Count)), Filled(source.Bytes), parts => Sum(parts, destination)),
        _ => StartBroadcast(source, root),
    };

    private protected override CommunicationWork StartAllGather(Tensor source, Tensor destination, BlockLayout blocks) =>
        Exchange(TcpKind.AllGather, source.DType, Everyone(Bytes(source, 0, source.Count)), Sizes(blocks, destination.DType), parts => Concatenate(parts, destination, blocks));

    private protected override CommunicationWork StartReduceScatter(Tensor source, Tensor destination, BlockLayout blocks) =>
        Exchange(TcpKind.ReduceScatter, source.DType, Cut(source, blocks), Filled(destination.Bytes), parts => Sum(parts, destination));

    private protected override CommunicationWork StartAllToAll(Tensor source, BlockLayout sent, Tensor destination, BlockLayout received) =>
        Exchange(TcpKind.AllToAll, source.DType, Cut(source, sent), Sizes(received, destination.DType), parts => Concatenate(parts, destination, received));

    private protected override CommunicationWork StartSend(Tensor source, int peer)
    {
        ThrowIfUnusable();
        _world.Post(_members[peer], new TcpFrame(TcpKind.Message, source.DType, _group, _sent[peer]++, Bytes(source, 0, source.Count)));
        return CommunicationWork.Done;
    }

    private protected override CommunicationWork StartReceive(Tensor destination, int peer)
    {
        ThrowIfUnusable();
        long sequence = _received[peer]++;
        return new Work(this, () => Write(_world.Take(_members[peer], TcpKind.Message, destination.DType, _group, sequence, destination.Bytes), destination, 0));
    }

    private protected override CommunicationWork StartSendReceive(Tensor source, int to, Tensor destination, int from)
    {
        StartSend(source, to);
        return StartReceive(destination, from);
    }

    private protected override ICommunicator? SplitOff(int[] ranks)
    {
        byte[] list = MemoryMarshal.AsBytes(ranks.AsSpan()).ToArray();
        Exchange(TcpKind.Split, DType.I32, Everyone(list), Filled(list.Length), parts =>
        {
            int stranger = Array.FindIndex(parts, p => !p.AsSpan().SequenceEqual(list));
            if (stranger >= 0) throw _world.Disagree($"rank {_world.Rank} splits off other ranks than rank {_members[stranger]}; all ranks must split in the same order");
        }).Wait();
        if (++_splits >= 1 << SplitBits || _group >> (63 - SplitBits) != 0) throw new LaspException($"group {_group:x} was split {_splits} times; make groups once and keep them");
        return ranks.Contains(Rank) ? new TcpCommunicator(_world, Device, [.. ranks.Select(r => _members[r])], (_group << SplitBits) | (uint)_splits) : null;
    }

    protected override void Dispose(bool disposing)
    {
        if (_disposed) return;
        _disposed = true;
        if (_group == 0) _world.Dispose();
    }

    private CommunicationWork StartBroadcast(Tensor tensor, int root)
    {
        ThrowIfUnusable();
        long sequence = _sequence++;
        if (Rank != root) return new Work(this, () => Write(_world.Take(_members[root], TcpKind.Broadcast, tensor.DType, _group, sequence, tensor.Bytes), tensor, 0));
        byte[] payload = Bytes(tensor, 0, tensor.Count);
        for (int peer = 0; peer < Size; peer++)
            if (peer != Rank) _world.Post(_members[peer], new TcpFrame(TcpKind.Broadcast, tensor.DType, _group, sequence, payload));
        return CommunicationWork.Done;
    }

    /// <summary>Every rank gives every rank something: <paramref name="parts"/>[r] goes to rank r, and what comes from it, of bytes[r], is read when all is there.</summary>
    private Work Exchange(TcpKind kind, DType dtype, byte[][] parts, long[] bytes, Action<byte[][]> read)
    {
        ThrowIfUnusable();
        long sequence = _sequence++;
        for (int peer = 0; peer < Size; peer++)
            if (peer != Rank) _world.Post(_members[peer], new TcpFrame(kind, dtype, _group, sequence, parts[peer]));
        byte[] own = parts[Rank];
        return new Work(this, () =>
        {
            var received = new byte[Size][];
            for (int peer = 0; peer < Size; peer++)
                received[peer] = peer == Rank ? own : _world.Take(_members[peer], kind, dtype, _group, sequence, bytes[peer]);
            read(received);
        });
    }

    private void ThrowIfUnusable() => ObjectDisposedException.ThrowIf(_disposed, this);

    private BlockLayout Even(Tensor tensor) => new(Filled(tensor.Count / Size));

    private long[] Filled(long value)
    {
        var values = new long[Size];
        values.AsSpan().Fill(value);
        return values;
    }

    private byte[][] Everyone(byte[] part)
    {
        var parts = new byte[Size][];
        parts.AsSpan().Fill(part);
        return parts;
    }

    private byte[][] Cut(Tensor source, BlockLayout blocks) => [.. Enumerable.Range(0, Size).Select(r => Bytes(source, blocks.Start(r), blocks.Count(r)))];

    private static long[] Sizes(BlockLayout blocks, DType dtype) => [.. Enumerable.Range(0, blocks.Ranks).Select(r => blocks.Count(r) * dtype.Size())];

    private byte[] Bytes(Tensor source, long first, long count)
    {
        int size = source.DType.Size();
        if (count * size > Array.MaxLength) throw new LaspException($"rank {Rank} cannot send {count * size} bytes in one part over TCP; at most {Array.MaxLength} fit, use more ranks or shorter sequences");
        byte[] bytes = GC.AllocateUninitializedArray<byte>((int)(count * size));
        Device.CopyToHost(source.Pointer + (nint)(first * size), bytes);
        return bytes;
    }

    private void Write(byte[] part, Tensor destination, long first) => Device.CopyFromHost(part, destination.Pointer + (nint)(first * destination.DType.Size()));

    private void Concatenate(byte[][] parts, Tensor destination, BlockLayout blocks)
    {
        for (int rank = 0; rank < Size; rank++) Write(parts[rank], destination, blocks.Start(rank));
    }

    private unsafe void Sum(byte[][] parts, Tensor destination)
    {
        if (destination.Count == 0) return;
        using Tensor sum = destination.DType == destination.DType.Accumulator()
            ? destination.Share()
            : Tensor.Empty(destination.Shape, destination.DType.Accumulator(), Device, MemoryCategory.Communication);
        for (int rank = 0; rank < Size; rank++)
        {
            fixed (byte* pointer = parts[rank])
            {
                using Tensor part = Tensor.WrapDevicePointer((nint)pointer, destination.Shape, destination.DType, Device);
                if (rank == 0) Device.Backend.Cast(part, sum);
                else Device.Backend.AddScaled(part, 1, sum);
            }
        }
        if (sum.DType != destination.DType) Device.Backend.Cast(sum, destination);
    }

    private sealed class Work(TcpCommunicator communicator, Action finish) : CommunicationWork
    {
        private Action? _finish = finish;

        public override void Wait()
        {
            Action take = _finish ?? throw new LaspException($"rank {communicator.Rank} waits twice for one operation; wait once");
            take();
            _finish = null;
        }
    }
}
