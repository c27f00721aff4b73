using System.Runtime.InteropServices;

namespace LaspNative.Runtime.Interop;

internal enum cublasStatus_t
{
    CUBLAS_STATUS_SUCCESS = 0,
    CUBLAS_STATUS_NOT_INITIALIZED = 1,
    CUBLAS_STATUS_ALLOC_FAILED = 3,
    CUBLAS_STATUS_INVALID_VALUE = 7,
    CUBLAS_STATUS_ARCH_MISMATCH = 8,
    CUBLAS_STATUS_MAPPING_ERROR = 11,
    CUBLAS_STATUS_EXECUTION_FAILED = 13,
    CUBLAS_STATUS_INTERNAL_ERROR = 14,
    CUBLAS_STATUS_NOT_SUPPORTED = 15,
    CUBLAS_STATUS_LICENSE_ERROR = 16,
}

internal enum cudaDataType
{
    CUDA_R_32F = 0,
    CUDA_R_16BF = 14,
}

internal enum cublasComputeType_t
{
    CUBLAS_COMPUTE_32F = 68,
}

internal enum cublasOperation_t
{
    CUBLAS_OP_N = 0,
    CUBLAS_OP_T = 1,
}

internal enum cublasLtMatmulDescAttributes_t
{
    CUBLASLT_MATMUL_DESC_TRANSA = 3,
    CUBLASLT_MATMUL_DESC_TRANSB = 4,
}

internal enum cublasLtMatrixLayoutAttribute_t
{
    CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT = 5,
    CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET = 6,
}

internal enum cublasLtMatmulPreferenceAttributes_t
{
    CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES = 1,
    CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK = 3,
    CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES = 5,
    CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES = 6,
    CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES = 7,
    CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES = 8,
}

/// <summary>64 opaque bytes that name an algorithm and its configuration.</summary>
[StructLayout(LayoutKind.Sequential)]
internal unsafe struct cublasLtMatmulAlgo_t
{
    public fixed ulong data[8];
}

/// <summary>96 bytes.</summary>
[StructLayout(LayoutKind.Sequential)]
internal unsafe struct cublasLtMatmulHeuristicResult_t
{
    public cublasLtMatmulAlgo_t algo;
    public nuint workspaceSize;
    public cublasStatus_t state;
    public float wavesCount;
    public fixed int reserved[4];
}

/// <summary>cuBLASLt: only what is called. Handles and descriptors are nint; matrices are column-major.</summary>
internal static unsafe partial class CublasLt
{
    /// <summary>A product cut along its sums adds the parts in the compute type, fp32; the other schemes add in the result's type.</summary>
    public const uint CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE = 2;

    private const string Library = NativeLibraries.CublasLt;

    static CublasLt() => NativeLibraries.Register();

    [LibraryImport(Library)]
    public static partial nuint cublasLtGetVersion();

    [LibraryImport(Library)]
    public static partial cublasStatus_t cublasLtCreate(out nint handle);

    [LibraryImport(Library)]
    public static partial cublasStatus_t cublasLtDestroy(nint handle);

    [LibraryImport(Library)]
    public static partial cublasStatus_t cublasLtMatmulDescCreate(out nint description, cublasComputeType_t computeType, cudaDataType scaleType);

    [LibraryImport(Library)]
    public static partial cublasStatus_t cublasLtMatmulDescDestroy(nint description);

    [LibraryImport(Library)]
    public static partial cublasStatus_t cublasLtMatmulDescSetAttribute(nint description, cublasLtMatmulDescAttributes_t attribute, void* value, nuint bytes);

    [LibraryImport(Library)]
    public static partial cublasStatus_t cublasLtMatrixLayoutCreate(out nint layout, cudaDataType type, ulong rows, ulong columns, long leadingDimension);

    [LibraryImport(Library)]
    public static partial cublasStatus_t cublasLtMatrixLayoutDestroy(nint layout);

    [LibraryImport(Library)]
    public static partial cublasStatus_t cublasLtMatrixLayoutSetAttribute(nint layout, cublasLtMatrixLayoutAttribute_t attribute, void* value, nuint bytes);

    [LibraryImport(Library)]
    public static partial cublasStatus_t cublasLtMatmulPreferenceCreate(out nint preference);

    [LibraryImport(Library)]
    public static partial cublasStatus_t cublasLtMatmulPreferenceDestroy(nint preference);

    [LibraryImport(Library)]
    public static partial cublasStatus_t cublasLtMatmulPreferenceSetAttribute(nint preference, cublasLtMatmulPreferenceAttributes_t attribute, void* value, nuint bytes);

    [LibraryImport(Library)]
    public static partial cublasStatus_t cublasLtMatmulAlgoGetHeuristic(
        nint handle, nint operation, nint layoutA, nint layoutB, nint layoutC, nint layoutD, nint preference,
        int requested, cublasLtMatmulHeuristicResult_t* results, out int returned);

    [LibraryImport(Library)]
    public static partial cublasStatus_t cublasLtMatmulAlgoCheck(
        nint handle, nint operation, nint layoutA, nint layoutB, nint layoutC, nint layoutD, cublasLtMatmulAlgo_t* algorithm, out cublasLtMatmulHeuristicResult_t result);

    [LibraryImport(Library)]
    public static partial cublasStatus_t cublasLtMatmul(
        nint handle, nint computeDescription,
        void* alpha, nint a, nint layoutA, nint b, nint layoutB,
        void* beta, nint c, nint layoutC, nint d, nint layoutD,
        cublasLtMatmulAlgo_t* algorithm, nint workspace, nuint workspaceBytes, nint stream);
}
