using LaspNative.Runtime.Interop;

namespace LaspNative.Runtime.Cuda;

/// <summary>
/// Device memory of its own, outside the pool: allocated and freed at once, which waits for the GPU, and open to streams that wait for numbers in it. For what lives as long as its owner. The device's ledger does not know it.
/// </summary>
internal sealed class PlainMemory : IDisposable
{
    private readonly CudaContext _context;
    private int _disposed;

    public PlainMemory(CudaContext context, long bytes)
    {
        _context = context;
        context.MakeCurrent();
        CudaDriver.cuMemAlloc(out nint pointer, (nuint)bytes).Check();
        Pointer = pointer;
    }

    public nint Pointer { get; }

    public void Dispose()
    {
        if (Interlocked.Exchange(ref _disposed, 1) != 0) return;
        _context.TryMakeCurrent();
        CudaDriver.cuMemFree(Pointer);
    }
}
