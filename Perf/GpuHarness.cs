using System.Globalization;
using System.Text.Json;
using LaspNative.Runtime;
using LaspNative.Runtime.Cuda;

namespace LaspNative.Perf;

/// <summary>One measured line: median and spread in milliseconds, and the ratio to the floor of the same run.</summary>
internal sealed record Measurement(string Name, string Shape, double Milliseconds, double Fastest, double Slowest, double? TimesFloor, double? WorstError);

/// <summary>What one run of the harness leaves behind.</summary>
internal sealed record PerformanceRecord(string Machine, string Date, double CopyGigabytesPerSecond, double GemmTeraflops, IReadOnlyList<Measurement> Rows);

/// <summary>
/// Times the kernels on the GPU at hand against ceilings measured in the same run. Every row is checked against fp64 on the same inputs
/// before it is timed; inputs are random and rotate through more memory than the L2 holds; times are medians of CUDA events.
/// The floor of linear attention is the fewest tensors it can move at the measured copy speed: forward 4, forward and backward 11.
/// </summary>
internal sealed class GpuHarness(CudaDevice device)
{
    private const int Repeats = 20;
    private const int Heads = 16;
    private const int Width = 128;

    public PerformanceRecord Run(IReadOnlyList<int> lengths)
    {
        double copy = MeasureCopy();
        double gemm = MeasureGemm(8192);
        var rows = new List<Measurement>();
        foreach (int length in lengths)
        {
            using var problem = new AttentionProblem(device, length, Heads, Width);
            double forwardError = problem.ForwardError();
            double backwardError = Math.Max(forwardError, problem.BackwardError());
            if (!(forwardError < 2e-2) || !(backwardError < 2e-2))
                throw new LaspException($"linear attention at N = {length} is wrong (relative error {Math.Max(forwardError, backwardError):g3} against fp64), so it is not timed");
            double floor = problem.TensorBytes / copy / 1e6;
            string shape = $"B=1 N={length} H={Heads} D=E={Width} bf16, per-head decay";
            rows.Add(Time("linear attention forward", shape, problem.Forward, 4 * floor, forwardError));
            rows.Add(Time("linear attention forward+backward", shape, problem.ForwardBackward, 11 * floor, backwardError));
        }
        SystemReport system = SystemProbe.Run();
        GpuReport gpu = system.Gpus[0];
        string machine = $"{gpu.Name}, {gpu.MultiprocessorCount} SMs, {gpu.MemoryBytes >> 30} GiB, driver {system.DriverRelease}, NVRTC {system.Nvrtc.Version}";
        return new PerformanceRecord(machine, DateTime.UtcNow.ToString("yyyy-MM-dd", CultureInfo.InvariantCulture), copy, gemm, rows);
    }

    public static void Write(PerformanceRecord record, string file, TextWriter table)
    {
        File.WriteAllText(file, JsonSerializer.Serialize(record, new JsonSerializerOptions { WriteIndented = true }));
        table.WriteLine($"{record.Machine}: copy {record.CopyGigabytesPerSecond:f0} GB/s (read + written), bf16 GEMM 8192^3 {record.GemmTeraflops:f0} TFLOP/s");
        foreach (Measurement row in record.Rows)
            table.WriteLine($"{row.Name,-36} {row.Shape,-48} {row.Milliseconds,9:f3} ms [{row.Fastest:f3} .. {row.Slowest:f3}]  x floor {row.TimesFloor:f2}  error {row.WorstError:g2}");
    }

    private double MeasureCopy()
    {
        const long Bytes = 1L << 30;
        using Tensor source = RandomTensor(device, [Bytes / 2], 1);
        using Tensor destination = Tensor.Empty([Bytes / 2], DType.BF16, device);
        Measurement time = Time("copy", "1 GiB", _ => device.Copy(source.Pointer, destination.Pointer, Bytes), null, null);
        return 2 * Bytes / time.Milliseconds / 1e6;
    }

    private double MeasureGemm(long n)
    {
        using Tensor a = RandomTensor(device, [n, n], 2);
        using Tensor b = RandomTensor(device, [n, n], 3);
        using Tensor c = Tensor.Empty([n, n], DType.BF16, device);
        Measurement time = Time("gemm", $"{n}^3", _ => device.Backend.Gemm(a, false, b, true, 1, 0, c), null, null);
        return 2.0 * n * n * n / time.Milliseconds / 1e9;
    }

    private Measurement Time(string name, string shape, Action<int> body, double? floor, double? error)
    {
        using var start = new CudaEvent(device.Context, timing: true);
        using var end = new CudaEvent(device.Context, timing: true);
        var times = new double[Repeats];
        for (int i = -3; i < Repeats; i++)
        {
            start.Record(device.Stream);
            body(i + 3);
            end.Record(device.Stream);
            end.Synchronize();
            if (i >= 0) times[i] = CudaEvent.ElapsedMilliseconds(start, end);
        }
        Array.Sort(times);
        double median = times[Repeats / 2];
        return new Measurement(name, shape, median, times[0], times[^1], floor is null ? null : median / floor, error);
    }

    /// <summary>Standard normal bf16 values, made on the host from a seed in blocks.</summary>
    internal static Tensor RandomTensor(Device device, Shape shape, int seed)
    {
        var random = new Random(seed);
        var block = new BF16[Math.Min(shape.Count, 1 << 22)];
        for (int i = 0; i < block.Length; i++)
            block[i] = (BF16)(float)(Math.Sqrt(-2 * Math.Log(1 - random.NextDouble())) * Math.Cos(2 * Math.PI * random.NextDouble()));
        Tensor tensor = Tensor.Empty(shape, DType.BF16, device);
        for (long at = 0; at < shape.Count; at += block.Length)
        {
            var part = System.Runtime.InteropServices.MemoryMarshal.AsBytes(block.AsSpan(0, (int)Math.Min(block.Length, shape.Count - at)));
            device.CopyFromHost(part, tensor.Pointer + (nint)(at * 2));
        }
        return tensor;
    }
}
