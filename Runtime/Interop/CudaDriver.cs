using System.Runtime.InteropServices;

namespace LaspNative.Runtime.Interop;

/// <summary>
/// The CUDA driver API: only what is called. Handles (CUcontext, CUstream, CUevent, CUmodule, CUfunction, CUmemoryPool) and device addresses are nint, CUdevice is int.
/// Entry points carry the suffix that the driver exports; cuda.h maps the plain names to them with macros.
/// </summary>
internal static unsafe partial class CudaDriver
{
    private const string Library = NativeLibraries.Cuda;

    public const uint CU_STREAM_NON_BLOCKING = 1;
    public const uint CU_EVENT_BLOCKING_SYNC = 1;
    public const uint CU_EVENT_DISABLE_TIMING = 2;
    public const uint CU_MEMHOSTALLOC_PORTABLE = 1;

    static CudaDriver() => NativeLibraries.Register();

    // ---- Initialisation, errors, devices ----

    [LibraryImport(Library)]
    public static partial CUresult cuInit(uint flags);

    [LibraryImport(Library)]
    public static partial CUresult cuDriverGetVersion(out int driverVersion);

    [LibraryImport(Library)]
    public static partial CUresult cuGetErrorName(CUresult error, out byte* name);

    [LibraryImport(Library)]
    public static partial CUresult cuGetErrorString(CUresult error, out byte* text);

    [LibraryImport(Library)]
    public static partial CUresult cuDeviceGetCount(out int count);

    [LibraryImport(Library)]
    public static partial CUresult cuDeviceGet(out int device, int ordinal);

    [LibraryImport(Library)]
    public static partial CUresult cuDeviceGetName(byte* name, int length, int device);

    [LibraryImport(Library)]
    public static partial CUresult cuDeviceGetPCIBusId(byte* address, int length, int device);

    [LibraryImport(Library)]
    public static partial CUresult cuDeviceGetAttribute(out int value, CUdevice_attribute attribute, int device);

    [LibraryImport(Library, EntryPoint = "cuDeviceTotalMem_v2")]
    public static partial CUresult cuDeviceTotalMem(out nuint bytes, int device);

    [LibraryImport(Library)]
    public static partial CUresult cuDeviceCanAccessPeer(out int canAccess, int device, int peer);

    // ---- Contexts ----

    [LibraryImport(Library)]
    public static partial CUresult cuDevicePrimaryCtxRetain(out nint context, int device);

    [LibraryImport(Library, EntryPoint = "cuDevicePrimaryCtxRelease_v2")]
    public static partial CUresult cuDevicePrimaryCtxRelease(int device);

    [LibraryImport(Library)]
    public static partial CUresult cuCtxGetCurrent(out nint context);

    [LibraryImport(Library)]
    public static partial CUresult cuCtxSynchronize();

    [LibraryImport(Library)]
    public static partial CUresult cuCtxSetCurrent(nint context);

    [LibraryImport(Library)]
    public static partial CUresult cuCtxGetDevice(out int device);

    [LibraryImport(Library)]
    public static partial CUresult cuCtxGetStreamPriorityRange(out int least, out int greatest);

    /// <summary>The current context may use the memory of another one. CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED when it could before.</summary>
    [LibraryImport(Library)]
    public static partial CUresult cuCtxEnablePeerAccess(nint peerContext, uint flags);

    // ---- Streams and events ----

    [LibraryImport(Library)]
    public static partial CUresult cuStreamCreateWithPriority(out nint stream, uint flags, int priority);

    [LibraryImport(Library, EntryPoint = "cuStreamDestroy_v2")]
    public static partial CUresult cuStreamDestroy(nint stream);

    [LibraryImport(Library)]
    public static partial CUresult cuStreamSynchronize(nint stream);

    [LibraryImport(Library)]
    public static partial CUresult cuStreamWaitEvent(nint stream, nint evt, uint flags);

    /// <summary>Flags 0: until (int)(*address - value) >= 0.</summary>
    [LibraryImport(Library, EntryPoint = "cuStreamWaitValue32_v2")]
    public static partial CUresult cuStreamWaitValue32(nint stream, nint address, uint value, uint flags);

    /// <summary>Flags 0: behind a barrier for all memory.</summary>
    [LibraryImport(Library, EntryPoint = "cuStreamWriteValue32_v2")]
    public static partial CUresult cuStreamWriteValue32(nint stream, nint address, uint value, uint flags);

    [LibraryImport(Library)]
    public static partial CUresult cuEventCreate(out nint evt, uint flags);

    [LibraryImport(Library, EntryPoint = "cuEventDestroy_v2")]
    public static partial CUresult cuEventDestroy(nint evt);

    [LibraryImport(Library)]
    public static partial CUresult cuEventRecord(nint evt, nint stream);

    [LibraryImport(Library)]
    public static partial CUresult cuEventQuery(nint evt);

    [LibraryImport(Library)]
    public static partial CUresult cuEventSynchronize(nint evt);

    [LibraryImport(Library)]
    public static partial CUresult cuEventElapsedTime(out float milliseconds, nint start, nint end);

    // ---- Memory ----

    [LibraryImport(Library, EntryPoint = "cuMemGetInfo_v2")]
    public static partial CUresult cuMemGetInfo(out nuint free, out nuint total);

    [LibraryImport(Library, EntryPoint = "cuMemAlloc_v2")]
    public static partial CUresult cuMemAlloc(out nint pointer, nuint bytes);

    [LibraryImport(Library, EntryPoint = "cuMemFree_v2")]
    public static partial CUresult cuMemFree(nint pointer);

    [LibraryImport(Library)]
    public static partial CUresult cuMemPoolCreate(out nint pool, CUmemPoolProps* properties);

    [LibraryImport(Library)]
    public static partial CUresult cuMemPoolDestroy(nint pool);

    [LibraryImport(Library)]
    public static partial CUresult cuMemPoolSetAttribute(nint pool, CUmemPool_attribute attribute, void* value);

    [LibraryImport(Library)]
    public static partial CUresult cuMemPoolGetAttribute(nint pool, CUmemPool_attribute attribute, void* value);

    [LibraryImport(Library)]
    public static partial CUresult cuMemPoolSetAccess(nint pool, CUmemAccessDesc* map, nuint count);

    [LibraryImport(Library)]
    public static partial CUresult cuMemPoolTrimTo(nint pool, nuint minimumBytesToKeep);

    [LibraryImport(Library)]
    public static partial CUresult cuMemAllocFromPoolAsync(out nint pointer, nuint bytes, nint pool, nint stream);

    [LibraryImport(Library)]
    public static partial CUresult cuMemFreeAsync(nint pointer, nint stream);

    [LibraryImport(Library)]
    public static partial CUresult cuMemHostAlloc(out nint pointer, nuint bytes, uint flags);

    [LibraryImport(Library)]
    public static partial CUresult cuMemFreeHost(nint pointer);

    [LibraryImport(Library, EntryPoint = "cuMemcpyHtoDAsync_v2")]
    public static partial CUresult cuMemcpyHtoDAsync(nint destination, nint source, nuint bytes, nint stream);

    [LibraryImport(Library, EntryPoint = "cuMemcpyDtoHAsync_v2")]
    public static partial CUresult cuMemcpyDtoHAsync(nint destination, nint source, nuint bytes, nint stream);

    [LibraryImport(Library, EntryPoint = "cuMemcpyDtoDAsync_v2")]
    public static partial CUresult cuMemcpyDtoDAsync(nint destination, nint source, nuint bytes, nint stream);

    [LibraryImport(Library)]
    public static partial CUresult cuMemcpyAsync(nint destination, nint source, nuint bytes, nint stream);

    [LibraryImport(Library)]
    public static partial CUresult cuMemsetD8Async(nint destination, byte value, nuint count, nint stream);

    // ---- Modules and launches ----

    [LibraryImport(Library)]
    public static partial CUresult cuModuleLoadData(out nint module, byte* image);

    [LibraryImport(Library)]
    public static partial CUresult cuModuleUnload(nint module);

    [LibraryImport(Library, StringMarshalling = StringMarshalling.Utf8)]
    public static partial CUresult cuModuleGetFunction(out nint function, nint module, string name);

    [LibraryImport(Library)]
    public static partial CUresult cuFuncGetAttribute(out int value, CUfunction_attribute attribute, nint function);

    [LibraryImport(Library)]
    public static partial CUresult cuFuncSetAttribute(nint function, CUfunction_attribute attribute, int value);

    /// <summary>Since driver 12.4; CUDA_ERROR_INVALID_VALUE past the last parameter.</summary>
    [LibraryImport(Library)]
    public static partial CUresult cuFuncGetParamInfo(nint function, nuint index, out nuint offset, out nuint size);

    [LibraryImport(Library)]
    public static partial CUresult cuLaunchKernel(
        nint function,
        uint gridDimX, uint gridDimY, uint gridDimZ,
        uint blockDimX, uint blockDimY, uint blockDimZ,
        uint sharedMemBytes, nint stream, void** kernelParams, void** extra);

    [LibraryImport(Library)]
    public static partial CUresult cuTensorMapEncodeTiled(
        void* tensorMap, CUtensorMapDataType dataType, uint rank, nint address, ulong* dimensions, ulong* strides, uint* box, uint* elementStrides,
        CUtensorMapInterleave interleave, CUtensorMapSwizzle swizzle, CUtensorMapL2promotion promotion, CUtensorMapFloatOOBfill fill);
}
