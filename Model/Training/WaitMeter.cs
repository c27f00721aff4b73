using System.Diagnostics;
using LaspNative.Collectives;
using LaspNative.Runtime;

namespace LaspNative.Model;

/// <summary>
/// A communicator that measures how long its caller stands still for messages. It tells something where Wait blocks, on the CPU;
/// on a GPU it orders streams and the host sees nothing. The group beneath stays its owner's.
/// </summary>
internal sealed class WaitMeter(ICommunicator group) : ICommunicator
{
    private long _ticks;

    public int Rank => group.Rank;

    public int Size => group.Size;

    public Device Device => group.Device;

    public CommunicationCounters Counters => group.Counters;

    /// <summary>Time spent waiting since the last call of this method.</summary>
    public TimeSpan TakeWaited()
    {
        TimeSpan waited = Stopwatch.GetElapsedTime(0, _ticks);
        _ticks = 0;
        return waited;
    }

    public CommunicationWork AllGather(Tensor source, Tensor destination) => new MeteredWork(this, group.AllGather(source, destination));

    public CommunicationWork AllGather(Tensor source, Tensor destination, ReadOnlySpan<long> counts) =>
        new MeteredWork(this, group.AllGather(source, destination, counts));

    public CommunicationWork AllReduce(Tensor tensor) => new MeteredWork(this, group.AllReduce(tensor));

    public CommunicationWork ReduceScatter(Tensor source, Tensor destination) => new MeteredWork(this, group.ReduceScatter(source, destination));

    public CommunicationWork ReduceScatter(Tensor source, Tensor destination, ReadOnlySpan<long> counts) =>
        new MeteredWork(this, group.ReduceScatter(source, destination, counts));

    public CommunicationWork Broadcast(Tensor tensor, int root) => new MeteredWork(this, group.Broadcast(tensor, root));

    public CommunicationWork AllToAll(Tensor source, Tensor destination) => new MeteredWork(this, group.AllToAll(source, destination));

    public CommunicationWork AllToAll(Tensor source, ReadOnlySpan<long> sendCounts, Tensor destination, ReadOnlySpan<long> receiveCounts) =>
        new MeteredWork(this, group.AllToAll(source, sendCounts, destination, receiveCounts));

    public CommunicationWork Send(Tensor source, int peer) => new MeteredWork(this, group.Send(source, peer));

    public CommunicationWork Receive(Tensor destination, int peer) => new MeteredWork(this, group.Receive(destination, peer));

    public CommunicationWork SendReceive(Tensor source, int to, Tensor destination, int from) => new MeteredWork(this, group.SendReceive(source, to, destination, from));

    public ICommunicator? Split(ReadOnlySpan<int> ranks) => group.Split(ranks);

    public void Barrier() => Measure(group.Barrier);

    private void Measure(Action wait)
    {
        long start = Stopwatch.GetTimestamp();
        wait();
        _ticks += Stopwatch.GetTimestamp() - start;
    }

    public void Dispose() { }

    private sealed class MeteredWork(WaitMeter meter, CommunicationWork work) : CommunicationWork
    {
        public override void Wait() => meter.Measure(work.Wait);
    }
}
