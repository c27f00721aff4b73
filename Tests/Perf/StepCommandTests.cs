using LaspNative.Perf;
using LaspNative.Runtime;
using LaspNative.Tests.Model;
using Xunit;

namespace LaspNative.Tests.Perf;

public class StepCommandTests
{
    private const string Model = "linear-llama3-1b-test";

    [Fact]
    public void Cases_are_measured_and_told_in_a_record()
    {
        using var folder = new TemporaryFolder();
        string file = folder["record.json"];
        PerformanceRecord record = Run(file, "--case", "--seq-len 64", "--case", "--seq-len 128 --ranks 2 --output-gate on", "--case", "--seq-len 128 --ranks 2 --strategy lasp1 --checkpointing block");
        Assert.Equal(
            [$"step {Model} N=64 B=2 W=1", $"step {Model} N=128 B=2 W=2 gate lasp2", $"step {Model} N=128 B=2 W=2 lasp1 checkpointing=block"],
            record.Rows.Select(r => r.Name));
        Assert.All(record.Rows, r => Assert.Null(r.Fault));
        Assert.All(record.Rows, r => Assert.Equal(2, r.Repeats));
        Measurement row = record.Rows[0];
        Assert.Equal(128 / row.Milliseconds * 1e3, row.Figure(Units.TokensPerSecond)!.Value, 1e-6);
        Assert.Equal(Math.Log(256), row.Figure(Units.FirstLoss)!.Value, 0.3);
        Assert.Equal(row.Figure(Units.PeakGibibytes)!.Value, Enum.GetValues<MemoryCategory>().Sum(c => row.Figure(Units.GibibytesOf(c))!.Value), 1e-9);
        Assert.True(row.Figure(Units.GibibytesOf(MemoryCategory.Parameters)) > 0);
        Assert.Equal(0, row.Figure(Units.SentMebibytes));
        // Two ranks sum fp32 gradients: each sends as many bytes as its parameters have, and the messages of attention.
        Assert.True(record.Rows[1].Figure(Units.SentMebibytes) > 1024 * record.Rows[1].Figure(Units.GibibytesOf(MemoryCategory.Parameters)));
        Assert.NotNull(record.Rows[1].Figure(Units.ExposedPercent));
        Assert.Equal([null, "copies in memory", "copies in memory"], record.Rows.Select(r => r.GradientCarrier));
    }

    [Fact]
    public void Rows_say_what_they_are_to_one_another()
    {
        using var folder = new TemporaryFolder();
        PerformanceRecord record = Run(folder["record.json"], "--case", "--seq-len 64", "--case", "--seq-len 128 --ranks 2", "--case", "--seq-len 128 --ranks 2 --strategy lasp1");
        Measurement alone = record.Rows[0], two = record.Rows[1], lasp1 = record.Rows[2];
        Assert.Equal(50 * two.Figure(Units.TokensPerSecond)!.Value / alone.Figure(Units.TokensPerSecond)!.Value, two.Figure(Units.WeakScalingPercent)!.Value, 1e-6);
        Assert.Equal(two.Figure(Units.PeakGibibytes)!.Value / alone.Figure(Units.PeakGibibytes)!.Value, two.Figure(Units.MemoryOfOneRank)!.Value, 1e-9);
        Assert.Equal(lasp1.Milliseconds / two.Milliseconds, lasp1.Figure(Units.TimesLasp2)!.Value, 1e-9);
        Assert.Null(two.Figure(Units.TimesLasp2));
    }

    [Fact]
    public void A_case_that_fails_is_told_and_the_others_go_on()
    {
        using var folder = new TemporaryFolder();
        PerformanceRecord record = Run(folder["record.json"], expected: 1, "--case", "--seq-len 64 --dp 3", "--case", "--seq-len 64");
        Assert.Contains("3 data-parallel groups", record.Rows[0].Fault, StringComparison.Ordinal);
        Assert.Null(record.Rows[1].Fault);
    }

    [Fact]
    public void The_limit_ends_a_case_between_steps()
    {
        using var folder = new TemporaryFolder();
        Measurement row = Run(folder["record.json"], "--limit", "0", "--case", "--seq-len 64 --ranks 2").Rows[0];
        Assert.Null(row.Fault);
        Assert.InRange(row.Repeats, 1, 2);
    }

    [Fact]
    public void A_spent_budget_begins_no_case_and_is_no_fault()
    {
        using var folder = new TemporaryFolder();
        Measurement row = Run(folder["record.json"], "--budget", "0", "--case", "--seq-len 64").Rows[0];
        Assert.Contains("budget", row.Skipped, StringComparison.Ordinal);
        Assert.Null(row.Fault);
        Assert.Null(row.Figure(Units.TokensPerSecond));
    }

    [Theory]
    [InlineData("case \"--sequence 3\"", "--case", "--sequence 3")]
    [InlineData("case \"--steps 3\": --steps is for all cases", "--case", "--steps 3")]
    [InlineData("step: ", "--steps", "0")]
    public void Wrong_usage_is_one_line(string start, params string[] arguments)
    {
        var error = Assert.Throws<LaspException>(() => StepCommand.Run([.. arguments], TextWriter.Null));
        Assert.StartsWith(start, error.Message, StringComparison.Ordinal);
        Assert.DoesNotContain('\n', error.Message);
    }

    [Fact]
    [Trait("Category", "Gpu")]
    public void A_step_on_a_GPU_is_divided_among_families_of_kernels()
    {
        Gpu.Require();
        using var folder = new TemporaryFolder();
        Measurement row = Run(folder["record.json"], "--device", "cuda", "--preset", "linear-llama3-1b-hybrid4-test", "--breakdown", "--case", "--seq-len 512").Rows[0];
        Assert.Null(row.Fault);
        string[] families = ["GEMM", "linear attention", "softmax attention", "element-wise and norms", "loss (without its GEMMs)", "optimizer and gradient norm"];
        Assert.Equal(families, families.Intersect(row.Families.Select(f => f.Kernel)));
        Assert.All(row.Families, f => Assert.True(f.Milliseconds > 0, $"{f.Kernel} took {f.Milliseconds} ms"));
        Assert.Equal(row.Families.Sum(f => f.Launches), row.Kernels.Sum(k => k.Launches));
        Assert.InRange(row.Kernels.Sum(k => k.Milliseconds), 0, row.ProfiledMilliseconds);
    }

    private static PerformanceRecord Run(string file, params string[] arguments) => Run(file, 0, arguments);

    private static PerformanceRecord Run(string file, int expected, params string[] arguments)
    {
        string[] model = arguments.Contains("--preset") ? [] : ["--preset", Model, "--device", "cpu"];
        int code = StepCommand.Run([.. model, "--warmup", "1", "--steps", "2", "--json", file, .. arguments], TextWriter.Null);
        Assert.Equal(expected, code);
        return PerformanceRecord.Read(file);
    }
}
