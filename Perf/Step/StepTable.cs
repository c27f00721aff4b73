using System.Globalization;
using LaspNative.Runtime;

namespace LaspNative.Perf;

/// <summary>The rows of "step" as they come: speed with what it must reach, memory by category, and the step's parts.</summary>
internal sealed class StepTable(TextWriter text)
{
    public void Head(PerformanceRecord record, DeviceKind kind)
    {
        string product = kind == DeviceKind.Cuda ? "bf16 GEMM 8192^3" : "fp32 GEMM 1024^3";
        Line($"{record.Machine}; {record.Commit}; copy {record.CopyGigabytesPerSecond:f0} GB/s (read + written), {product} {record.GemmTeraflops:0.00} TFLOP/s");
        Line($"{"",-84} {"ms/step",9} {"tokens/s",9} {"TFLOP/s",8} {"of GEMM",8} {"of sheet",8} {"exposed",8} {"peak GiB",9}");
    }

    public void Row(Measurement row)
    {
        if ((row.Fault ?? row.Skipped) is { } reason)
        {
            Line($"{row.Name,-84} {(row.Fault is null ? "not run: " : "FAILED: ")}{reason}");
            return;
        }
        Line($"{row.Name,-84} {row.Milliseconds,9:0.0} {Of(row, Units.TokensPerSecond),9:0} {Of(row, Units.Teraflops),8:0.0} {Of(row, Units.GemmPercent),7:0.0}% {Percent(row, Units.PeakPercent)} {Percent(row, Units.ExposedPercent)} {Of(row, Units.PeakGibibytes),9:0.00}");
        (string unit, double scale) = Of(row, Units.PeakGibibytes) < 1 ? ("MiB", 1024.0) : ("GiB", 1.0); // small models are told apart too
        string memory = string.Join(", ", Enum.GetValues<MemoryCategory>().Select(c => string.Create(CultureInfo.InvariantCulture, $"{c.ToString().ToLowerInvariant()} {scale * Of(row, Units.GibibytesOf(c)):0.00}")));
        Line($"    steps {row.Fastest:0.0} .. {row.Slowest:0.0} ms ({row.Repeats}); {unit} at the peak: {memory}{Optional(row, Units.ReservedGibibytes, "; GiB held from the driver ")}");
        string carrier = row.GradientCarrier is null ? "" : $" (gradients by {row.GradientCarrier})";
        Line($"    per step and rank: {Of(row, Units.SentMebibytes):0.0} MiB sent{carrier}, {Of(row, Units.Launches):0} launches, {Of(row, Units.ManagedKibibytes):0} KiB managed; first loss {Of(row, Units.FirstLoss):0.0000}; case took {row.Seconds:0.0} s{Optional(row, Units.WeakScalingPercent, "; weak scaling % ")}{Optional(row, Units.MemoryOfOneRank, "; memory x one rank ")}{Optional(row, Units.OffloadPercent, "; % of speed without offload ")}{Optional(row, Units.TimesLasp2, "; x lasp2 ")}");
        foreach (Target target in Targets.Of(row))
            if (row.Figure(target.Unit) is { } value) Line($"    {target.Unit} {value:0.0} ({target}: {(target.IsMet(value) ? "met" : "MISSED")})");
        Parts(row);
    }

    private void Parts(Measurement row)
    {
        if (row.Families.Count == 0) return;
        Line($"    one step of {row.ProfiledMilliseconds:0.0} ms with events around each launch:");
        foreach (KernelShare family in row.Families)
            Line($"      {family.Kernel,-32} {family.Milliseconds,9:0.00} ms {100 * family.Milliseconds / row.ProfiledMilliseconds,6:0.0}%  x{family.Launches:0}");
        foreach (KernelShare kernel in row.Kernels.Take(24)) Line($"          {kernel.Kernel,-44} {kernel.Milliseconds,9:0.000} ms  x{kernel.Launches:0}");
    }

    private static double Of(Measurement row, string unit) => row.Figure(unit) ?? 0;

    private static string Percent(Measurement row, string unit) => row.Figure(unit) is { } value ? string.Create(CultureInfo.InvariantCulture, $"{value,7:0.0}%") : "        ";

    private static string Optional(Measurement row, string unit, string before) => row.Figure(unit) is { } value ? string.Create(CultureInfo.InvariantCulture, $"{before}{value:0.000}") : "";

    private void Line(FormattableString line) => text.WriteLine(FormattableString.Invariant(line));
}
