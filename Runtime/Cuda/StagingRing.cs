using LaspNative.Runtime.Interop;

namespace LaspNative.Runtime.Cuda;

/// <summary>
/// Uploads from pageable memory without waiting for the stream: bytes go through a ring of pinned slots. A slot is filled by as many uploads as fit, and waited for only when the ring
/// comes back to it while its last copy is still under way: that is <see cref="Bytes"/> later. On return the source may be reused.
/// </summary>
internal sealed class StagingRing : IDisposable
{
    private const int Slots = 4;
    private const int SlotBytes = 2 << 20;
    private const int Alignment = 16;

    /// <summary>How much may be under way at once.</summary>
    public const int Bytes = Slots * SlotBytes;

    private readonly PinnedBuffer _buffer;
    private readonly CudaEvent[] _copied = new CudaEvent[Slots];
    private int _slot;
    private int _filled;

    public StagingRing(CudaContext context)
    {
        _buffer = new PinnedBuffer(context, Bytes);
        for (int i = 0; i < Slots; i++) _copied[i] = new CudaEvent(context);
    }

    public void Upload(ReadOnlySpan<byte> source, nint destination, CudaStream stream)
    {
        for (int done = 0; done < source.Length;)
        {
            if (_filled >= SlotBytes) Advance();
            int bytes = Math.Min(SlotBytes - _filled, source.Length - done);
            long start = ((long)_slot * SlotBytes) + _filled;
            source.Slice(done, bytes).CopyTo(_buffer.Span(start, bytes));
            CudaDriver.cuMemcpyHtoDAsync(destination + done, _buffer.Pointer + (nint)start, (nuint)bytes, stream.Handle).Check();
            _copied[_slot].Record(stream);
            _filled += (bytes + Alignment - 1) / Alignment * Alignment;
            done += bytes;
        }
    }

    private void Advance()
    {
        (_slot, _filled) = ((_slot + 1) % Slots, 0);
        if (!_copied[_slot].IsComplete) _copied[_slot].Synchronize();
    }

    public void Dispose()
    {
        foreach (CudaEvent e in _copied) e.Dispose();
        _buffer.Dispose();
    }
}
