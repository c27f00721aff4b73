using LaspNative.Collectives;
using LaspNative.Runtime;
using LaspNative.Runtime.Cuda;

namespace LaspNative.Perf;

/// <summary>
/// A group whose every wait is timed on the compute stream: what lies between the two events around it is time in which the rank had nothing to compute because a message was not there yet.
/// Or, <see cref="Silent"/>, a group that moves nothing at all: then a call's time is what it would be if messages cost nothing (its results are worthless).
/// </summary>
internal sealed class TimedCommunicator(ICommunicator group) : ICommunicator
{
    private readonly CudaDevice _device = (CudaDevice)group.Device;
    private List<(CudaEvent Start, CudaEvent End)> _waits = [];

    public bool Silent { get; set; }

    public int Rank => group.Rank;

    public int Size => group.Size;

    public Device Device => group.Device;

    public string Carrier => group.Carrier;

    public CommunicationCounters Counters => group.Counters;

    /// <summary>The waits since the last call of this; read and dispose them once they have run.</summary>
    public List<(CudaEvent Start, CudaEvent End)> TakeWaits()
    {
        List<(CudaEvent Start, CudaEvent End)> waits = _waits;
        _waits = [];
        return waits;
    }

    public CommunicationWork AllGather(Tensor source, Tensor destination) => Timed(() => group.AllGather(source, destination));

    public CommunicationWork AllGather(Tensor source, Tensor destination, ReadOnlySpan<long> counts) => Silent ? CommunicationWork.Done : new Work(this, group.AllGather(source, destination, counts));

    public BlockGather Gather(Tensor source) => new Arrivals(this, source, Silent ? null : group.Gather(source));

    public BlockRelay Relay(Shape shape, DType dtype, int pieces, int? from, int? to) => Silent ? new Stillness(_device, shape, dtype, from) : new Relayed(this, group.Relay(shape, dtype, pieces, from, to));

    public CommunicationWork AllReduce(Tensor tensor) => Timed(() => group.AllReduce(tensor));

    public CommunicationWork ReduceScatter(Tensor source, Tensor destination) => Timed(() => group.ReduceScatter(source, destination));

    public CommunicationWork ReduceScatter(Tensor source, Tensor destination, ReadOnlySpan<long> counts) => Silent ? CommunicationWork.Done : new Work(this, group.ReduceScatter(source, destination, counts));

    public CommunicationWork Broadcast(Tensor tensor, int root) => Timed(() => group.Broadcast(tensor, root));

    public CommunicationWork AllToAll(Tensor source, Tensor destination) => Timed(() => group.AllToAll(source, destination));

    public CommunicationWork AllToAll(Tensor source, ReadOnlySpan<long> sendCounts, Tensor destination, ReadOnlySpan<long> receiveCounts) =>
        Silent ? CommunicationWork.Done : new Work(this, group.AllToAll(source, sendCounts, destination, receiveCounts));

    public CommunicationWork Send(Tensor source, int peer) => Timed(() => group.Send(source, peer));

    public CommunicationWork Receive(Tensor destination, int peer) => Timed(() => group.Receive(destination, peer));

    public CommunicationWork SendReceive(Tensor source, int to, Tensor destination, int from) => Timed(() => group.SendReceive(source, to, destination, from));

    public ICommunicator? Split(ReadOnlySpan<int> ranks) => group.Split(ranks);

    public ICommunicator Background() => group.Background();

    public void Barrier() => group.Barrier();

    /// <summary>The group is the world's.</summary>
    public void Dispose() { }

    private CommunicationWork Timed(Func<CommunicationWork> start) => Silent ? CommunicationWork.Done : new Work(this, start());

    private void Time(Action wait)
    {
        var start = new CudaEvent(_device.Context, timing: true);
        var end = new CudaEvent(_device.Context, timing: true);
        start.Record(_device.Stream);
        wait();
        end.Record(_device.Stream);
        _waits.Add((start, end));
    }

    /// <summary>Without a gather: memory in which nothing arrives.</summary>
    private sealed class Arrivals(TimedCommunicator owner, Tensor source, BlockGather? gather) : BlockGather
    {
        private readonly Tensor? _nothing = gather is null ? Tensor.Empty([owner.Size, .. source.Shape], source.DType, source.Device, MemoryCategory.Communication) : null;

        public override Tensor Blocks => _nothing ?? gather!.Blocks;

        public override void Wait(int first, int count)
        {
            if (gather is not null) owner.Time(() => gather.Wait(first, count));
        }

        protected override void Dispose(bool disposing)
        {
            _nothing?.Dispose();
            gather?.Dispose();
        }
    }

    private sealed class Relayed(TimedCommunicator owner, BlockRelay relay) : BlockRelay
    {
        public override Tensor? Block => relay.Block;

        public override void Wait(int count) => owner.Time(() => relay.Wait(count));

        public override void Send(Tensor pieces) => relay.Send(pieces);

        protected override void Dispose(bool disposing) => relay.Dispose();
    }

    /// <summary>A relay in which nothing moves.</summary>
    private sealed class Stillness(CudaDevice device, Shape shape, DType dtype, int? from) : BlockRelay
    {
        public override Tensor? Block { get; } = from is null ? null : Tensor.Empty(shape, dtype, device, MemoryCategory.Communication);

        public override void Wait(int count) { }

        public override void Send(Tensor pieces) { }

        protected override void Dispose(bool disposing) => Block?.Dispose();
    }

    private sealed class Work(TimedCommunicator owner, CommunicationWork work) : CommunicationWork
    {
        public override void Wait() => owner.Time(work.Wait);
    }
}
