namespace LaspNative.Runtime;

/// <summary>
/// A few numbers' way from a device to the host on which nobody waits: the copy is queued behind the device's work so far, and the numbers are taken when they are wanted.
/// Made by <see cref="Device.OpenReadback"/>; one copy is under way at a time.
/// </summary>
public abstract class Readback : IDisposable
{
    private readonly Device _device;
    private readonly int _capacity;
    private DType _dtype;
    private int _count;

    private protected Readback(Device device, int capacity) => (_device, _capacity) = (device, capacity);

    /// <summary>Marks where the work begins that the next numbers tell of.</summary>
    public abstract void Begin();

    /// <summary>Queues the copy of an F32 or F64 tensor. It may be written again, or freed, at once: that is queued too.</summary>
    public void Start(Tensor source)
    {
        ArgumentNullException.ThrowIfNull(source);
        if (source.Device != _device || source.DType is not (DType.F32 or DType.F64) || source.Bytes > _capacity)
            throw new LaspException($"the tensor {source} cannot be read back here: it takes F32 or F64 on {_device.Name}, at most {_capacity} bytes");
        (_dtype, _count) = (source.DType, (int)source.Count);
        StartCore(source.Pointer, (int)source.Bytes);
    }

    /// <summary>
    /// The numbers of the copy started last, when they have arrived: on a GPU this may wait. Throws what the work before them failed with. Returns how long the device took from
    /// <see cref="Begin"/> until they were there.
    /// </summary>
    public unsafe TimeSpan Take(Span<double> values)
    {
        if (values.Length != _count) throw new LaspException($"{values.Length} places cannot hold the {_count} numbers read back");
        void* arrived = (void*)TakeCore(out TimeSpan elapsed);
        for (int i = 0; i < values.Length; i++) values[i] = _dtype == DType.F64 ? ((double*)arrived)[i] : ((float*)arrived)[i];
        return elapsed;
    }

    private protected abstract void StartCore(nint source, int bytes);

    /// <summary>Host address of the bytes, arrived.</summary>
    private protected abstract nint TakeCore(out TimeSpan elapsed);

    public abstract void Dispose();
}
