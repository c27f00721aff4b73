using System.Runtime.InteropServices;

namespace LaspNative.Runtime.Cuda;

/// <summary>
/// The backend on a GPU, one partial file per op family. A method checks its tensors, chooses a launch shape and queues kernels of the .cu file of its family;
/// equations and layouts stand there. Launch shapes depend on tensor shapes alone, so the order of every sum does too.
/// </summary>
internal sealed partial class CudaBackend(CudaDevice device) : IBackend
{
    private const uint BlockThreads = 256;
    private const int WarpThreads = 32;

    /// <summary>Elements that one thread of an elementwise kernel takes: PACK of common.cuh.</summary>
    private const int Pack = 8;

    private readonly CudaDevice _device = device;

    private void Launch(string file, string kernel, DType element, LaunchShape shape, params ReadOnlySpan<KernelArg> args) =>
        _device.Kernels.Get(file, kernel, element).Launch(_device.Stream, shape, args);

    /// <summary>Puts a table for the next kernel into the workspace, where it is followed by room for <paramref name="beyond"/> bytes.</summary>
    private nint Upload<T>(ReadOnlySpan<T> table, long beyond, out nint room) where T : unmanaged
    {
        ReadOnlySpan<byte> bytes = MemoryMarshal.AsBytes(table);
        long rounded = RoundUp(bytes.Length, 256);
        nint workspace = _device.Workspace(rounded + beyond);
        _device.CopyFromHost(bytes, workspace);
        room = workspace + (nint)rounded;
        return workspace;
    }

    /// <summary>One thread per pack of <paramref name="count"/> elements.</summary>
    private static LaunchShape PerPack(long count) => LaunchShape.For(CeilDivide(count, Pack), BlockThreads);

    private static LaunchShape PerWarp(long rows) => LaunchShape.For(rows, BlockThreads / WarpThreads) with { BlockX = BlockThreads };

    private static LaunchShape Blocks(long count, uint threads, long sharedBytes = 0) => new(checked((uint)count), 1, 1, threads, checked((uint)sharedBytes));

    private static long CeilDivide(long a, long b) => (a + b - 1) / b;

    private static long RoundUp(long a, long unit) => CeilDivide(a, unit) * unit;

    /// <summary>Whether 16-byte accesses fit at an address, or at all of several that were or-ed.</summary>
    private static bool ArePacked(nint pointers) => (pointers & 15) == 0;

    private static nint PointerOrNull(Tensor? tensor) => tensor?.Pointer ?? 0;

    private static void RequireSame(Tensor a, Tensor b)
    {
        RequireSameCount(a, b);
        RequireType(b, a.DType);
    }

    private static void RequireSameCount(Tensor a, Tensor b)
    {
        RequireGpu(a);
        RequireGpu(b);
        if (a.Count != b.Count) throw new LaspException($"shapes {a.Shape} and {b.Shape} differ in their number of elements");
    }

    private static void RequireNumber(Tensor tensor)
    {
        RequireType(tensor, DType.F32);
        if (tensor.Count != 1) throw new LaspException($"the tensor {tensor} should be one number");
    }

    private static void RequireType(Tensor tensor, DType dtype)
    {
        RequireGpu(tensor);
        if (tensor.DType != dtype) throw new LaspException($"the tensor {tensor} should be of {dtype}");
    }

    /// <summary>The element types that kernels are compiled for.</summary>
    private static void RequireElement(Tensor tensor)
    {
        RequireGpu(tensor);
        if (tensor.DType is not (DType.F32 or DType.BF16)) throw new LaspException($"the GPU computes in F32 and BF16, and the tensor {tensor} is neither; cast it, or use a CPU device");
    }

    private static void RequireGpu(Tensor tensor)
    {
        if (tensor.Device.Kind != DeviceKind.Cuda) throw new LaspException($"the tensor {tensor} is not on the GPU that computes with it; copy it there first");
    }
}
