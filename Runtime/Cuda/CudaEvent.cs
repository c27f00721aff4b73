using LaspNative.Runtime.Interop;

namespace LaspNative.Runtime.Cuda;

/// <summary>
/// A mark in a stream. An event that was never recorded counts as complete. Recording again moves the mark; waits queued before keep the old one.
/// </summary>
public sealed class CudaEvent : IDisposable
{
    private readonly CudaContext _context;
    private int _disposed;

    /// <param name="context">The context of the streams that it will be recorded in.</param>
    /// <param name="timing">Whether it takes the time too, for <see cref="ElapsedMilliseconds"/>; without, it is cheaper.</param>
    /// <param name="blocking">Whether a host thread in <see cref="Synchronize"/> sleeps rather than spins: right when ranks outnumber cores.</param>
    public CudaEvent(CudaContext context, bool timing = false, bool blocking = false)
    {
        ArgumentNullException.ThrowIfNull(context);
        context.MakeCurrent();
        uint flags = (timing ? 0 : CudaDriver.CU_EVENT_DISABLE_TIMING) | (blocking ? CudaDriver.CU_EVENT_BLOCKING_SYNC : 0);
        CudaDriver.cuEventCreate(out nint handle, flags).Check();
        Handle = handle;
        _context = context;
    }

    /// <summary>The CUevent.</summary>
    public nint Handle { get; }

    /// <summary>Marks the end of what is queued on <paramref name="stream"/> now.</summary>
    public void Record(CudaStream stream)
    {
        ArgumentNullException.ThrowIfNull(stream);
        CudaDriver.cuEventRecord(Handle, stream.Handle).Check();
    }

    /// <summary>Blocks the host until the work before the mark has run. Throws what it failed with.</summary>
    public void Synchronize()
    {
        _context.CountHostWait();
        CudaDriver.cuEventSynchronize(Handle).Check();
    }

    /// <summary>Whether the work before the mark has run; never waits.</summary>
    public bool IsComplete
    {
        get
        {
            CUresult result = CudaDriver.cuEventQuery(Handle);
            if (result == CUresult.CUDA_ERROR_NOT_READY) return false;
            result.Check("cuEventQuery");
            return true;
        }
    }

    /// <summary>GPU time between two marks that were both created with timing and are both complete.</summary>
    public static float ElapsedMilliseconds(CudaEvent start, CudaEvent end)
    {
        ArgumentNullException.ThrowIfNull(start);
        ArgumentNullException.ThrowIfNull(end);
        CudaDriver.cuEventElapsedTime(out float milliseconds, start.Handle, end.Handle).Check();
        return milliseconds;
    }

    public void Dispose()
    {
        if (Interlocked.Exchange(ref _disposed, 1) != 0) return;
        _context.TryMakeCurrent();
        CudaDriver.cuEventDestroy(Handle);
    }
}
