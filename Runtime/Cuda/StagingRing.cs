using LaspNative.Runtime.Interop;

namespace LaspNative.Runtime.Cuda;

/// <summary>
/// Uploads from pageable memory without waiting for the stream: bytes go through a few pinned slots, and only a slot whose previous copy
/// is still under way is waited for. On return the source may be reused.
/// </summary>
internal sealed class StagingRing : IDisposable
{
    private const int Slots = 4;
    private const int SlotBytes = 2 << 20;

    private readonly PinnedBuffer _buffer;
    private readonly CudaEvent[] _free = new CudaEvent[Slots];
    private int _next;

    public StagingRing(CudaContext context)
    {
        _buffer = new PinnedBuffer(context, (long)Slots * SlotBytes);
        for (int i = 0; i < Slots; i++) _free[i] = new CudaEvent(context);
    }

    public void Upload(ReadOnlySpan<byte> source, nint destination, CudaStream stream)
    {
        for (int done = 0; done < source.Length;)
        {
            int bytes = Math.Min(SlotBytes, source.Length - done);
            long start = (long)_next * SlotBytes;
            _free[_next].Synchronize();
            source.Slice(done, bytes).CopyTo(_buffer.Span(start, bytes));
            CudaDriver.cuMemcpyHtoDAsync(destination + done, _buffer.Pointer + (nint)start, (nuint)bytes, stream.Handle).Check();
            _free[_next].Record(stream);
            _next = (_next + 1) % Slots;
            done += bytes;
        }
    }

    public void Dispose()
    {
        foreach (CudaEvent e in _free) e.Dispose();
        _buffer.Dispose();
    }
}
