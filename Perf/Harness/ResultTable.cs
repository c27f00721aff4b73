using System.Globalization;

namespace LaspNative.Perf;

/// <summary>The table as it grows: the verdict first, then time, figures with what they must reach, and where the time went.</summary>
internal sealed class ResultTable(TextWriter text)
{
    /// <summary>A row is slower than before when its time grew by more than this.</summary>
    private const double Slower = 1.05;

    public void Head(PerformanceRecord record) =>
        text.WriteLine(string.Create(
            CultureInfo.InvariantCulture,
            $"{record.Machine}; {record.Commit}; copy {record.CopyGigabytesPerSecond:f0} GB/s (read + written), bf16 GEMM 8192^3 {record.GemmTeraflops:f0} TFLOP/s"));

    public void Row(Measurement row)
    {
        if (row.Fault is not null)
        {
            text.WriteLine($"WRONG {row.Name,-42} {row.Fault}");
            return;
        }
        string error = row.Error is { } e ? string.Create(CultureInfo.InvariantCulture, $"error {e:e1}") : "";
        text.WriteLine(string.Create(
            CultureInfo.InvariantCulture, $"ok    {row.Name,-42} {row.Milliseconds,9:f4} ms [{row.Fastest:f4} .. {row.Slowest:f4}] {error,-14} {string.Join("; ", Figures(row))}"));
        foreach (KernelShare share in row.Kernels)
            text.WriteLine(string.Create(CultureInfo.InvariantCulture, $"        {share.Kernel,-44} {share.Milliseconds,9:f4} ms  x{share.Launches:0.#}"));
    }

    private static IEnumerable<string> Figures(Measurement row)
    {
        Target[] targets = [.. Targets.Of(row)];
        foreach ((string unit, double value) in row.Figures)
            yield return string.Create(CultureInfo.InvariantCulture, $"{value:0.###} {unit}") + Verdict(targets.FirstOrDefault(t => t.Unit == unit), value);
        if (targets.FirstOrDefault(t => t.Unit == Units.Milliseconds) is { } time) yield return $"time{Verdict(time, row.Milliseconds)}";
    }

    private static string Verdict(Target? target, double value) => target is null ? "" : $" ({target}: {(target.IsMet(value) ? "met" : "MISSED")})";

    /// <summary>Every row beside an earlier record's.</summary>
    public void Comparison(PerformanceRecord now, PerformanceRecord before)
    {
        text.WriteLine($"against {before.Commit} of {before.Date} on {before.Machine}:");
        foreach (Measurement row in now.Rows.Where(r => r.Fault is null && r.Skipped is null))
        {
            if (before.Rows.FirstOrDefault(r => r.Name == row.Name && r.Fault is null && r.Skipped is null) is not { } earlier) continue;
            double ratio = row.Milliseconds / earlier.Milliseconds;
            string carriers = row.GradientCarrier == earlier.GradientCarrier ? "" : $"  (gradients by {earlier.GradientCarrier ?? "what was not told"}, now by {row.GradientCarrier})";
            text.WriteLine(string.Create(
                CultureInfo.InvariantCulture, $"  {row.Name,-42} {earlier.Milliseconds,9:f4} -> {row.Milliseconds,9:f4} ms  x {ratio:f3}{(ratio > Slower ? "  SLOWER" : "")}{carriers}"));
        }
    }

    public void Summary(PerformanceRecord record, string file)
    {
        (Target Target, double Value)[] judged = [.. record.Rows.SelectMany(r => Targets.Of(r).Where(t => r.Figure(t.Unit) is not null).Select(t => (t, r.Figure(t.Unit)!.Value)))];
        int wrong = record.Rows.Count(r => r.Fault is not null);
        text.WriteLine($"{record.Rows.Count} rows, {wrong} wrong; {judged.Count(j => j.Target.IsMet(j.Value))} of {judged.Length} targets met; record in {file}");
    }
}
