using LaspNative.Runtime;

namespace LaspNative.Collectives;

/// <summary>
/// What every communicator shares: operands are checked before anything starts, groups of one copy and are done, and what is sent is counted.
/// A transport starts operations whose operands fit and whose group has more than one rank.
/// </summary>
public abstract class Communicator : ICommunicator
{
    protected Communicator(int rank, int size, Device device)
    {
        ArgumentNullException.ThrowIfNull(device);
        if (size < 1 || rank < 0 || rank >= size) throw new LaspException($"rank {rank} does not belong to a group of {size}; ranks count from 0");
        Rank = rank;
        Size = size;
        Device = device;
    }

    public int Rank { get; }

    public int Size { get; }

    public Device Device { get; }

    public virtual bool LeavesComputeAlone => true;

    public abstract string Carrier { get; }

    public virtual bool LeavesSquares(CollectiveKind kind, Tensor source) => false;

    public virtual void TakeSquares(Tensor total)
    {
        ArgumentNullException.ThrowIfNull(total);
        Device.Backend.Fill(0, total);
    }

    public CommunicationCounters Counters { get; } = new();

    public CommunicationWork AllGather(Tensor source, Tensor destination)
    {
        CheckPair("AllGather", source, destination);
        CheckRanks("AllGather", destination, "destination", source);
        return Collect(CollectiveKind.AllGather, source, destination, 0, (Size - 1) * source.Bytes);
    }

    public CommunicationWork AllGather(Tensor source, Tensor destination, ReadOnlySpan<long> counts)
    {
        CheckPair("AllGather", source, destination);
        CheckBlocks("AllGather", source, "source", destination, "destination", counts);
        if (BlockLayout.AreEqual(counts)) return Collect(CollectiveKind.AllGather, source, destination, 0, (Size - 1) * source.Bytes);
        return Count(CollectiveKind.AllGather, StartAllGather(source, destination, new BlockLayout(counts)), (Size - 1) * source.Bytes);
    }

    public BlockGather Gather(Tensor source)
    {
        CheckPair("Gather", source, source);
        if (Size > 1 && StartGather(source) is { } gather)
        {
            Counters.Count(CollectiveKind.AllGather, (Size - 1) * source.Bytes);
            return gather;
        }
        Tensor blocks = Tensor.Empty(source.Shape.Times(Size), source.DType, Device, MemoryCategory.Communication);
        return new GatherByCopy(blocks, AllGather(source, blocks));
    }

    public BlockRelay Relay(Shape shape, DType dtype, int pieces, int? from, int? to)
    {
        if (pieces < 1 || pieces > Math.Max(1, shape[0])) throw new LaspException($"Relay on rank {Rank}: a block {shape} cannot go in {pieces} pieces; use 1 to {Math.Max(1, shape[0])}, its rows");
        if (from is { } sender) CheckOther("Relay", sender);
        if (to is { } receiver) CheckOther("Relay", receiver);
        BlockLayout layout = BlockLayout.OfRows(shape, pieces);
        return StartRelay(shape, dtype, layout, from, to) ?? new MessageRelay(this, shape, dtype, layout, from, to);
    }

    public CommunicationWork AllReduce(Tensor tensor)
    {
        CheckPair("AllReduce", tensor, tensor);
        CheckSummable("AllReduce", tensor);
        return Collect(CollectiveKind.AllReduce, tensor, tensor, 0, 2 * (Size - 1) * tensor.Bytes / Size);
    }

    public CommunicationWork ReduceScatter(Tensor source, Tensor destination)
    {
        CheckPair("ReduceScatter", source, destination);
        CheckSummable("ReduceScatter", source);
        CheckRanks("ReduceScatter", source, "source", destination);
        return Collect(CollectiveKind.ReduceScatter, source, destination, 0, (Size - 1) * destination.Bytes);
    }

    public CommunicationWork ReduceScatter(Tensor source, Tensor destination, ReadOnlySpan<long> counts)
    {
        CheckPair("ReduceScatter", source, destination);
        CheckSummable("ReduceScatter", source);
        CheckBlocks("ReduceScatter", destination, "destination", source, "source", counts);
        long bytesSent = source.Bytes - destination.Bytes;
        if (BlockLayout.AreEqual(counts)) return Collect(CollectiveKind.ReduceScatter, source, destination, 0, bytesSent);
        return Count(CollectiveKind.ReduceScatter, StartReduceScatter(source, destination, new BlockLayout(counts)), bytesSent);
    }

    public CommunicationWork Broadcast(Tensor tensor, int root)
    {
        CheckPair("Broadcast", tensor, tensor);
        CheckPeer("Broadcast", root);
        return Collect(CollectiveKind.Broadcast, tensor, tensor, root, Rank == root ? (Size - 1) * tensor.Bytes : 0);
    }

    public CommunicationWork AllToAll(Tensor source, Tensor destination)
    {
        CheckPair("AllToAll", source, destination);
        CheckSame("AllToAll", destination, "destination", source);
        if (source.Count % Size != 0) throw new LaspException($"AllToAll on rank {Rank}: {source.Count} elements do not divide among {Size} ranks");
        return Collect(CollectiveKind.AllToAll, source, destination, 0, (Size - 1) * (source.Bytes / Size));
    }

    public CommunicationWork AllToAll(Tensor source, ReadOnlySpan<long> sendCounts, Tensor destination, ReadOnlySpan<long> receiveCounts)
    {
        CheckPair("AllToAll", source, destination);
        CheckTotal("AllToAll", source, "source", sendCounts);
        CheckTotal("AllToAll", destination, "destination", receiveCounts);
        if (sendCounts[Rank] != receiveCounts[Rank])
            throw new LaspException($"AllToAll on rank {Rank}: it sends itself {sendCounts[Rank]} elements but expects {receiveCounts[Rank]}; both need one count");
        if (Size == 1) return CopyAlone(source, destination);
        CommunicationWork work = StartAllToAll(source, new BlockLayout(sendCounts), destination, new BlockLayout(receiveCounts));
        return Count(CollectiveKind.AllToAll, work, source.Bytes - sendCounts[Rank] * source.DType.Size());
    }

    public CommunicationWork Send(Tensor source, int peer)
    {
        CheckPair("Send", source, source);
        CheckOther("Send", peer);
        CommunicationWork work = StartSend(source, peer);
        Counters.Count(CollectiveKind.SendReceive, source.Bytes);
        return work;
    }

    public CommunicationWork Receive(Tensor destination, int peer)
    {
        CheckPair("Receive", destination, destination);
        CheckOther("Receive", peer);
        return StartReceive(destination, peer);
    }

    public CommunicationWork SendReceive(Tensor source, int to, Tensor destination, int from)
    {
        CheckPair("SendReceive", source, destination);
        if (to == Rank && from == Rank)
        {
            CheckSame("SendReceive", destination, "destination", source);
            return CopyAlone(source, destination);
        }
        CheckOther("SendReceive", to);
        CheckOther("SendReceive", from);
        CommunicationWork work = StartSendReceive(source, to, destination, from);
        Counters.Count(CollectiveKind.SendReceive, source.Bytes);
        return work;
    }

    public ICommunicator? Split(ReadOnlySpan<int> ranks)
    {
        int[] members = ranks.ToArray();
        if (members.Length == 0) throw new LaspException($"Split on rank {Rank}: the list of ranks is empty; name at least one rank");
        foreach (int member in members) CheckPeer("Split", member);
        if (members.Distinct().Count() != members.Length) throw new LaspException($"Split on rank {Rank}: the list {string.Join(", ", members)} names a rank twice; name each once");
        if (members.Length > 1) return SplitOff(members);
        // A rank alone needs no transport.
        return members[0] == Rank ? new LocalGroup(1).Communicator(0, Device) : null;
    }

    public virtual ICommunicator Background() => Split([.. Enumerable.Range(0, Size)])!;

    public abstract void Barrier();

    public void Dispose()
    {
        Dispose(disposing: true);
        GC.SuppressFinalize(this);
    }

    /// <summary>Starts a collective of all ranks. <paramref name="root"/> matters to Broadcast only.</summary>
    private protected abstract CommunicationWork Start(CollectiveKind kind, Tensor source, Tensor destination, int root);

    /// <summary>Starts a gather into memory of the communicator; null, on every rank, where it has none for this.</summary>
    private protected virtual BlockGather? StartGather(Tensor source) => null;

    /// <summary>Starts a relay through memory of the communicator, which counts what is passed on; null, on every rank, where it has none for this.</summary>
    private protected virtual BlockRelay? StartRelay(Shape shape, DType dtype, BlockLayout pieces, int? from, int? to) => null;

    /// <summary>Starts an all-gather of blocks that differ in size.</summary>
    private protected abstract CommunicationWork StartAllGather(Tensor source, Tensor destination, BlockLayout blocks);

    /// <summary>Starts a reduce-scatter of blocks that differ in size.</summary>
    private protected abstract CommunicationWork StartReduceScatter(Tensor source, Tensor destination, BlockLayout blocks);

    private protected abstract CommunicationWork StartAllToAll(Tensor source, BlockLayout sent, Tensor destination, BlockLayout received);

    private protected abstract CommunicationWork StartSend(Tensor source, int peer);

    private protected abstract CommunicationWork StartReceive(Tensor destination, int peer);

    private protected abstract CommunicationWork StartSendReceive(Tensor source, int to, Tensor destination, int from);

    /// <summary>The group of at least two of this group's ranks, null on the ranks outside.</summary>
    private protected abstract ICommunicator? SplitOff(int[] ranks);

    protected abstract void Dispose(bool disposing);

    private CommunicationWork Collect(CollectiveKind kind, Tensor source, Tensor destination, int root, long bytesSent) =>
        Size == 1 ? CopyAlone(source, destination) : Count(kind, Start(kind, source, destination, root), bytesSent);

    private CommunicationWork Count(CollectiveKind kind, CommunicationWork started, long bytesSent)
    {
        Counters.Count(kind, bytesSent);
        return started;
    }

    private CommunicationWork CopyAlone(Tensor source, Tensor destination)
    {
        if (source.Pointer != destination.Pointer) Device.Copy(source.Pointer, destination.Pointer, source.Bytes);
        return CommunicationWork.Done;
    }

    private void CheckPair(string operation, Tensor source, Tensor destination)
    {
        ArgumentNullException.ThrowIfNull(source);
        ArgumentNullException.ThrowIfNull(destination);
        Tensor? stranger = source.Device != Device ? source : destination.Device != Device ? destination : null;
        if (stranger is not null) throw new LaspException($"{operation} on rank {Rank}: the tensor {stranger} does not live on this communicator's device ({Device.Name})");
        if (source.DType != destination.DType) throw new LaspException($"{operation} on rank {Rank}: the source is {source.DType}, the destination {destination.DType}; both need one type");
    }

    private LaspException WrongCount(string operation, Tensor tensor, string role, long expected, string reason) =>
        new($"{operation} on rank {Rank}: the {role} {tensor.Shape} has {tensor.Count} elements, {expected} are needed ({reason})");

    /// <summary>One tensor holds as much as every rank's other one together.</summary>
    private void CheckRanks(string operation, Tensor all, string role, Tensor own)
    {
        if (all.Count != Size * own.Count) throw WrongCount(operation, all, role, Size * own.Count, $"{Size} ranks x {own.Shape}");
    }

    private void CheckSame(string operation, Tensor tensor, string role, Tensor other)
    {
        if (tensor.Count != other.Count) throw WrongCount(operation, tensor, role, other.Count, $"{other.Shape}");
    }

    /// <summary>One tensor is this rank's block, the other the blocks of all ranks.</summary>
    private void CheckBlocks(string operation, Tensor own, string ownRole, Tensor all, string allRole, ReadOnlySpan<long> counts)
    {
        CheckTotal(operation, all, allRole, counts);
        if (own.Count != counts[Rank]) throw WrongCount(operation, own, ownRole, counts[Rank], $"the count of rank {Rank}");
    }

    private void CheckTotal(string operation, Tensor tensor, string role, ReadOnlySpan<long> counts)
    {
        if (counts.Length != Size) throw new LaspException($"{operation} on rank {Rank}: {counts.Length} counts for {Size} ranks; give one per rank");
        long total = 0;
        foreach (long count in counts)
        {
            if (count < 0) throw new LaspException($"{operation} on rank {Rank}: a count is {count}; counts are numbers of elements, 0 or more");
            total += count;
        }
        if (tensor.Count != total) throw WrongCount(operation, tensor, role, total, $"the sum of the {Size} counts");
    }

    private void CheckSummable(string operation, Tensor tensor)
    {
        if (!tensor.DType.IsFloat()) throw new LaspException($"{operation} on rank {Rank} sums floating-point tensors only, got {tensor.DType} {tensor.Shape}; cast it first");
    }

    private void CheckPeer(string operation, int peer)
    {
        if (peer < 0 || peer >= Size) throw new LaspException($"{operation} on rank {Rank}: rank {peer} is not in this group of {Size}");
    }

    private void CheckOther(string operation, int peer)
    {
        CheckPeer(operation, peer);
        if (peer == Rank) throw new LaspException($"{operation} on rank {Rank}: a rank cannot be its own peer here; copy the tensor, or send to and receive from itself with one SendReceive");
    }

    private sealed class GatherByCopy(Tensor blocks, CommunicationWork work) : BlockGather
    {
        private CommunicationWork? _work = work;

        public override Tensor Blocks => blocks;

        public override void Wait(int first, int count)
        {
            _work?.Wait();
            _work = null;
        }

        protected override void Dispose(bool disposing)
        {
            Wait(0, 0);
            blocks.Dispose();
        }
    }
}
