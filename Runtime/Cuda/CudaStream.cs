using LaspNative.Runtime.Interop;

namespace LaspNative.Runtime.Cuda;

/// <summary>
/// A queue of GPU work. Our own streams do not synchronise with the legacy default stream. The context they belong to must be current on the calling thread.
/// </summary>
public sealed class CudaStream : IDisposable
{
    private readonly CudaContext? _owner;
    private int _disposed;

    private CudaStream(nint handle) => Handle = handle;

    /// <param name="context">The context to create the stream in.</param>
    /// <param name="urgent">Whether the GPU takes this stream's blocks first when several streams have work: for short work that others wait for.</param>
    public CudaStream(CudaContext context, bool urgent = false)
    {
        ArgumentNullException.ThrowIfNull(context);
        context.MakeCurrent();
        CudaDriver.cuCtxGetStreamPriorityRange(out int least, out int greatest).Check();
        CudaDriver.cuStreamCreateWithPriority(out nint handle, CudaDriver.CU_STREAM_NON_BLOCKING, urgent ? greatest : least).Check();
        Handle = handle;
        _owner = context;
    }

    /// <summary>The CUstream.</summary>
    public nint Handle { get; }

    /// <summary>Wraps a stream that another library owns; disposing the wrapper leaves it alive. 0 is the legacy default stream.</summary>
    public static CudaStream FromHandle(nint handle) => new(handle);

    /// <summary>Work queued from now on starts only after what <paramref name="evt"/> recorded; the host does not wait.</summary>
    public void WaitFor(CudaEvent evt)
    {
        ArgumentNullException.ThrowIfNull(evt);
        CudaDriver.cuStreamWaitEvent(Handle, evt.Handle, 0).Check();
    }

    /// <summary>Blocks the host until all queued work has run. Throws what that work failed with.</summary>
    public void Synchronize()
    {
        _owner?.CountHostWait();
        CudaDriver.cuStreamSynchronize(Handle).Check();
    }

    /// <summary>
    /// Queues a copy between any two of device memory (of any GPU) and pinned host memory. The memory must stay alive until it has run.
    /// </summary>
    public void CopyAsync(nint source, nint destination, long bytes)
    {
        if (bytes > 0) CudaDriver.cuMemcpyAsync(destination, source, (nuint)bytes, Handle).Check();
    }

    /// <summary>As <see cref="CopyAsync"/>, for clean-up, which must not throw. Up to 64 KiB of pageable memory of the host are read before it returns.</summary>
    internal CUresult TryCopyAsync(nint source, nint destination, long bytes) => CudaDriver.cuMemcpyAsync(destination, source, (nuint)bytes, Handle);

    /// <summary>Queues filling device memory with one byte value.</summary>
    public void FillAsync(byte value, nint destination, long bytes)
    {
        if (bytes > 0) CudaDriver.cuMemsetD8Async(destination, value, (nuint)bytes, Handle).Check();
    }

    /// <summary>Work queued from now on starts once the number at an address of this stream's GPU, outside pools, is at least <paramref name="value"/>; differences are taken modulo 2^32. No multiprocessor waits.</summary>
    internal void WaitForValue(nint address, uint value) => CudaDriver.cuStreamWaitValue32(Handle, address, value, 0).Check();

    /// <summary>Queues writing a number to an address of this stream's GPU. For clean-up, which must not throw.</summary>
    internal CUresult TryWriteValue(nint address, uint value) => CudaDriver.cuStreamWriteValue32(Handle, address, value, 0);

    public void Dispose()
    {
        if (Interlocked.Exchange(ref _disposed, 1) != 0 || _owner is null) return;
        _owner.TryMakeCurrent();
        CudaDriver.cuStreamDestroy(Handle);
    }
}
