namespace LaspNative.Runtime;

/// <summary>
/// One allocation of a device, shared by the tensors that view it and freed when the last of them is disposed.
/// The reference count makes frees deterministic: nothing waits for the garbage collector.
/// </summary>
internal sealed class Storage
{
    private int _references = 1;

    public Device Device { get; }

    public nint Pointer { get; }

    public long Bytes { get; }

    /// <summary>False when another library owns the memory; then the last release frees nothing.</summary>
    public bool Owned { get; }

    public AllocationTicket Ticket { get; }

    public Storage(Device device, nint pointer, long bytes, bool owned, AllocationTicket ticket)
    {
        Device = device;
        Pointer = pointer;
        Bytes = bytes;
        Owned = owned;
        Ticket = ticket;
    }

    /// <summary>Whether more than one tensor holds this memory, or it belongs to someone else.</summary>
    public bool IsShared => !Owned || Volatile.Read(ref _references) > 1;

    public void Retain()
    {
        if (Interlocked.Increment(ref _references) <= 1)
            throw new ObjectDisposedException(nameof(Tensor), "the memory of this tensor was already freed");
    }

    public void Release()
    {
        if (Interlocked.Decrement(ref _references) == 0 && Owned) Device.Free(this);
    }
}
