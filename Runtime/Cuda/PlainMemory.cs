using LaspNative.Runtime.Interop;

namespace LaspNative.Runtime.Cuda;

/// <summary>
/// Device memory of its own, outside the pool: allocated and freed at once, which waits for the GPU, and open to streams that wait for numbers in it. For what lives as long as its owner.
/// </summary>
internal sealed class PlainMemory : IDisposable
{
    private readonly CudaDevice _device;
    private readonly AllocationTicket _ticket;
    private int _ended;

    public PlainMemory(CudaDevice device, long bytes, MemoryCategory category)
    {
        _device = device;
        device.Context.MakeCurrent();
        CudaDriver.cuMemAlloc(out nint pointer, (nuint)bytes).Check();
        Pointer = pointer;
        _ticket = device.Memory.Add(bytes, category);
    }

    public nint Pointer { get; }

    public void Dispose()
    {
        if (!TakeOff()) return;
        _device.Context.TryMakeCurrent();
        CudaDriver.cuMemFree(Pointer);
    }

    /// <summary>Instead of <see cref="Dispose"/>, where another GPU may still write here: off the ledger, and freed with the context.</summary>
    public void Abandon() => TakeOff();

    /// <summary>Takes it off the ledger, once.</summary>
    private bool TakeOff()
    {
        if (Interlocked.Exchange(ref _ended, 1) != 0) return false;
        _device.Memory.Remove(_ticket);
        return true;
    }
}
