using LaspNative.Runtime.Interop;

namespace LaspNative.Runtime.Cuda;

/// <summary>
/// The device memory of one rank: a stream-ordered pool of the driver that gives nothing back to the system until it is trimmed, so that after warm-up an
/// allocation is bookkeeping and neither waits for the GPU nor for another rank's collective. Every rank has its own pool, also when ranks share a GPU:
/// the driver then never makes one rank's stream wait for another's to reuse memory. Bytes by category are counted above, in <see cref="MemoryLedger"/>.
/// </summary>
internal sealed unsafe class MemoryPool : IDisposable
{
    private readonly CudaContext _context;
    private readonly nint _pool;
    private int _disposed;

    public MemoryPool(CudaContext context)
    {
        _context = context;
        if (context.Attribute(CUdevice_attribute.CU_DEVICE_ATTRIBUTE_MEMORY_POOLS_SUPPORTED) == 0)
            throw new LaspException($"cuda:{context.Gpu} has no stream-ordered memory pools; a driver for CUDA 12 or newer on a GPU of compute capability 8.0 or newer is needed");
        var properties = new CUmemPoolProps
        {
            allocType = CUmemAllocationType.CU_MEM_ALLOCATION_TYPE_PINNED,
            location = new CUmemLocation { type = CUmemLocationType.CU_MEM_LOCATION_TYPE_DEVICE, id = context.Gpu },
        };
        CudaDriver.cuMemPoolCreate(out _pool, &properties).Check();
        ulong keepAll = ulong.MaxValue;
        CudaDriver.cuMemPoolSetAttribute(_pool, CUmemPool_attribute.CU_MEMPOOL_ATTR_RELEASE_THRESHOLD, &keepAll).Check();
        ShareWithPeers();
    }

    /// <summary>Bytes that the pool holds from the system, in use or kept for reuse.</summary>
    public long ReservedBytes => Read(CUmemPool_attribute.CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT);

    /// <summary>Bytes of the pool that are handed out.</summary>
    public long UsedBytes => Read(CUmemPool_attribute.CU_MEMPOOL_ATTR_USED_MEM_CURRENT);

    /// <summary>Memory for work queued on <paramref name="stream"/> from now on. Trims the pool and tries again before it gives up.</summary>
    public nint Allocate(long bytes, CudaStream stream)
    {
        CUresult result = CudaDriver.cuMemAllocFromPoolAsync(out nint pointer, (nuint)bytes, _pool, stream.Handle);
        if (result == CUresult.CUDA_ERROR_OUT_OF_MEMORY)
        {
            stream.Synchronize();
            Trim();
            result = CudaDriver.cuMemAllocFromPoolAsync(out pointer, (nuint)bytes, _pool, stream.Handle);
        }
        if (result == CUresult.CUDA_ERROR_OUT_OF_MEMORY) throw OutOfMemory(bytes);
        result.Check("cuMemAllocFromPoolAsync");
        return pointer;
    }

    /// <summary>Returns memory once what is queued on <paramref name="stream"/> has run. Never throws: a failed GPU reports itself at the next launch.</summary>
    public void Free(nint pointer, CudaStream stream)
    {
        _context.TryMakeCurrent();
        CudaDriver.cuMemFreeAsync(pointer, stream.Handle);
    }

    /// <summary>Gives memory that is not in use back to the system.</summary>
    public void Trim() => CudaDriver.cuMemPoolTrimTo(_pool, 0).Check();

    public void Dispose()
    {
        if (Interlocked.Exchange(ref _disposed, 1) == 0) CudaDriver.cuMemPoolDestroy(_pool);
    }

    /// <summary>NCCL reads and writes the buffers of ranks of the same process directly; a pool's memory is closed to other GPUs until it says otherwise.</summary>
    private void ShareWithPeers()
    {
        CudaDriver.cuDeviceGetCount(out int count).Check();
        for (int peer = 0; peer < count; peer++)
        {
            if (peer == _context.Gpu || !CudaContext.CanAccess(peer, _context.Gpu)) continue;
            var access = new CUmemAccessDesc
            {
                location = new CUmemLocation { type = CUmemLocationType.CU_MEM_LOCATION_TYPE_DEVICE, id = peer },
                flags = CUmemAccess_flags.CU_MEM_ACCESS_FLAGS_PROT_READWRITE,
            };
            CudaDriver.cuMemPoolSetAccess(_pool, &access, 1).Check();
        }
    }

    private LaspException OutOfMemory(long bytes)
    {
        string state = CudaDriver.cuMemGetInfo(out nuint free, out nuint total) == CUresult.CUDA_SUCCESS ? $", {Mebibytes((long)free)} of the GPU's {Mebibytes((long)total)} are free" : "";
        return new LaspException(
            $"cuda:{_context.Gpu} is out of memory: {Mebibytes(bytes)} were asked for beside {Mebibytes(UsedBytes)} in use{state}; shorten the sequence, use more ranks or a smaller model");
    }

    private static string Mebibytes(long bytes) => $"{(bytes + (1 << 20) - 1) >> 20} MiB";

    private long Read(CUmemPool_attribute attribute)
    {
        ulong value;
        CudaDriver.cuMemPoolGetAttribute(_pool, attribute, &value).Check();
        return (long)value;
    }
}
