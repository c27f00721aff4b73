using LaspNative.Runtime.Interop;

namespace LaspNative.Runtime.Cuda;

/// <summary>
/// One rank's view of a GPU: the GPU's shared context, and streams, memory pool, kernels and matrix products of its own. Ranks that share a GPU each open one.
/// The context is made current on whichever thread calls.
/// </summary>
public sealed class CudaDevice : Device
{
    private readonly MemoryPool _pool;
    private readonly StagingRing _staging;
    private readonly PinnedSlots _results;
    private readonly bool _ownsStream;
    private Storage? _workspace;
    private Blas? _blas;
    private IBackend? _backend;
    private int _disposed;

    private CudaDevice(CudaContext context, CudaStream? stream) : base($"cuda:{context.Gpu}", DeviceKind.Cuda)
    {
        Context = context;
        MultiprocessorCount = context.Attribute(CUdevice_attribute.CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT);
        ComputeCapability = (
            context.Attribute(CUdevice_attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR),
            context.Attribute(CUdevice_attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR));
        MaxSharedBytes = context.Attribute(CUdevice_attribute.CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN);
        if (ComputeCapability.Major < 8)
            throw new LaspException($"{Name} has compute capability {ComputeCapability.Major}.{ComputeCapability.Minor}; 8.0 (Ampere) or newer is needed for bf16");
        _ownsStream = stream is null;
        Stream = stream ?? new CudaStream(context);
        CommunicationStream = new CudaStream(context, urgent: true);
        Kernels = new KernelLibrary(context, KernelCompiler.ArchitectureFor(ComputeCapability));
        _pool = new MemoryPool(context);
        _staging = new StagingRing(context);
        _results = new PinnedSlots(context);
    }

    public CudaContext Context { get; }

    /// <summary>The compute stream: the order that tensors rely on.</summary>
    public CudaStream Stream { get; }

    /// <summary>For messages; the GPU takes its blocks first. Order it against <see cref="Stream"/> with events.</summary>
    public CudaStream CommunicationStream { get; }

    public int MultiprocessorCount { get; }

    public (int Major, int Minor) ComputeCapability { get; }

    /// <summary>Most shared memory, static and dynamic together, that one block may ask for.</summary>
    public int MaxSharedBytes { get; }

    public KernelLibrary Kernels { get; }

    /// <summary>Matrix products; cuBLASLt is loaded at first use.</summary>
    public Blas Blas => _blas ??= new Blas(this, GemmChoices.Of(this));

    public override IBackend Backend => _backend ??= new CudaBackend(this);

    /// <summary>How often the host has waited for this device's GPU so far: streams and events that it synchronised with.</summary>
    public long HostWaits => Context.HostWaits;

    /// <summary>Bytes that the driver holds for this device, in use or kept for reuse.</summary>
    public long ReservedBytes => _pool.ReservedBytes;

    /// <summary>Opens GPU <paramref name="index"/>.</summary>
    internal static Device Open(int index)
    {
        try
        {
            CudaContext.Initialize();
        }
        catch (LaspException e)
        {
            throw new LaspException($"cuda:{index} cannot be opened: {e.Message}", e);
        }
        return Create(CudaContext.OpenPrimary(index), null);
    }

    /// <summary>A device over a context that the host application owns; computes on <paramref name="stream"/> of that context, or on a stream of its own.</summary>
    public static CudaDevice FromContext(nint context, CudaStream? stream = null) => Create(CudaContext.FromHandle(context), stream);

    private static CudaDevice Create(CudaContext context, CudaStream? stream)
    {
        try
        {
            return new CudaDevice(context, stream);
        }
        catch
        {
            context.Dispose();
            throw;
        }
    }

    /// <summary>
    /// Scratch memory for work queued on the compute stream before the next call: at least <paramref name="bytes"/> bytes, aligned to 256, contents undefined.
    /// Grows and never shrinks.
    /// </summary>
    public nint Workspace(long bytes)
    {
        if (_workspace is null || _workspace.Bytes < bytes)
        {
            _workspace?.Release();
            _workspace = null;
            _workspace = Allocate(Math.Max(bytes, 1 << 20), MemoryCategory.Workspace);
        }
        return _workspace.Pointer;
    }

    /// <summary>
    /// Makes the pool hold at least <paramref name="bytes"/> bytes from the system, so that later allocations up to there map no memory.
    /// Worth doing before the first collective.
    /// </summary>
    public void Reserve(long bytes)
    {
        long missing = bytes - _pool.ReservedBytes;
        if (missing <= 0) return;
        Context.MakeCurrent();
        _pool.Free(_pool.Allocate(missing, Stream), Stream);
        Stream.Synchronize();
    }

    /// <summary>
    /// Compiles and loads every kernel for the given element types, and cuBLASLt with its workspace. What is loaded only at first use may synchronise the GPU, which
    /// behind a collective that waits for this very rank never ends: ranks over NCCL prepare before their first collective.
    /// </summary>
    public void Prepare(params ReadOnlySpan<DType> elements)
    {
        Kernels.LoadAll(elements);
        Blas.Prepare();
        Workspace(1 << 20);
        Synchronize();
    }

    protected override nint AllocateCore(long bytes)
    {
        ObjectDisposedException.ThrowIf(_disposed != 0, this);
        Context.MakeCurrent();
        long size = Math.Max(bytes, 1);
        nint pointer = _pool.Allocate(size, Stream);
        if (LaspOptions.Current.Poison) Stream.FillAsync(0xFF, pointer, size);
        return pointer;
    }

    protected override void FreeCore(nint pointer, long bytes)
    {
        // A tensor that outlives its device has nothing left to free: the memory went with the pool.
        if (_disposed == 0) _pool.Free(pointer, Stream);
    }

    public override void CopyFromHost(ReadOnlySpan<byte> source, nint destination)
    {
        Context.MakeCurrent();
        _staging.Upload(source, destination, Stream);
    }

    public override unsafe void CopyToHost(nint source, Span<byte> destination)
    {
        if (destination.IsEmpty) return;
        Context.MakeCurrent();
        fixed (byte* p = destination)
        {
            CudaDriver.cuMemcpyDtoHAsync((nint)p, source, (nuint)destination.Length, Stream.Handle).Check();
            Stream.Synchronize();
        }
    }

    public override void Copy(nint source, nint destination, long bytes)
    {
        if (bytes == 0) return;
        Context.MakeCurrent();
        Kernels.Observer?.BeforeOther("copy", Stream);
        CudaDriver.cuMemcpyDtoDAsync(destination, source, (nuint)bytes, Stream.Handle).Check();
        Kernels.Observer?.AfterOther("copy", Stream);
    }

    public override Readback OpenReadback() => new CudaReadback(this, _results);

    /// <summary>Waits for the compute stream and the communication stream.</summary>
    public override void Synchronize()
    {
        Context.MakeCurrent();
        Stream.Synchronize();
        CommunicationStream.Synchronize();
    }

    /// <summary>Waits for queued work, then gives everything back. Never throws: a GPU that failed has said so at the call that noticed.</summary>
    public override void Dispose()
    {
        if (_disposed != 0) return;
        Context.TryMakeCurrent();
        CudaDriver.cuStreamSynchronize(Stream.Handle);
        CudaDriver.cuStreamSynchronize(CommunicationStream.Handle);
        (_backend as IDisposable)?.Dispose();
        _blas?.Dispose();
        _workspace?.Release();
        _disposed = 1;
        Kernels.Dispose();
        _staging.Dispose();
        _results.Dispose();
        _pool.Dispose();
        CommunicationStream.Dispose();
        if (_ownsStream) Stream.Dispose();
        Context.Dispose();
    }
}
