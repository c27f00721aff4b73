using System.Globalization;
using System.Reflection;
using System.Text.Encodings.Web;
using System.Text.Json;
using System.Text.Json.Serialization;
using LaspNative.Runtime;

namespace LaspNative.Perf;

/// <summary>The share of one kernel in a row: its time per repetition and how often it was launched in it.</summary>
internal sealed record KernelShare(string Kernel, double Milliseconds, double Launches);

/// <summary>One measured row. Without a fault its results were right and <see cref="Milliseconds"/> is the median of <see cref="Repeats"/>.</summary>
internal sealed record Measurement(string Name, string Shape)
{
    public double Milliseconds { get; init; }

    public double Fastest { get; init; }

    public double Slowest { get; init; }

    public int Repeats { get; init; }

    /// <summary>By unit (<see cref="Units"/>).</summary>
    public SortedDictionary<string, double> Figures { get; init; } = new(StringComparer.Ordinal);

    /// <summary>Worst relative error of the results against fp64; null where there was none to compute.</summary>
    public double? Error { get; init; }

    /// <summary>Why the row was not timed; null when it was.</summary>
    public string? Fault { get; init; }

    /// <summary>Why the row was not even tried, which is no fault; null when it was.</summary>
    public string? Skipped { get; init; }

    /// <summary>Of a training step over several ranks: what carries its long gradients (<see cref="LaspNative.Collectives.ICommunicator.Carrier"/>), which options and GPUs decide; null for one rank, and in records from before it was told.</summary>
    public string? GradientCarrier { get; init; }

    public IReadOnlyList<KernelShare> Kernels { get; init; } = [];

    /// <summary>Of a training step: the families of kernels, the waiting and the rest, in the step of <see cref="ProfiledMilliseconds"/>.</summary>
    public IReadOnlyList<KernelShare> Families { get; init; } = [];

    public double ProfiledMilliseconds { get; init; }

    /// <summary>What all of it took, with what came before the first step.</summary>
    public double Seconds { get; init; }

    /// <summary>The figure in a unit; the time itself in milliseconds.</summary>
    public double? Figure(string unit) => Fault is not null || Skipped is not null ? null : unit == Units.Milliseconds ? Milliseconds : Figures.TryGetValue(unit, out double value) ? value : null;
}

/// <summary>What one run of the harness leaves behind.</summary>
internal sealed record PerformanceRecord(string Machine, string Commit, string Date, double CopyGigabytesPerSecond, double GemmTeraflops, IReadOnlyList<Measurement> Rows)
{
    private static readonly JsonSerializerOptions s_json = new()
    {
        WriteIndented = true,
        Encoder = JavaScriptEncoder.UnsafeRelaxedJsonEscaping,
        NumberHandling = JsonNumberHandling.AllowNamedFloatingPointLiterals,
    };

    /// <summary>GPUs, driver and compiler of this machine in one line.</summary>
    public static string DescribeMachine(DeviceKind kind = DeviceKind.Cuda)
    {
        if (kind == DeviceKind.Cpu) return $"CPU, {Environment.ProcessorCount} cores";
        SystemReport system = SystemProbe.Run();
        GpuReport gpu = system.Gpus[0];
        return $"{system.Gpus.Count} x {gpu.Name}, {gpu.MultiprocessorCount} SMs, {gpu.MemoryBytes >> 30} GiB, driver {system.DriverRelease}, NVRTC {system.Nvrtc.Version}";
    }

    /// <summary>The source revision that the build wrote behind the version.</summary>
    public static string DescribeCommit() =>
        typeof(PerformanceRecord).Assembly.GetCustomAttribute<AssemblyInformationalVersionAttribute>()?.InformationalVersion ?? "unknown";

    public static string Today() => DateTime.UtcNow.ToString("yyyy-MM-dd HH:mm", CultureInfo.InvariantCulture);

    public void Write(string file) => File.WriteAllText(file, JsonSerializer.Serialize(this, s_json) + "\n");

    public static PerformanceRecord Read(string file)
    {
        try
        {
            return JsonSerializer.Deserialize<PerformanceRecord>(File.ReadAllText(file), s_json) ?? throw new JsonException("it is empty");
        }
        catch (JsonException e)
        {
            throw new LaspException($"{file} is not a record of the harness: {e.Message}", e);
        }
    }
}
