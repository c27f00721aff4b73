namespace LaspNative.Runtime;

/// <summary>
/// One allocation of a device, shared by the tensors that view it and freed when the last of them is disposed.
/// The reference count makes frees deterministic: nothing waits for the garbage collector. The memory itself may go and come back under the tensors (<see cref="Evict"/>).
/// The object outlives the allocation: its device uses it for another when the last owner has gone. Owners are tensors, which ask a storage for nothing once they are disposed, so no one sees the next one's memory.
/// </summary>
internal sealed class Storage(Device device)
{
    private int _references;
    private nint _pointer;
    private bool _isAway;

    public Device Device { get; } = device;

    public nint Pointer => !_isAway ? _pointer : throw new InvalidOperationException("the memory of this tensor was evicted; restore it before it is read or written");

    public long Bytes => Ticket.Bytes;

    /// <summary>False when another library owns the memory; then the last release frees nothing.</summary>
    public bool Owned { get; private set; }

    public AllocationTicket Ticket { get; private set; }

    /// <summary>Holds this allocation from now on, for one owner.</summary>
    public Storage Begin(nint pointer, bool owned, AllocationTicket ticket)
    {
        (_pointer, _isAway, Owned, Ticket) = (pointer, false, owned, ticket);
        Volatile.Write(ref _references, 1);
        return this;
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
        int left = Interlocked.Decrement(ref _references);
        if (left > 0) return;
        if (left < 0) throw new InvalidOperationException("a storage was released once more than it has owners");
        if (Owned && !_isAway) Device.Free(this);
        Device.TakeBack(this);
    }

    /// <summary>Frees the memory and keeps the tensors that view it.</summary>
    public void Evict()
    {
        if (_isAway || !Owned) throw new InvalidOperationException("only memory that is there, and that the device owns, can be evicted");
        Device.Free(this);
        _isAway = true;
    }

    /// <summary>Gives the tensors memory again, uninitialised.</summary>
    public void Restore()
    {
        if (!_isAway) throw new InvalidOperationException("this memory was not evicted");
        (_pointer, Ticket) = Device.AllocateMemory(Bytes, Ticket.Category);
        _isAway = false;
    }
}
