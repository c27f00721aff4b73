namespace LaspNative.Runtime.Cuda;

/// <summary>Into a slot of pinned memory, with an event behind the copy.</summary>
internal sealed class CudaReadback : Readback
{
    private readonly CudaDevice _device;
    private readonly PinnedSlots _slots;
    private readonly nint _slot;

    private readonly CudaEvent _begun;

    // A late reader has time: it sleeps, and leaves its core to other ranks.
    private readonly CudaEvent _arrived;
    private int _disposed;

    public CudaReadback(CudaDevice device, PinnedSlots slots) : base(device, PinnedSlots.SlotBytes)
    {
        (_device, _slots) = (device, slots);
        _begun = new CudaEvent(device.Context, timing: true);
        _arrived = new CudaEvent(device.Context, timing: true, blocking: true);
        _slot = slots.Take();
        Begin();
    }

    public override void Begin()
    {
        _device.Context.MakeCurrent();
        _begun.Record(_device.Stream);
    }

    private protected override void StartCore(nint source, int bytes)
    {
        _device.Context.MakeCurrent();
        _device.Stream.CopyAsync(source, _slot, bytes);
        _arrived.Record(_device.Stream);
    }

    private protected override nint TakeCore(out TimeSpan elapsed)
    {
        _device.Context.MakeCurrent();
        _arrived.Synchronize();
        elapsed = TimeSpan.FromMilliseconds(CudaEvent.ElapsedMilliseconds(_begun, _arrived));
        return _slot;
    }

    public override void Dispose()
    {
        if (Interlocked.Exchange(ref _disposed, 1) != 0) return;
        _begun.Dispose();
        _arrived.Dispose();
        _slots.Return(_slot);
    }
}

/// <summary>
/// Pinned memory of one device for small results, from its start on: to allocate some later could wait for the GPU, and so for another rank's collective.
/// </summary>
internal sealed class PinnedSlots : IDisposable
{
    public const int SlotBytes = 64;
    private const int Count = 64;

    private readonly PinnedBuffer _buffer;
    private readonly Stack<nint> _idle = new(Count);

    public PinnedSlots(CudaContext context)
    {
        _buffer = new PinnedBuffer(context, Count * SlotBytes);
        for (int i = Count - 1; i >= 0; i--) _idle.Push(_buffer.Pointer + (i * SlotBytes));
    }

    public nint Take() => _idle.TryPop(out nint slot) ? slot : throw new InvalidOperationException($"all {Count} readbacks of this device are open; dispose those that are no longer read");

    public void Return(nint slot) => _idle.Push(slot);

    public void Dispose() => _buffer.Dispose();
}
