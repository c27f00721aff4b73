using System.Runtime.InteropServices;
using LaspNative.Runtime.Interop;

namespace LaspNative.Runtime.Cuda;

/// <summary>
/// A CUDA context: a GPU's primary context, shared by everything in the process that uses that GPU, or one that the host application owns.
/// The driver keeps a current context per thread; every object here makes its own current before it calls the driver.
/// </summary>
public sealed partial class CudaContext : IDisposable
{
    private static readonly Lock s_initialization = new();
    private static CUresult? s_initialized;

    private readonly bool _retained;
    private readonly Lazy<NumaNode?> _hostNode;
    private long _hostWaits;
    private int _disposed;

    private CudaContext(nint handle, int gpu, bool retained)
    {
        Handle = handle;
        Gpu = gpu;
        _retained = retained;
        _hostNode = new(() => NumaNode.Of(AddressOf(gpu)));
    }

    /// <summary>The CUcontext.</summary>
    public nint Handle { get; }

    /// <summary>The GPU's ordinal (CUdevice).</summary>
    public int Gpu { get; }

    /// <summary>As the driver calls it: "NVIDIA H200".</summary>
    internal string GpuName => NameOf(Gpu);

    /// <summary>The processors beside the GPU; null where the host has one NUMA node, or names none.</summary>
    internal NumaNode? HostNode => _hostNode.Value;

    /// <summary>How often a host thread has waited here for the GPU.</summary>
    internal long HostWaits => Volatile.Read(ref _hostWaits);

    /// <summary>Retains the primary context of GPU <paramref name="index"/> and makes it current.</summary>
    public static CudaContext OpenPrimary(int index)
    {
        Initialize();
        CudaDriver.cuDeviceGetCount(out int count).Check();
        if (index < 0 || index >= count)
            throw new LaspException($"cuda:{index} does not exist: {(count == 0 ? "no GPU is visible" : $"GPUs 0 to {count - 1} are visible")}; choose another or check CUDA_VISIBLE_DEVICES");
        CudaDriver.cuDeviceGet(out int gpu, index).Check();
        CudaDriver.cuDevicePrimaryCtxRetain(out nint handle, gpu).Check();
        var context = new CudaContext(handle, gpu, retained: true);
        context.MakeCurrent();
        return context;
    }

    /// <summary>Wraps a context that the host application owns and keeps alive, and makes it current.</summary>
    public static CudaContext FromHandle(nint handle)
    {
        if (handle == 0) throw new LaspException("a null handle is no CUDA context; pass the CUcontext of the host application");
        Initialize();
        CudaDriver.cuCtxSetCurrent(handle).Check();
        CudaDriver.cuCtxGetDevice(out int gpu).Check();
        return new CudaContext(handle, gpu, retained: false);
    }

    /// <summary>Whether one GPU can read and write the memory of another.</summary>
    internal static bool CanAccess(int gpu, int peer)
    {
        CudaDriver.cuDeviceCanAccessPeer(out int possible, gpu, peer).Check();
        return possible != 0;
    }

    /// <summary>Lets this context read and write what the primary context of another GPU allocates outside pools.</summary>
    internal void UseMemoryOf(int gpu)
    {
        MakeCurrent();
        CudaDriver.cuDevicePrimaryCtxRetain(out nint peer, gpu).Check();
        CUresult result = CudaDriver.cuCtxEnablePeerAccess(peer, 0);
        CudaDriver.cuDevicePrimaryCtxRelease(gpu).Check();
        if (result != CUresult.CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED) result.Check("cuCtxEnablePeerAccess");
    }

    /// <summary>
    /// Makes this context current on the calling thread. The driver is asked each time, because a host application or NCCL may have switched;
    /// that costs nanoseconds.
    /// </summary>
    public void MakeCurrent() => TryMakeCurrent().Check("cuCtxSetCurrent");

    /// <summary>Blocks the host until everything queued on this context's streams has run, whoever queued it.</summary>
    internal void Synchronize()
    {
        MakeCurrent();
        CountHostWait();
        CudaDriver.cuCtxSynchronize().Check();
    }

    /// <summary>For clean-up, which must not throw.</summary>
    internal CUresult TryMakeCurrent()
    {
        CUresult result = CudaDriver.cuCtxGetCurrent(out nint current);
        return result == CUresult.CUDA_SUCCESS && current != Handle ? CudaDriver.cuCtxSetCurrent(Handle) : result;
    }

    /// <summary>Loads and initialises the driver once per process. Throws when it is missing or shows no GPU.</summary>
    internal static void Initialize()
    {
        CUresult result = TryInitialize();
        if (result == CUresult.CUDA_ERROR_NO_DEVICE)
            throw new LaspException("the NVIDIA driver is installed but shows no GPU; check CUDA_VISIBLE_DEVICES and the container's GPU options");
        result.Check("cuInit");
    }

    /// <summary>Throws only when the driver is missing.</summary>
    internal static CUresult TryInitialize()
    {
        lock (s_initialization)
        {
            if (s_initialized is { } known) return known;
            NativeLibraries.Require(NativeLibraries.Cuda);
            // A kernel that the driver loads lazily, at its first launch, synchronises the device: behind a collective that waits for this very rank, for ever.
            // The driver reads C's environment, which Environment.SetEnvironmentVariable does not reach.
            SetEnvironment("CUDA_MODULE_LOADING", "EAGER", overwrite: 0);
            // Streams that share one of the driver's queues (8 unless told otherwise) wait for one another: one that waits for a peer must not hold up the one that the peer waits for.
            if (LaspOptions.Current.PeerSums) SetEnvironment("CUDA_DEVICE_MAX_CONNECTIONS", "32", overwrite: 0);
            CUresult result = CudaDriver.cuInit(0);
            s_initialized = result;
            return result;
        }
    }

    internal static unsafe string NameOf(int gpu)
    {
        const int Length = 256;
        byte* name = stackalloc byte[Length];
        CudaDriver.cuDeviceGetName(name, Length, gpu).Check();
        return Marshal.PtrToStringUTF8((nint)name) ?? "";
    }

    /// <summary>On the bus: 0000:1b:00.0.</summary>
    private static unsafe string AddressOf(int gpu)
    {
        const int Length = 64;
        byte* address = stackalloc byte[Length];
        CudaDriver.cuDeviceGetPCIBusId(address, Length, gpu).Check();
        return Marshal.PtrToStringUTF8((nint)address) ?? "";
    }

    internal void CountHostWait() => Interlocked.Increment(ref _hostWaits);

    internal int Attribute(CUdevice_attribute attribute)
    {
        CudaDriver.cuDeviceGetAttribute(out int value, attribute, Gpu).Check();
        return value;
    }

    public void Dispose()
    {
        if (Interlocked.Exchange(ref _disposed, 1) != 0 || !_retained) return;
        // The last release destroys the context: no thread should be left with it.
        if (CudaDriver.cuCtxGetCurrent(out nint current) == CUresult.CUDA_SUCCESS && current == Handle) CudaDriver.cuCtxSetCurrent(0);
        CudaDriver.cuDevicePrimaryCtxRelease(Gpu);
    }

    [LibraryImport("libc", EntryPoint = "setenv", StringMarshalling = StringMarshalling.Utf8)]
    private static partial int SetEnvironment(string name, string value, int overwrite);
}
