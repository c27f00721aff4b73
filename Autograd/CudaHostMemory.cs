using LaspNative.Runtime;
using LaspNative.Runtime.Cuda;

namespace LaspNative.Autograd;

/// <summary>
/// Pinned memory beside a GPU, in chunks that are allocated once, before the first step: pinning takes seconds per 10 GB and may wait for the GPU, which inside a collective would never end.
/// Both ways run on one copy stream, so that a chunk may be given to the next tensor as soon as the last copy from it is queued. A tensor that leaves is freed when the next one leaves or one comes back,
/// after the compute stream has waited for its copy: one tensor more than the caller counts is there, and a copy has the time of a whole region to be hidden.
/// </summary>
public sealed class CudaHostMemory : HostMemory
{
    public const long DefaultChunkBytes = 64L << 20;

    private readonly CudaDevice _device;
    private readonly long _chunkBytes;
    private readonly CudaStream _copies;
    private readonly CudaEvent _computed; // the compute stream has come to where a copy may start
    private readonly CudaEvent _left; // the copy of _leaving has run
    private readonly List<PinnedBuffer> _chunks = [];
    private readonly Stack<PinnedBuffer> _free = [];
    private Tensor? _leaving;
    private bool _disposed;

    /// <summary>Allocates as many chunks as fit <paramref name="bytes"/>, or as the host gives: <see cref="Bytes"/>.</summary>
    public CudaHostMemory(CudaDevice device, long bytes, long chunkBytes = DefaultChunkBytes)
    {
        ArgumentNullException.ThrowIfNull(device);
        ArgumentOutOfRangeException.ThrowIfNegative(bytes);
        ArgumentOutOfRangeException.ThrowIfNegativeOrZero(chunkBytes);
        (_device, _chunkBytes) = (device, chunkBytes);
        _copies = new CudaStream(device.Context);
        (_computed, _left) = (new CudaEvent(device.Context), new CudaEvent(device.Context));
        while (Bytes + chunkBytes <= bytes && PinnedBuffer.TryAllocate(device.Context, chunkBytes) is { } chunk)
        {
            _chunks.Add(chunk);
            _free.Push(chunk);
        }
    }

    /// <summary>Bytes allocated, in use or not.</summary>
    public long Bytes => _chunks.Count * _chunkBytes;

    /// <summary>Bytes that a number of tensors takes here, each in chunks of its own.</summary>
    public static long BytesFor(long tensors, long bytesOfEach, long chunkBytes = DefaultChunkBytes) => tensors * ((bytesOfEach + chunkBytes - 1) / chunkBytes) * chunkBytes;

    public override HostCopy? TryStore(Tensor tensor)
    {
        ArgumentNullException.ThrowIfNull(tensor);
        if (tensor.Device != _device) throw new LaspException($"a tensor on {tensor.Device.Name} cannot be kept beside {_device.Name}");
        long pieces = (tensor.Bytes + _chunkBytes - 1) / _chunkBytes;
        if (pieces > _free.Count) return null;
        _device.Context.MakeCurrent();
        FreeWhatLeft();
        var chunks = new PinnedBuffer[pieces];
        for (int i = 0; i < chunks.Length; i++) chunks[i] = _free.Pop();
        WaitForCompute();
        ForEachPiece(chunks, tensor, (chunk, place, bytes) => _copies.CopyAsync(place, chunk, bytes));
        _left.Record(_copies);
        _leaving = tensor;
        return new Copy(this, chunks, tensor.Shape, tensor.DType);
    }

    private void FreeWhatLeft()
    {
        if (_leaving is null) return;
        _device.Stream.WaitFor(_left);
        _leaving.Dispose();
        _leaving = null;
    }

    /// <summary>Copies queued from now on start after what the compute stream has been given so far.</summary>
    private void WaitForCompute()
    {
        _computed.Record(_device.Stream);
        _copies.WaitFor(_computed);
    }

    private void ForEachPiece(PinnedBuffer[] chunks, Tensor tensor, Action<nint, nint, long> copy)
    {
        for (int i = 0; i < chunks.Length; i++)
        {
            long start = i * _chunkBytes;
            copy(chunks[i].Pointer, tensor.Pointer + (nint)start, Math.Min(_chunkBytes, tensor.Bytes - start));
        }
    }

    protected override void Dispose(bool disposing)
    {
        if (_disposed) return;
        _disposed = true;
        try
        {
            _device.Context.MakeCurrent();
            FreeWhatLeft();
            _copies.Synchronize();
        }
        catch (LaspException)
        {
            // The GPU has failed, and has said so at the call that noticed.
        }
        foreach (PinnedBuffer chunk in _chunks) chunk.Dispose();
        _computed.Dispose();
        _left.Dispose();
        _copies.Dispose();
    }

    private sealed class Copy(CudaHostMemory memory, PinnedBuffer[] chunks, Shape shape, DType dtype) : HostCopy
    {
        private PinnedBuffer[] _chunks = chunks;
        private CudaEvent? _arrived;
        private Tensor? _returned;

        public override void StartReturn()
        {
            memory.FreeWhatLeft();
            _returned = Tensor.Empty(shape, dtype, memory._device);
            memory.WaitForCompute(); // the memory may have been another tensor's until now
            memory.ForEachPiece(_chunks, _returned, (chunk, place, bytes) => memory._copies.CopyAsync(chunk, place, bytes));
            _arrived = new CudaEvent(memory._device.Context);
            _arrived.Record(memory._copies);
        }

        public override Tensor Return()
        {
            Tensor returned = _returned ?? throw new InvalidOperationException("the return has not been started");
            memory._device.Stream.WaitFor(_arrived!);
            _returned = null;
            return returned;
        }

        protected override void Dispose(bool disposing)
        {
            if (_returned is not null) Return().Dispose();
            foreach (PinnedBuffer chunk in _chunks) memory._free.Push(chunk);
            _chunks = [];
            _arrived?.Dispose();
        }
    }
}
