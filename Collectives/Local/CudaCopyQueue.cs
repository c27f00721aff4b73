using LaspNative.Runtime.Cuda;

namespace LaspNative.Collectives;

/// <summary>
/// Copies on a GPU's communication stream. Ranks that share the GPU wait for each other's events on the GPU; the host waits for nothing.
/// </summary>
internal sealed class CudaCopyQueue(CudaDevice device) : CopyQueue
{
    // Recording again moves the mark, and waits queued before keep the old one: one event per direction serves for ever.
    private readonly CudaEvent _computed = new(device.Context);
    private readonly CudaEvent _copied = new(device.Context);

    public override void FollowCompute()
    {
        device.Context.MakeCurrent();
        _computed.Record(device.Stream);
        device.CommunicationStream.WaitFor(_computed);
    }

    public override void LeadCompute()
    {
        device.Context.MakeCurrent();
        _copied.Record(device.CommunicationStream);
        device.Stream.WaitFor(_copied);
    }

    public override void Copy(nint source, nint destination, long bytes)
    {
        device.Context.MakeCurrent();
        device.CommunicationStream.CopyAsync(source, destination, bytes);
    }

    public override CopyFence Mark()
    {
        device.Context.MakeCurrent();
        var mark = new CudaEvent(device.Context);
        mark.Record(device.CommunicationStream);
        return new Fence(mark);
    }

    public override void Follow(CopyFence? fence)
    {
        device.Context.MakeCurrent();
        if (fence is Fence { Mark: var mark }) device.CommunicationStream.WaitFor(mark);
    }

    public override void Dispose()
    {
        _computed.Dispose();
        _copied.Dispose();
    }

    private sealed class Fence(CudaEvent mark) : CopyFence
    {
        public CudaEvent Mark { get; } = mark;

        public override void Dispose() => Mark.Dispose();
    }
}
