using LaspNative.Runtime;

namespace LaspNative.Collectives;

/// <summary>
/// One rank of a <see cref="LocalGroup"/>. Starting an operation copies the source into staging memory, so the source may change as soon as its copy has run;
/// waiting copies or sums the other ranks' staged blocks into the destination. Sums take the ranks in order and, for bf16, are kept in fp32 and
/// rounded once: every rank gets the same bits.
/// </summary>
internal sealed class LocalCommunicator : Communicator
{
    private readonly LocalGroup _group;
    private readonly CopyQueue _copies;
    private readonly Dictionary<LocalChannel, long> _sequences = [];
    private readonly List<LocalExchange> _returned = [];
    private readonly Lock _returnedLock = new();
    private int _splits;
    private bool _disposed;

    public LocalCommunicator(LocalGroup group, int rank, Device device) : base(rank, group.Size, device)
    {
        _group = group;
        _copies = CopyQueue.Of(device);
    }

    public override string Carrier => "copies in memory";

    public override void Barrier()
    {
        Device.Synchronize();
        LocalExchange exchange = Post(LocalChannel.Collective, LocalOperation.Barrier, null);
        _group.Await(Rank, exchange);
        _group.Read(Rank, exchange, null);
        FreeReturned();
    }

    private protected override CommunicationWork Start(CollectiveKind kind, Tensor source, Tensor destination, int root)
    {
        var operation = new LocalOperation(kind.ToString(), source.DType, source.Count, root);
        bool contributes = kind != CollectiveKind.Broadcast || Rank == root;
        LocalExchange exchange = Post(LocalChannel.Collective, operation, contributes ? source : null);
        return new Work(this, exchange, kind switch
        {
            CollectiveKind.AllReduce => () => Sum(exchange, 0, destination),
            CollectiveKind.ReduceScatter => () => Sum(exchange, Rank * destination.Count, destination),
            CollectiveKind.AllGather => () => Gather(exchange, 0, destination),
            CollectiveKind.AllToAll => () => Gather(exchange, Rank * (destination.Count / Size), destination),
            _ => () => FetchUnlessOwn(exchange, root, destination),
        });
    }

    private protected override CommunicationWork StartAllGather(Tensor source, Tensor destination, BlockLayout blocks)
    {
        LocalExchange exchange = Post(LocalChannel.Collective, new LocalOperation("AllGather", source.DType, blocks.Total, 0, blocks), source);
        return new Work(this, exchange, () =>
        {
            for (int rank = 0; rank < Size; rank++) FetchElements(exchange, rank, 0, destination, blocks.Start(rank), blocks.Count(rank));
        });
    }

    private protected override CommunicationWork StartReduceScatter(Tensor source, Tensor destination, BlockLayout blocks)
    {
        LocalExchange exchange = Post(LocalChannel.Collective, new LocalOperation("ReduceScatter", source.DType, blocks.Total, 0, blocks), source);
        return new Work(this, exchange, () => Sum(exchange, blocks.Start(Rank), destination));
    }

    private protected override CommunicationWork StartAllToAll(Tensor source, BlockLayout sent, Tensor destination, BlockLayout received)
    {
        LocalExchange exchange = Post(LocalChannel.Collective, new LocalOperation("AllToAll by counts", source.DType, 0, 0), source, sent);
        return new Work(this, exchange, () =>
        {
            for (int rank = 0; rank < Size; rank++)
            {
                BlockLayout theirs = exchange.Blocks[rank]!.Parts!;
                if (theirs.Count(Rank) != received.Count(rank)) _group.Disagree(rank, theirs.Count(Rank), Rank, received.Count(rank));
                FetchElements(exchange, rank, theirs.Start(Rank), destination, received.Start(rank), received.Count(rank));
            }
        });
    }

    private protected override CommunicationWork StartSend(Tensor source, int peer)
    {
        Post(new LocalChannel(Rank, peer), Message(source), source);
        return new Sent(_copies);
    }

    private protected override CommunicationWork StartReceive(Tensor destination, int peer)
    {
        LocalExchange exchange = Post(new LocalChannel(peer, Rank), Message(destination), null);
        return new Work(this, exchange, () => Fetch(exchange, peer, 0, destination, 0, destination.Bytes));
    }

    private protected override CommunicationWork StartSendReceive(Tensor source, int to, Tensor destination, int from)
    {
        StartSend(source, to);
        return StartReceive(destination, from);
    }

    private protected override ICommunicator? SplitOff(int[] ranks) => _group.Split(Rank, _splits++, ranks, Device);

    protected override void Dispose(bool disposing)
    {
        if (_disposed) return;
        _disposed = true;
        FreeReturned();
        _group.Leave(Rank);
    }

    /// <summary>The last rank has left.</summary>
    internal void Close()
    {
        FreeReturned();
        _copies.Dispose();
    }

    /// <summary>All ranks have read an exchange. Its block is freed by this rank, whose device it came from; by the caller when this rank has left or the CPU's allocator does not mind.</summary>
    internal void Return(LocalExchange exchange, bool alone)
    {
        if (alone || Device.Kind == DeviceKind.Cpu)
        {
            exchange.Free(Rank, _copies);
            return;
        }
        lock (_returnedLock) _returned.Add(exchange);
    }

    private static LocalOperation Message(Tensor tensor) => new("message", tensor.DType, tensor.Count, 0);

    private LocalExchange Post(LocalChannel channel, LocalOperation operation, Tensor? source, BlockLayout? parts = null)
    {
        ObjectDisposedException.ThrowIf(_disposed, this);
        FreeReturned();
        long sequence = _sequences.GetValueOrDefault(channel);
        StagedBlock? block = source is null ? null : Stage(source, parts);
        // Also where nothing is staged: what was queued so far may still use the memory that the destination now has.
        if (block is null) _copies.FollowCompute();
        try
        {
            LocalExchange exchange = _group.Post(Rank, channel, sequence, operation, block);
            _sequences[channel] = sequence + 1;
            return exchange;
        }
        catch
        {
            block?.Tensor.Dispose();
            block?.Filled?.Dispose();
            throw;
        }
    }

    private StagedBlock Stage(Tensor source, BlockLayout? parts)
    {
        Tensor staging = Tensor.Empty(source.Shape, source.DType, Device, MemoryCategory.Communication);
        _copies.FollowCompute();
        _copies.Copy(source.Pointer, staging.Pointer, source.Bytes);
        return new StagedBlock(staging, _copies.Mark(), parts);
    }

    private void FreeReturned()
    {
        lock (_returnedLock)
        {
            foreach (LocalExchange exchange in _returned) exchange.Free(Rank, _copies);
            _returned.Clear();
        }
    }

    /// <summary>destination[j] = the elements of rank j's block from <paramref name="first"/> on.</summary>
    private void Gather(LocalExchange exchange, long first, Tensor destination)
    {
        long bytes = destination.Bytes / Size;
        for (int rank = 0; rank < Size; rank++)
            Fetch(exchange, rank, first * destination.DType.Size(), destination, rank * bytes, bytes);
    }

    private void Fetch(LocalExchange exchange, int rank, long from, Tensor destination, long to, long bytes)
    {
        StagedBlock block = exchange.Blocks[rank]!;
        _copies.Follow(block.Filled);
        _copies.Copy(block.Tensor.Pointer + (nint)from, destination.Pointer + (nint)to, bytes);
    }

    private void FetchElements(LocalExchange exchange, int rank, long from, Tensor destination, long to, long count)
    {
        int size = destination.DType.Size();
        if (count > 0) Fetch(exchange, rank, from * size, destination, to * size, count * size);
    }

    private void FetchUnlessOwn(LocalExchange exchange, int root, Tensor destination)
    {
        if (root != Rank) Fetch(exchange, root, 0, destination, 0, destination.Bytes);
    }

    /// <summary>destination = sum over ranks of their blocks' elements from <paramref name="first"/> on, in rank order.</summary>
    private void Sum(LocalExchange exchange, long first, Tensor destination)
    {
        if (destination.Count == 0) return;
        foreach (StagedBlock? block in exchange.Blocks) _copies.Follow(block!.Filled);
        _copies.LeadCompute();
        using Tensor sum = destination.DType == destination.DType.Accumulator()
            ? destination.Share()
            : Tensor.Empty(destination.Shape, destination.DType.Accumulator(), Device, MemoryCategory.Communication);
        for (int rank = 0; rank < Size; rank++)
        {
            nint pointer = exchange.Blocks[rank]!.Tensor.Pointer + (nint)(first * destination.DType.Size());
            using Tensor part = Tensor.WrapDevicePointer(pointer, destination.Shape, destination.DType, Device);
            if (rank == 0) Device.Backend.Cast(part, sum);
            else Device.Backend.AddScaled(part, 1, sum);
        }
        if (sum.DType != destination.DType) Device.Backend.Cast(sum, destination);
        _copies.FollowCompute();
    }

    /// <summary>The message is the peer's business; the source is free for compute work, and for the allocator, once its copy into the staging memory has run.</summary>
    private sealed class Sent(CopyQueue copies) : CommunicationWork
    {
        public override void Wait() => copies.LeadCompute();
    }

    private sealed class Work(LocalCommunicator communicator, LocalExchange exchange, Action read) : CommunicationWork
    {
        private bool _waited;

        public override void Wait()
        {
            if (_waited) throw new LaspException($"rank {communicator.Rank} waits twice for {exchange.Describe()}; wait once");
            communicator._group.Await(communicator.Rank, exchange);
            _waited = true;
            read();
            communicator._copies.LeadCompute();
            communicator._group.Read(communicator.Rank, exchange, communicator._copies.Mark());
            communicator.FreeReturned();
        }
    }
}
