using System.Runtime.InteropServices;
using LaspNative.Runtime;

namespace LaspNative.Autograd;

/// <summary>
/// Beside a CPU device: buffers that the device's ledger does not count, so that whatever holds on a GPU about what is there and what is away holds, and is tested, here.
/// Copies are done when the calls return. Buffers are kept for the next tensor of their size.
/// </summary>
/// <param name="most">Bytes at most.</param>
public sealed class CpuHostMemory(long most = long.MaxValue) : HostMemory
{
    private readonly Dictionary<long, Stack<nint>> _free = [];

    /// <summary>Bytes allocated, in use or not.</summary>
    public long Bytes { get; private set; }

    public override HostCopy? TryStore(Tensor tensor)
    {
        ArgumentNullException.ThrowIfNull(tensor);
        if (tensor.Device.Kind != DeviceKind.Cpu) throw new LaspException($"a tensor on {tensor.Device.Name} cannot be kept beside a CPU");
        if (Rent(tensor.Bytes) is not { } buffer) return null;
        using (tensor) tensor.Device.Copy(tensor.Pointer, buffer, tensor.Bytes);
        return new Copy(this, buffer, tensor.Shape, tensor.DType, tensor.Device);
    }

    private unsafe nint? Rent(long bytes)
    {
        if (_free.TryGetValue(bytes, out Stack<nint>? buffers) && buffers.TryPop(out nint buffer)) return buffer;
        if (Bytes + bytes > most) return null;
        Bytes += bytes;
        return (nint)NativeMemory.Alloc((nuint)bytes);
    }

    private void GiveBack(nint buffer, long bytes)
    {
        if (!_free.TryGetValue(bytes, out Stack<nint>? buffers)) _free.Add(bytes, buffers = new Stack<nint>());
        buffers.Push(buffer);
    }

    protected override unsafe void Dispose(bool disposing)
    {
        foreach ((long bytes, Stack<nint> buffers) in _free)
        {
            foreach (nint buffer in buffers) NativeMemory.Free((void*)buffer);
            Bytes -= bytes * buffers.Count;
        }
        _free.Clear();
    }

    private sealed class Copy(CpuHostMemory memory, nint buffer, Shape shape, DType dtype, Device device) : HostCopy
    {
        private readonly long _bytes = shape.Count * dtype.Size();
        private nint _buffer = buffer;
        private Tensor? _returned;

        public override void StartReturn()
        {
            _returned = Tensor.Empty(shape, dtype, device);
            device.Copy(_buffer, _returned.Pointer, _bytes);
        }

        public override Tensor Return()
        {
            Tensor returned = _returned ?? throw new InvalidOperationException("the return has not been started");
            _returned = null;
            return returned;
        }

        protected override void Dispose(bool disposing)
        {
            if (_buffer == 0) return;
            _returned?.Dispose();
            memory.GiveBack(_buffer, _bytes);
            _buffer = 0;
        }
    }
}
