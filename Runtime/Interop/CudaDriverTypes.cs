using System.Runtime.InteropServices;

namespace LaspNative.Runtime.Interop;

// Types of the CUDA driver API, with NVIDIA's names and values (cuda.h). Enumerations list only the members that are used.

internal enum CUresult
{
    CUDA_SUCCESS = 0,
    CUDA_ERROR_OUT_OF_MEMORY = 2,
    CUDA_ERROR_NO_DEVICE = 100,
    CUDA_ERROR_NOT_READY = 600,
    CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED = 704,
}

internal enum CUdevice_attribute
{
    CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT = 16,
    CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR = 75,
    CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR = 76,
    CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN = 97,
    CU_DEVICE_ATTRIBUTE_MEMORY_POOLS_SUPPORTED = 115,
}

internal enum CUfunction_attribute
{
    CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK = 0,
    CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES = 1,
    CU_FUNC_ATTRIBUTE_NUM_REGS = 4,
    CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES = 8,
}

internal enum CUmemPool_attribute
{
    CU_MEMPOOL_ATTR_RELEASE_THRESHOLD = 4,
    CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT = 5,
    CU_MEMPOOL_ATTR_USED_MEM_CURRENT = 7,
}

internal enum CUmemLocationType
{
    CU_MEM_LOCATION_TYPE_DEVICE = 1,
}

internal enum CUmemAllocationType
{
    CU_MEM_ALLOCATION_TYPE_PINNED = 1,
}

internal enum CUmemAccess_flags
{
    CU_MEM_ACCESS_FLAGS_PROT_READWRITE = 3,
}

[StructLayout(LayoutKind.Sequential)]
internal struct CUmemLocation
{
    public CUmemLocationType type;
    public int id;
}

/// <summary>88 bytes; the tail is the header's reserved bytes (with `usage` since 12.6), which must be zero.</summary>
[StructLayout(LayoutKind.Sequential)]
internal unsafe struct CUmemPoolProps
{
    public CUmemAllocationType allocType;
    public int handleTypes;
    public CUmemLocation location;
    public nint win32SecurityAttributes;
    public nuint maxSize;
    public fixed byte reserved[56];
}

[StructLayout(LayoutKind.Sequential)]
internal struct CUmemAccessDesc
{
    public CUmemLocation location;
    public CUmemAccess_flags flags;
}

internal enum CUtensorMapDataType
{
    CU_TENSOR_MAP_DATA_TYPE_FLOAT32 = 7,
    CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 = 9,
}

internal enum CUtensorMapInterleave
{
    CU_TENSOR_MAP_INTERLEAVE_NONE = 0,
}

internal enum CUtensorMapSwizzle
{
    CU_TENSOR_MAP_SWIZZLE_128B = 3,
}

internal enum CUtensorMapL2promotion
{
    CU_TENSOR_MAP_L2_PROMOTION_L2_128B = 2,
}

internal enum CUtensorMapFloatOOBfill
{
    CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE = 0,
}
