using System.Runtime.InteropServices;

namespace LaspNative.Runtime.Interop;

internal enum ncclResult_t
{
    ncclSuccess = 0,
    ncclUnhandledCudaError = 1,
    ncclSystemError = 2,
    ncclInternalError = 3,
    ncclInvalidArgument = 4,
    ncclInvalidUsage = 5,
    ncclRemoteError = 6,
    ncclInProgress = 7,
}

internal enum ncclDataType_t
{
    ncclInt8 = 0,
    ncclUint8 = 1,
    ncclInt32 = 2,
    ncclInt64 = 4,
    ncclFloat32 = 7,
    ncclFloat64 = 8,
    ncclBfloat16 = 9,
}

internal enum ncclRedOp_t
{
    ncclSum = 0,
    ncclMax = 2,
}

/// <summary>128 opaque bytes that rank 0 draws and every rank of the communicator is given. Passed by value.</summary>
[StructLayout(LayoutKind.Sequential)]
internal unsafe struct ncclUniqueId
{
    public const int Size = 128;

    public fixed byte data[Size];
}

/// <summary>NCCL: only what is called. ncclComm_t and cudaStream_t are nint; counts are elements.</summary>
internal static unsafe partial class Nccl
{
    public const int NoColor = -1;

    private const string Library = NativeLibraries.Nccl;

    static Nccl() => NativeLibraries.Register();

    [LibraryImport(Library)]
    public static partial ncclResult_t ncclGetVersion(out int version);

    [LibraryImport(Library)]
    public static partial byte* ncclGetErrorString(ncclResult_t result);

    /// <summary>A communicator of 0 asks for the last error of the process. Since NCCL 2.13.</summary>
    [LibraryImport(Library)]
    public static partial byte* ncclGetLastError(nint communicator);

    [LibraryImport(Library)]
    public static partial ncclResult_t ncclGetUniqueId(out ncclUniqueId id);

    [LibraryImport(Library)]
    public static partial ncclResult_t ncclCommInitRank(out nint communicator, int ranks, ncclUniqueId id, int rank);

    /// <summary>Ranks of one colour form a group in the order of their keys; <see cref="NoColor"/> forms none and yields 0. A configuration of 0 is the parent's. Since NCCL 2.18.</summary>
    [LibraryImport(Library)]
    public static partial ncclResult_t ncclCommSplit(nint communicator, int color, int key, out nint part, nint configuration);

    [LibraryImport(Library)]
    public static partial ncclResult_t ncclCommDestroy(nint communicator);

    [LibraryImport(Library)]
    public static partial ncclResult_t ncclCommAbort(nint communicator);

    [LibraryImport(Library)]
    public static partial ncclResult_t ncclCommGetAsyncError(nint communicator, out ncclResult_t error);

    [LibraryImport(Library)]
    public static partial ncclResult_t ncclAllGather(nint send, nint receive, nuint sendCount, ncclDataType_t type, nint communicator, nint stream);

    [LibraryImport(Library)]
    public static partial ncclResult_t ncclAllReduce(nint send, nint receive, nuint count, ncclDataType_t type, ncclRedOp_t operation, nint communicator, nint stream);

    [LibraryImport(Library)]
    public static partial ncclResult_t ncclReduce(nint send, nint receive, nuint count, ncclDataType_t type, ncclRedOp_t operation, int root, nint communicator, nint stream);

    [LibraryImport(Library)]
    public static partial ncclResult_t ncclReduceScatter(nint send, nint receive, nuint receiveCount, ncclDataType_t type, ncclRedOp_t operation, nint communicator, nint stream);

    [LibraryImport(Library)]
    public static partial ncclResult_t ncclBroadcast(nint send, nint receive, nuint count, ncclDataType_t type, int root, nint communicator, nint stream);

    [LibraryImport(Library)]
    public static partial ncclResult_t ncclSend(nint buffer, nuint count, ncclDataType_t type, int peer, nint communicator, nint stream);

    [LibraryImport(Library)]
    public static partial ncclResult_t ncclRecv(nint buffer, nuint count, ncclDataType_t type, int peer, nint communicator, nint stream);

    [LibraryImport(Library)]
    public static partial ncclResult_t ncclGroupStart();

    [LibraryImport(Library)]
    public static partial ncclResult_t ncclGroupEnd();
}
