using System.Runtime.InteropServices;

namespace LaspNative.Runtime;

/// <summary>
/// A contiguous row-major array on a device. Views share memory; every tensor, view or not, is disposed once by its owner,
/// and the memory is freed with the last of them. A tensor knows no gradient: that is <c>Variable</c>.
/// </summary>
public sealed class Tensor : IDisposable
{
    /// <summary>In place of the offset of a tensor that was disposed.</summary>
    private const long Disposed = -1;

    private readonly Storage _storage;
    private readonly TensorLayout _layout;
    private long _offset; // bytes into the storage

    private Tensor(Storage storage, long offset, TensorLayout layout)
    {
        _storage = storage;
        _offset = offset;
        _layout = layout;
    }

    public Shape Shape => _layout.Shape;

    public DType DType => _layout.DType;

    public Device Device => _storage.Device;

    public long Count => _layout.Count;

    /// <summary>Whether other tensors view this memory too: then it must not be written through this one alone.</summary>
    public bool IsShared => Held.IsShared;

    public long Bytes => Count * DType.Size();

    /// <summary>Address of the first element, in the device's address space.</summary>
    public nint Pointer
    {
        get
        {
            long start = Volatile.Read(ref _offset);
            ObjectDisposedException.ThrowIf(start == Disposed, this);
            return _storage.Pointer + (nint)start;
        }
    }

    /// <summary>The storage, while this tensor is one of its owners. After that the device may have given it to others, so nothing but its device is asked of it.</summary>
    private Storage Held
    {
        get
        {
            ObjectDisposedException.ThrowIf(Volatile.Read(ref _offset) == Disposed, this);
            return _storage;
        }
    }

    /// <summary>Uninitialised memory: every element must be written before it is read.</summary>
    public static Tensor Empty(Shape shape, DType dtype, Device device, MemoryCategory category = MemoryCategory.Activations)
    {
        ArgumentNullException.ThrowIfNull(device);
        long bytes = checked(shape.Count * dtype.Size());
        return new Tensor(device.Allocate(bytes, category), 0, TensorLayout.Of(shape, dtype));
    }

    public static Tensor Zeros(Shape shape, DType dtype, Device device, MemoryCategory category = MemoryCategory.Activations)
    {
        Tensor tensor = Empty(shape, dtype, device, category);
        device.Backend.Fill(0, tensor);
        return tensor;
    }

    /// <summary>Copies host values to the device. Throws when their number is not the shape's.</summary>
    public static Tensor FromSpan<T>(ReadOnlySpan<T> values, Shape shape, Device device, MemoryCategory category = MemoryCategory.Activations)
        where T : unmanaged
    {
        if (values.Length != shape.Count) throw new LaspException($"{values.Length} values do not fill a tensor of shape {shape}, which has {shape.Count} elements");
        Tensor tensor = Empty(shape, DTypes.Of<T>(), device, category);
        device.CopyFromHost(MemoryMarshal.AsBytes(values), tensor.Pointer);
        return tensor;
    }

    /// <inheritdoc cref="FromSpan{T}(ReadOnlySpan{T}, Shape, Device, MemoryCategory)"/>
    public static Tensor FromSpan<T>(T[] values, Shape shape, Device device, MemoryCategory category = MemoryCategory.Activations)
        where T : unmanaged => FromSpan((ReadOnlySpan<T>)values, shape, device, category);

    /// <summary>
    /// A tensor over memory that another library owns, already in the device's address space and alive for as long as the tensor.
    /// Disposing it frees nothing.
    /// </summary>
    public static Tensor WrapDevicePointer(nint pointer, Shape shape, DType dtype, Device device)
    {
        ArgumentNullException.ThrowIfNull(device);
        if (pointer == 0 && shape.Count > 0) throw new LaspException($"a null pointer cannot hold a tensor of shape {shape}; pass the address of device memory");
        return new Tensor(device.Borrow(pointer, shape.Count * dtype.Size()), 0, TensorLayout.Of(shape, dtype));
    }

    /// <summary>The same elements under another shape; shares memory.</summary>
    public Tensor View(Shape shape)
    {
        if (shape.Count != Count) throw new LaspException($"a tensor of shape {Shape} cannot be viewed as {shape}: {Count} elements against {shape.Count}");
        return Share(0, TensorLayout.Of(shape, DType));
    }

    /// <summary>A second owner of the same tensor; shares memory.</summary>
    public Tensor Share() => Share(0, _layout);

    /// <summary>Rows [start, start + count) of the first dimension; shares memory.</summary>
    public Tensor Slice(long start, long count)
    {
        if (Shape.Rank == 0 || start < 0 || count < 0 || start + count > Shape[0])
            throw new LaspException($"rows [{start}, {start + count}) do not lie in a tensor of shape {Shape}");
        Span<long> extents = stackalloc long[Shape.Rank];
        long stride = 1;
        for (int i = 0; i < Shape.Rank; i++)
        {
            extents[i] = i == 0 ? count : Shape[i];
            if (i > 0) stride *= Shape[i];
        }
        return Share(start * stride * DType.Size(), TensorLayout.Of(new Shape(extents), DType));
    }

    /// <summary>The elements from <paramref name="start"/> on, in row-major order, under a shape of their own; shares memory.</summary>
    public Tensor Part(long start, Shape shape)
    {
        if (start < 0 || start > Count - shape.Count) throw new LaspException($"elements [{start}, {start + shape.Count}) do not lie in a tensor of shape {Shape}");
        return Share(start * DType.Size(), TensorLayout.Of(shape, DType));
    }

    private Tensor Share(long offset, TensorLayout layout)
    {
        Held.Retain();
        long start = Volatile.Read(ref _offset);
        if (start != Disposed) return new Tensor(_storage, start + offset, layout);
        _storage.Release(); // another thread has disposed this tensor meanwhile, and may have been the last owner: what was retained may be someone else's by now
        throw new ObjectDisposedException(GetType().FullName);
    }

    /// <summary>
    /// Frees the memory under this tensor and all that view it; they stay, and are usable again after <see cref="RestoreMemory"/>. For parameters that are only there while they are needed.
    /// </summary>
    public void EvictMemory() => Held.Evict();

    /// <summary>Allocates the memory again that <see cref="EvictMemory"/> freed, for all tensors that view it. It is uninitialised.</summary>
    public void RestoreMemory() => Held.Restore();

    /// <summary>Copies to the host; waits for the device's queued work first.</summary>
    public void CopyTo<T>(Span<T> destination) where T : unmanaged
    {
        if (DTypes.Of<T>() != DType) throw new LaspException($"a {DType} tensor cannot be read as {typeof(T).Name}");
        if (destination.Length != Count) throw new LaspException($"{destination.Length} places cannot hold the {Count} elements of a tensor of shape {Shape}");
        Device.CopyToHost(Pointer, MemoryMarshal.AsBytes(destination));
    }

    /// <summary>The elements as a new host array; waits for the device's queued work first.</summary>
    public T[] ToArray<T>() where T : unmanaged
    {
        var values = new T[Count];
        CopyTo<T>(values);
        return values;
    }

    /// <summary>The elements of a floating-point tensor widened to double, whatever its dtype.</summary>
    public double[] ToDoubles() => DType switch
    {
        DType.F64 => ToArray<double>(),
        DType.F32 => Array.ConvertAll(ToArray<float>(), x => (double)x),
        DType.BF16 => Array.ConvertAll(ToArray<BF16>(), x => (double)(float)x),
        _ => throw new LaspException($"a {DType} tensor holds integers; read it with ToArray<long> or ToArray<int>"),
    };

    /// <summary>The elements in place. CPU tensors only.</summary>
    public Span<T> Span<T>() where T : unmanaged
    {
        if (Device.Kind != DeviceKind.Cpu) throw new LaspException($"the elements of a tensor on {Device.Name} are not in host memory; use ToArray");
        if (DTypes.Of<T>() != DType) throw new LaspException($"a {DType} tensor cannot be read as {typeof(T).Name}");
        unsafe { return new Span<T>((void*)Pointer, checked((int)Count)); }
    }

    public void Dispose()
    {
        if (Interlocked.Exchange(ref _offset, Disposed) != Disposed) _storage.Release();
    }

    public override string ToString() => $"{DType} {Shape} on {Device.Name}";
}
