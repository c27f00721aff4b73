namespace LaspNative.Runtime.Cpu;

/// <summary>
/// The backend on host memory, one partial file per op family. Kernels are generic in the storage type T and the arithmetic type A (<see cref="Element"/>).
/// Threads share out work whose split never touches the order of a sum, so the number of threads does not change a bit of any result.
/// </summary>
internal sealed unsafe partial class CpuBackend(CpuDevice device) : IBackend
{
    /// <summary>Elements that one task of a memory-bound kernel takes: worth a thread's wake-up, and small enough to balance.</summary>
    private const long Grain = 32768;

    private readonly CpuDevice _device = device;

    /// <summary>Runs body(0) .. body(count - 1), in any order, on at most the device's threads.</summary>
    private void ForEach(long count, Action<long> body)
    {
        if (_device.Threads == 1 || count <= 1)
        {
            for (long i = 0; i < count; i++) body(i);
            return;
        }
        Parallel.For(0, count, new ParallelOptions { MaxDegreeOfParallelism = _device.Threads }, body);
    }

    /// <summary>Cuts [0, count) into runs of <paramref name="grain"/> and calls body(start, length) for each, in any order.</summary>
    private void ForRanges(long count, long grain, Action<long, int> body)
    {
        if (count > grain) ForSeveralRanges(count, grain, body);
        else if (count > 0) body(0, (int)count);
    }

    private void ForSeveralRanges(long count, long grain, Action<long, int> body) =>
        ForEach((count + grain - 1) / grain, i => body(i * grain, (int)Math.Min(grain, count - (i * grain))));

    private static void RequireSameCount(Tensor a, Tensor b)
    {
        if (a.Count != b.Count) throw new LaspException($"shapes {a.Shape} and {b.Shape} differ in their number of elements");
    }

    private static void RequireSame(Tensor a, Tensor b)
    {
        RequireSameCount(a, b);
        RequireType(b, a.DType);
    }

    /// <summary>One number of Acc.</summary>
    private static void RequireScalar(Tensor tensor, DType acc)
    {
        RequireType(tensor, acc);
        if (tensor.Count != 1 || acc != acc.Accumulator()) throw new LaspException($"the tensor {tensor} should be one number, of {acc.Accumulator()}");
    }

    private static double Scalar(Tensor tensor) => tensor.DType == DType.F64 ? *(double*)tensor.Pointer : *(float*)tensor.Pointer;

    private static void SetScalar(Tensor tensor, double value)
    {
        if (tensor.DType == DType.F64) *(double*)tensor.Pointer = value;
        else *(float*)tensor.Pointer = (float)value;
    }

    private static void RequireType(Tensor tensor, DType dtype)
    {
        if (tensor.DType != dtype) throw new LaspException($"the tensor {tensor} should be of {dtype}");
    }
}
