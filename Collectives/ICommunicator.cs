using LaspNative.Runtime;

namespace LaspNative.Collectives;

/// <summary>
/// The ranks of one group, seen from one of them. Every rank calls the same operations in the same order.
/// Operations are asynchronous: they start when the device's work queued so far is done, run beside later work, and return a handle whose
/// <see cref="CommunicationWork.Wait"/> puts the result before whatever is queued next. Sources must not be written, and destinations not touched, until then.
/// In place: the source of an AllGather may be the rank's own block of the destination, the destination of a ReduceScatter the rank's own block of the source (equal blocks only).
/// Peers are ranks of THIS group, never of the world.
/// </summary>
public interface ICommunicator : IDisposable
{
    int Rank { get; }

    int Size { get; }

    /// <summary>The device whose tensors this communicator moves.</summary>
    Device Device { get; }

    /// <summary>Whether long messages take nothing from what is computed meanwhile, so that they are best waited for as late as can be. NCCL's blocks take multiprocessors.</summary>
    bool LeavesComputeAlone => true;

    /// <summary>What carries long messages, in words for reports: "copy engines", "NCCL", "TCP", or "copies in memory" of ranks that share it.</summary>
    string Carrier { get; }

    /// <summary>
    /// Whether this rank's own kernels add up its part of a sum (<see cref="AllReduce"/>, <see cref="ReduceScatter(Tensor, Tensor)"/>) of such a tensor, and leave the squares for <see cref="TakeSquares"/>.
    /// The same answer on all ranks.
    /// </summary>
    bool LeavesSquares(CollectiveKind kind, Tensor source) => false;

    /// <summary>
    /// total = the sum of squares over the parts that this rank has added up since the last call, [1] in fp32, for a norm that reads no sum again; 0 where none left their squares. An element is part of one
    /// rank's alone, so that the ranks' totals add up to the whole. What was started must have been waited for.
    /// </summary>
    void TakeSquares(Tensor total) => total.Device.Backend.Fill(0, total);

    /// <summary>Bytes and messages sent by this rank, by operation.</summary>
    CommunicationCounters Counters { get; }

    /// <summary>destination [W, ...] = every rank's source [...] in rank order. Sends (W-1) x the source.</summary>
    CommunicationWork AllGather(Tensor source, Tensor destination);

    /// <summary>
    /// destination = every rank's source in rank order, where rank r contributes counts[r] elements (0 allowed; the same counts on every rank).
    /// Sends (W-1) x the source.
    /// </summary>
    CommunicationWork AllGather(Tensor source, Tensor destination, ReadOnlySpan<long> counts);

    /// <summary>
    /// Every rank's source, in memory of the communicator: for blocks that are read once, where they arrive. The same shape on every rank; disposed in the same order on every rank. Sends (W-1) x the source.
    /// </summary>
    BlockGather Gather(Tensor source);

    /// <summary>
    /// A block handed from rank to rank: one comes from rank <paramref name="from"/>, one is passed on to rank <paramref name="to"/> (null: none). Either goes in pieces of whole rows of its first
    /// dimension, at most as many as those are, in order, cut as <see cref="SequencePartition"/> cuts tokens. Every rank of the group calls it with the same shape, type and number of pieces, and disposes it in the same order; whom a rank
    /// sends to has named it as the one to come from. Sends the pieces that are passed on, each a message. Where a transport keeps one order, as NCCL does, a block that is still to come holds up what the
    /// group is asked for after it: relays in flight together go one way, and no operation begun after them is waited for first.
    /// </summary>
    BlockRelay Relay(Shape shape, DType dtype, int pieces, int? from, int? to);

    /// <summary>tensor = sum over ranks, on every rank. Sends 2 (W-1)/W x the tensor.</summary>
    CommunicationWork AllReduce(Tensor tensor);

    /// <summary>destination [...] = sum over ranks of their source[rank] where source is [W, ...]. Sends (W-1) x the destination.</summary>
    CommunicationWork ReduceScatter(Tensor source, Tensor destination);

    /// <summary>
    /// destination = sum over ranks of their source's block for this rank, where source is one block of counts[r] elements per rank r, in rank order
    /// (0 allowed; the same counts on every rank). Sends the other ranks' blocks.
    /// </summary>
    CommunicationWork ReduceScatter(Tensor source, Tensor destination, ReadOnlySpan<long> counts);

    /// <summary>tensor = the root's tensor, on every rank. The root sends (W-1) x the tensor.</summary>
    CommunicationWork Broadcast(Tensor tensor, int root);

    /// <summary>destination[j] = rank j's source[rank], both [W, ...]. Sends (W-1)/W x the source.</summary>
    CommunicationWork AllToAll(Tensor source, Tensor destination);

    /// <summary>
    /// Rank r is sent the next sendCounts[r] elements of the source; what rank r sends here, receiveCounts[r] elements, follows in the destination in rank order.
    /// Counts may be 0; what one rank sends must be what the other expects. Sends the other ranks' parts of the source.
    /// </summary>
    CommunicationWork AllToAll(Tensor source, ReadOnlySpan<long> sendCounts, Tensor destination, ReadOnlySpan<long> receiveCounts);

    /// <summary>Sends to one peer; matched by that peer's <see cref="Receive"/> in order.</summary>
    CommunicationWork Send(Tensor source, int peer);

    CommunicationWork Receive(Tensor destination, int peer);

    /// <summary>A send and a receive as one operation: neither waits for the other, so a ring of them cannot deadlock.</summary>
    CommunicationWork SendReceive(Tensor source, int to, Tensor destination, int from);

    /// <summary>As <see cref="CommunicationWork.Wait"/> of each of these operations of this group, from the last to the first, so that whoever carries them in order need wait for them once.</summary>
    void Wait(ReadOnlySpan<CommunicationWork> works)
    {
        for (int i = works.Length - 1; i >= 0; i--) works[i].Wait();
    }

    /// <summary>
    /// The group of the given ranks of this one, in that order; null on the ranks outside. Every rank of this group calls it with the same ranks, in the same order
    /// of calls. The caller disposes the new group before this one; what ends this one ends it too.
    /// </summary>
    ICommunicator? Split(ReadOnlySpan<int> ranks);

    /// <summary>
    /// The same ranks once more, for large messages that have time: neither they nor this group's wait for one another, and on GPUs they leave the multiprocessors to what is computed meanwhile as far as
    /// the transport can. As with <see cref="Split"/>, every rank calls it, and the caller disposes it first.
    /// </summary>
    ICommunicator Background();

    /// <summary>Blocks until every rank has arrived and its queued work has run.</summary>
    void Barrier();
}

/// <summary>A collective in flight. Wait exactly once; after a failure, waiting again throws it again.</summary>
public abstract class CommunicationWork
{
    /// <summary>Nothing to wait for: a group of one.</summary>
    public static CommunicationWork Done { get; } = new Completed();

    /// <summary>
    /// After this call, work queued on the device sees the result. On a GPU it orders streams and may return at once; on the CPU it blocks (never spins).
    /// Throws <see cref="LaspException"/> when the operation failed or another rank did.
    /// </summary>
    public abstract void Wait();

    private sealed class Completed : CommunicationWork
    {
        public override void Wait() { }
    }
}

/// <summary>Blocks whose memory is the communicator's as long as they are used here.</summary>
public abstract class BlocksInFlight : IDisposable
{
    private bool _disposed;

    /// <summary>Waits for what is still on its way in either direction, and gives the memory back; the second time it does nothing.</summary>
    public void Dispose()
    {
        if (_disposed) return;
        _disposed = true;
        Dispose(disposing: true);
        GC.SuppressFinalize(this);
    }

    protected abstract void Dispose(bool disposing);
}

/// <summary>The ranks' blocks of one <see cref="ICommunicator.Gather"/>, in flight and then in place. The source must not change before it is disposed.</summary>
public abstract class BlockGather : BlocksInFlight
{
    /// <summary>[W, ...], in rank order. A rank's block may be read by work queued after <see cref="Wait"/> for it and before the gather is disposed.</summary>
    public abstract Tensor Blocks { get; }

    /// <summary>After this call, work queued on the device sees the blocks of <paramref name="count"/> ranks from <paramref name="first"/> on. Throws as <see cref="CommunicationWork.Wait"/> does.</summary>
    public abstract void Wait(int first, int count);
}

/// <summary>One <see cref="ICommunicator.Relay"/> in flight: what comes to this rank, and what it passes on.</summary>
public abstract class BlockRelay : BlocksInFlight
{
    /// <summary>What comes, of the relay's shape; null where nothing does. A piece may be read by work queued after <see cref="Wait"/> for it and before the relay is disposed.</summary>
    public abstract Tensor? Block { get; }

    /// <summary>After this call, work queued on the device sees the first <paramref name="count"/> pieces of <see cref="Block"/>; where nothing comes it does nothing. Throws as <see cref="CommunicationWork.Wait"/> does.</summary>
    public abstract void Wait(int count);

    /// <summary>
    /// Passes the next piece on, or several in one tensor, of the relay's type, as they are when the work queued so far has run. They must not change until the relay is disposed, and all must have been passed on by then.
    /// </summary>
    public abstract void Send(Tensor pieces);

    private protected static void CheckPieces(int count, int pieces, int rank)
    {
        if (count < 0 || count > pieces) throw new LaspException($"Relay on rank {rank}: cannot wait for {count} of {pieces} pieces; wait for 0 to {pieces}");
    }

    private protected static int Receiver(int? to, int rank) => to ?? throw new LaspException($"Relay on rank {rank}: this rank passes nothing on; name the rank that it sends to when the relay begins");
}
