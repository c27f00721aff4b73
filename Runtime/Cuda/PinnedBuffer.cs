using LaspNative.Runtime.Interop;

namespace LaspNative.Runtime.Cuda;

/// <summary>Page-locked host memory: the GPU copies from and to it without the host's help, so that such copies are truly asynchronous. Of the GPU's own NUMA node, where the host has several.</summary>
public sealed class PinnedBuffer : IDisposable
{
    private readonly CudaContext _context;
    private int _disposed;

    /// <summary>Allocates; this may synchronise the device, so it belongs at start-up, before the first collective.</summary>
    public PinnedBuffer(CudaContext context, long bytes)
        : this(context, bytes, Allocate(context, bytes) ?? throw new LaspException($"the host has no {bytes / (1 << 20)} MiB of pinned memory left; ask for less or raise the memory limit (ulimit -l)")) { }

    private PinnedBuffer(CudaContext context, long bytes, nint pointer) => (_context, Bytes, Pointer) = (context, bytes, pointer);

    /// <summary>As the constructor; null where the host has no such memory left.</summary>
    public static PinnedBuffer? TryAllocate(CudaContext context, long bytes) => Allocate(context, bytes) is { } pointer ? new PinnedBuffer(context, bytes, pointer) : null;

    private static nint? Allocate(CudaContext context, long bytes)
    {
        ArgumentNullException.ThrowIfNull(context);
        ArgumentOutOfRangeException.ThrowIfNegativeOrZero(bytes);
        context.MakeCurrent();
        using NumaNode.Stay stay = context.HostNode?.Enter() ?? default;
        CUresult result = CudaDriver.cuMemHostAlloc(out nint pointer, (nuint)bytes, CudaDriver.CU_MEMHOSTALLOC_PORTABLE);
        if (result == CUresult.CUDA_ERROR_OUT_OF_MEMORY) return null;
        result.Check("cuMemHostAlloc");
        return pointer;
    }

    public nint Pointer { get; }

    public long Bytes { get; }

    /// <summary>A part of the buffer in place, at most 2 GiB of it.</summary>
    public unsafe Span<byte> Span(long start, int bytes)
    {
        ObjectDisposedException.ThrowIf(_disposed != 0, this);
        ArgumentOutOfRangeException.ThrowIfNegative(start);
        ArgumentOutOfRangeException.ThrowIfNegative(bytes);
        ArgumentOutOfRangeException.ThrowIfGreaterThan(start, Bytes - bytes);
        return new Span<byte>((byte*)Pointer + start, bytes);
    }

    public void Dispose()
    {
        if (Interlocked.Exchange(ref _disposed, 1) != 0) return;
        _context.TryMakeCurrent();
        CudaDriver.cuMemFreeHost(Pointer);
    }
}
