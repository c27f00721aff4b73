using LaspNative.Collectives;
using LaspNative.Runtime;

namespace LaspNative.Model;

/// <summary>A group whose waits go on a rank's account. The group beneath stays its owner's.</summary>
internal sealed class WaitMeter(ICommunicator group, WaitAccount account) : ICommunicator
{
    public int Rank => group.Rank;

    public int Size => group.Size;

    public Device Device => group.Device;

    public bool LeavesComputeAlone => group.LeavesComputeAlone;

    public string Carrier => group.Carrier;

    public bool LeavesSquares(CollectiveKind kind, Tensor source) => group.LeavesSquares(kind, source);

    public void TakeSquares(Tensor total) => group.TakeSquares(total);

    public CommunicationCounters Counters => group.Counters;

    public CommunicationWork AllGather(Tensor source, Tensor destination) => Metered(group.AllGather(source, destination));

    public CommunicationWork AllGather(Tensor source, Tensor destination, ReadOnlySpan<long> counts) =>
        Metered(group.AllGather(source, destination, counts));

    public BlockGather Gather(Tensor source) => new MeteredGather(account, group.Gather(source));

    public BlockRelay Relay(Shape shape, DType dtype, int pieces, int? from, int? to) => new MeteredRelay(account, group.Relay(shape, dtype, pieces, from, to));

    public CommunicationWork AllReduce(Tensor tensor) => Metered(group.AllReduce(tensor));

    public CommunicationWork ReduceScatter(Tensor source, Tensor destination) => Metered(group.ReduceScatter(source, destination));

    public CommunicationWork ReduceScatter(Tensor source, Tensor destination, ReadOnlySpan<long> counts) =>
        Metered(group.ReduceScatter(source, destination, counts));

    public CommunicationWork Broadcast(Tensor tensor, int root) => Metered(group.Broadcast(tensor, root));

    public CommunicationWork AllToAll(Tensor source, Tensor destination) => Metered(group.AllToAll(source, destination));

    public CommunicationWork AllToAll(Tensor source, ReadOnlySpan<long> sendCounts, Tensor destination, ReadOnlySpan<long> receiveCounts) =>
        Metered(group.AllToAll(source, sendCounts, destination, receiveCounts));

    public CommunicationWork Send(Tensor source, int peer) => Metered(group.Send(source, peer));

    public CommunicationWork Receive(Tensor destination, int peer) => Metered(group.Receive(destination, peer));

    public CommunicationWork SendReceive(Tensor source, int to, Tensor destination, int from) => Metered(group.SendReceive(source, to, destination, from));

    public void Wait(ReadOnlySpan<CommunicationWork> works)
    {
        if (works.IsEmpty) return;
        account.Begin();
        for (int i = works.Length - 1; i >= 0; i--) (works[i] is Work metered ? metered.Inner : works[i]).Wait();
        account.End();
    }

    public ICommunicator? Split(ReadOnlySpan<int> ranks) => group.Split(ranks);

    public ICommunicator Background() => group.Background();

    public void Barrier() => account.MeasureBarrier(group);

    public void Dispose() { }

    private CommunicationWork Metered(CommunicationWork work) => work == CommunicationWork.Done ? work : new Work(account, work);

    private sealed class Work(WaitAccount account, CommunicationWork work) : CommunicationWork
    {
        public CommunicationWork Inner => work;

        public override void Wait() => account.Measure(work);
    }

    private sealed class MeteredGather(WaitAccount account, BlockGather gather) : BlockGather
    {
        public override Tensor Blocks => gather.Blocks;

        public override void Wait(int first, int count) => account.Measure(new Arrival(gather, first, count));

        protected override void Dispose(bool disposing) => gather.Dispose();
    }

    private sealed class Arrival(BlockGather gather, int first, int count) : CommunicationWork
    {
        public override void Wait() => gather.Wait(first, count);
    }

    private sealed class MeteredRelay(WaitAccount account, BlockRelay relay) : BlockRelay
    {
        public override Tensor? Block => relay.Block;

        public override void Wait(int count) => account.Measure(new PieceArrival(relay, count));

        public override void Send(Tensor pieces) => relay.Send(pieces);

        protected override void Dispose(bool disposing) => relay.Dispose();
    }

    private sealed class PieceArrival(BlockRelay relay, int count) : CommunicationWork
    {
        public override void Wait() => relay.Wait(count);
    }
}
