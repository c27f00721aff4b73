using System.Text.Json;
using LaspNative.Runtime;
using LaspNative.Runtime.Cuda;

namespace LaspNative.Perf;

/// <summary>
/// Times the kernels on the GPU at hand against ceilings measured in the same run. Every row is first checked against fp64 on the inputs that are timed; a wrong row is told and not timed,
/// and the others go on. Inputs are random and rotate through more memory than the L2 holds; times are medians of CUDA events.
/// </summary>
internal sealed class GpuHarness(HarnessOptions options, TextWriter text)
{
    private readonly ResultTable _table = new(text);
    private readonly Dictionary<string, double> _peer = options.Peer is null ? [] : ReadPeer(options.Peer);
    private readonly List<Measurement> _rows = [];

    /// <summary>Runs what the options ask for and writes the record. True when no row was wrong.</summary>
    public bool Run()
    {
        PerformanceRecord? before = options.Compare is null ? null : PerformanceRecord.Read(options.Compare);
        // Held open to the end: the GPU's context lives as long as one device of it.
        using var device = (CudaDevice)Device.Open("cuda:0");
        (double copy, double gemm) = Ceilings.Of(device);
        var record = new PerformanceRecord(PerformanceRecord.DescribeMachine(), PerformanceRecord.DescribeCommit(), PerformanceRecord.Today(), copy, gemm, _rows);
        _table.Head(record);
        foreach (Problem problem in Suite.Problems(options.LengthsOrDefault([8192, 32_768, 131_072])))
        {
            Row[] wanted = [.. problem.Rows.Where(r => options.Wants(r.Name))];
            if (wanted.Length == 0) continue;
            Measure(problem, wanted, copy);
            record.Write(options.Out);
        }
        if (before is not null) _table.Comparison(record, before);
        _table.Summary(record, options.Out);
        return _rows.TrueForAll(r => r.Fault is null);
    }

    /// <summary>One problem on a device of its own.</summary>
    private void Measure(Problem problem, Row[] rows, double copyGigabytesPerSecond)
    {
        using var device = (CudaDevice)Device.Open("cuda:0");
        using var clock = new GpuClock(device);
        using (problem)
        {
            Exception? failure = Attempt(() => problem.Open(device));
            long inputsAndResults = device.Memory.Current - device.Memory.CurrentOf(MemoryCategory.Workspace);
            foreach (Row row in rows)
            {
                var measured = new Measurement(row.Name, row.Shape) { Fault = failure?.Message };
                if (failure is null && Attempt(() => measured = Measure(row, device, clock, inputsAndResults, copyGigabytesPerSecond)) is { } error)
                    measured = measured with { Fault = error.Message };
                _rows.Add(measured);
                _table.Row(measured);
            }
        }
    }

    private Measurement Measure(Row row, CudaDevice device, GpuClock clock, long inputsAndResults, double copyGigabytesPerSecond)
    {
        device.Memory.ResetPeak();
        row.Call(0);
        double extra = (device.Memory.Peak - inputsAndResults) / (double)(1 << 20);
        double error = row.Error();
        var judged = new Measurement(row.Name, row.Shape) { Error = error };
        if (!(error <= Row.Bound)) return judged with { Error = null, Fault = $"relative error {error:g3} against fp64, at most {Row.Bound} is right: not timed" };
        Times times = clock.Time(row.Call);
        var figures = new SortedDictionary<string, double>(StringComparer.Ordinal);
        if (row.FloorBytes > 0)
        {
            double timesFloor = times.Median / (row.FloorBytes / copyGigabytesPerSecond / 1e6);
            figures[row.FloorUnit] = row.FloorUnit == Units.CopyPercent ? 100 / timesFloor : timesFloor;
        }
        if (row.Flops > 0) figures[Units.Teraflops] = row.Flops / times.Median / 1e9;
        if (_peer.TryGetValue(row.Name, out double peer)) figures[Units.PeerPercent] = 100 * peer / times.Median;
        if (row.TellsMemory) figures[Units.ExtraMebibytes] = extra;
        return judged with
        {
            Milliseconds = times.Median,
            Fastest = times.Fastest,
            Slowest = times.Slowest,
            Repeats = times.Repeats,
            Figures = figures,
            Kernels = KernelProfile.Of(device, row.Call),
        };
    }

    /// <summary>What went wrong, if anything: one row's failure is not the others'.</summary>
    private static Exception? Attempt(Action action)
    {
        try
        {
            action();
            return null;
        }
        catch (Exception e) when (e is not OutOfMemoryException)
        {
            return e;
        }
    }

    private static Dictionary<string, double> ReadPeer(string file) =>
        JsonSerializer.Deserialize<Dictionary<string, double>>(File.ReadAllText(file)) ?? throw new LaspException($"{file} holds no times");
}
