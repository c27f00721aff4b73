using LaspNative.Runtime;
using LaspNative.Runtime.Cuda;

namespace LaspNative.Perf;

/// <summary>What the machine at hand can do at most, measured in the run that is judged by it.</summary>
internal readonly record struct Ceilings(double CopyGigabytesPerSecond, double GemmTeraflops)
{
    /// <summary>Copies of a GiB (read and written bytes), and a bf16 product 8192^3.</summary>
    public static Ceilings Of(CudaDevice device)
    {
        const long Bytes = 1L << 30, N = 8192;
        using var clock = new GpuClock(device);
        double copy;
        using (Tensor source = RandomTensors.Normal(device, [Bytes / 2], 1), destination = Tensor.Empty([Bytes / 2], DType.BF16, device))
            copy = clock.Time(_ => device.Copy(source.Pointer, destination.Pointer, Bytes)).Median;
        using Tensor a = RandomTensors.Normal(device, [N, N], 2), b = RandomTensors.Normal(device, [N, N], 3), c = Tensor.Empty([N, N], DType.BF16, device);
        double gemm = clock.Time(_ => device.Backend.Gemm(a, false, b, true, 1, 0, c)).Median;
        return new Ceilings(2 * Bytes / copy / 1e6, 2.0 * N * N * N / gemm / 1e9);
    }

    /// <summary>The same on the CPU with all its cores: copies of 64 MiB, and an fp32 product 1024^3.</summary>
    public static Ceilings Of(Device cpu)
    {
        const long Count = 16 << 20, N = 1024;
        using Tensor source = Tensor.Zeros([Count], DType.F32, cpu), destination = Tensor.Empty([Count], DType.F32, cpu);
        cpu.Backend.Fill(1, source);
        double copy = Fastest(() => cpu.Copy(source.Pointer, destination.Pointer, source.Bytes));
        using Tensor a = Tensor.Empty([N, N], DType.F32, cpu), b = Tensor.Empty([N, N], DType.F32, cpu), c = Tensor.Empty([N, N], DType.F32, cpu);
        cpu.Backend.Fill(0.5, a);
        cpu.Backend.Fill(0.25, b);
        double gemm = Fastest(() => cpu.Backend.Gemm(a, false, b, true, 1, 0, c));
        return new Ceilings(2 * source.Bytes / copy / 1e9, 2.0 * N * N * N / gemm / 1e12);
    }

    /// <summary>Seconds of the fastest of a few calls.</summary>
    private static double Fastest(Action call)
    {
        call();
        return Enumerable.Range(0, 5).Min(_ =>
        {
            long start = System.Diagnostics.Stopwatch.GetTimestamp();
            call();
            return System.Diagnostics.Stopwatch.GetElapsedTime(start).TotalSeconds;
        });
    }
}
