using LaspNative.Runtime.Cpu;
using LaspNative.Runtime.Cuda;

namespace LaspNative.Runtime;

public enum DeviceKind
{
    Cpu,
    Cuda,
}

/// <summary>
/// One rank's view of the hardware: where its tensors live, the compute stream they are ordered on, and the backend that computes.
/// Several devices may share one GPU (virtual ranks); each has its own streams, allocator accounts and backend.
/// A device is used by one thread at a time.
/// </summary>
public abstract class Device : IDisposable
{
    /// <summary>Storages that nobody owns any more, for the allocations to come: a step makes and frees hundreds.</summary>
    private readonly Stack<Storage> _spare = new();

    protected Device(string name, DeviceKind kind)
    {
        Name = name;
        Kind = kind;
    }

    /// <summary>"cpu" or "cuda:0".</summary>
    public string Name { get; }

    public DeviceKind Kind { get; }

    /// <summary>Bytes in use by category, current and peak.</summary>
    public MemoryLedger Memory { get; } = new();

    public abstract IBackend Backend { get; }

    /// <summary>
    /// Opens "cpu", "cpu:T" (T threads) or "cuda:I" (GPU I; "cuda" is "cuda:0").
    /// Throws <see cref="LaspException"/> when the name is unknown or the GPU or its libraries are missing.
    /// </summary>
    public static Device Open(string name)
    {
        ArgumentNullException.ThrowIfNull(name);
        string[] parts = name.Split(':');
        int index = 0;
        bool valid = parts.Length == 1 || (parts.Length == 2 && int.TryParse(parts[1], out index) && index >= 0);
        return (valid, parts[0]) switch
        {
            (true, "cpu") => new CpuDevice(parts.Length == 2 ? index : Environment.ProcessorCount),
            (true, "cuda") => CudaDevice.Open(index),
            _ => throw new LaspException($"unknown device '{name}'; use cpu, cpu:THREADS, cuda or cuda:INDEX"),
        };
    }

    /// <summary>
    /// A device over a CUDA context that the host application owns (a CUcontext handle). It stays the host's: disposing the device leaves it alive.
    /// </summary>
    public static Device FromCudaContext(nint context) => CudaDevice.FromContext(context);

    internal Storage Allocate(long bytes, MemoryCategory category)
    {
        (nint pointer, AllocationTicket ticket) = AllocateMemory(bytes, category);
        return SpareStorage().Begin(pointer, owned: true, ticket);
    }

    /// <summary>A storage over memory that another library owns.</summary>
    internal Storage Borrow(nint pointer, long bytes) => SpareStorage().Begin(pointer, owned: false, new AllocationTicket(0, bytes, default));

    private Storage SpareStorage()
    {
        lock (_spare) return _spare.TryPop(out Storage? spare) ? spare : new Storage(this);
    }

    /// <summary>Takes back a storage whose last owner has gone.</summary>
    internal void TakeBack(Storage storage)
    {
        lock (_spare) _spare.Push(storage);
    }

    internal (nint Pointer, AllocationTicket Ticket) AllocateMemory(long bytes, MemoryCategory category)
    {
        nint pointer = AllocateCore(bytes);
        return (pointer, Memory.Add(bytes, category));
    }

    internal void Free(Storage storage)
    {
        Memory.Remove(storage.Ticket);
        FreeCore(storage.Pointer, storage.Bytes);
    }

    /// <summary>At least <paramref name="bytes"/> bytes, aligned to 64 (CPU) or 256 (CUDA); uninitialised.</summary>
    protected abstract nint AllocateCore(long bytes);

    /// <summary>Returns memory once the work queued on the compute stream so far has run.</summary>
    protected abstract void FreeCore(nint pointer, long bytes);

    /// <summary>Copies host bytes in; on return the source may be reused.</summary>
    public abstract void CopyFromHost(ReadOnlySpan<byte> source, nint destination);

    /// <summary>Copies bytes out after all queued work; on return they are there.</summary>
    public abstract void CopyToHost(nint source, Span<byte> destination);

    /// <summary>Copies within the device, ordered on the compute stream.</summary>
    public abstract void Copy(nint source, nint destination, long bytes);

    /// <summary>Whether work may still be under way when the call that queued it returns, so that results are best read later.</summary>
    public bool IsAsynchronous => Kind == DeviceKind.Cuda;

    /// <summary>A way for a few numbers to the host that holds up neither side.</summary>
    public abstract Readback OpenReadback();

    /// <summary>Blocks until all queued work has run. Throws what that work failed with.</summary>
    public abstract void Synchronize();

    public abstract void Dispose();
}
