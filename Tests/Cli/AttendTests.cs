using System.Text.Json;
using LaspNative.Runtime;
using Xunit;

namespace LaspNative.Tests.Cli;

/// <summary>lasp attend against the fp64 definition: every output, for every number of ranks.</summary>
public sealed class AttendTests : IDisposable
{
    private readonly string _folder = Directory.CreateTempSubdirectory("lasp-attend-").FullName;

    public void Dispose() => Directory.Delete(_folder, recursive: true);

    private string PathOf(string name) => Path.Combine(_folder, name);

    public static TheoryData<DType, int, int, bool> Grid()
    {
        var grid = new TheoryData<DType, int, int, bool>();
        foreach (DType dtype in new[] { DType.F32, DType.F64 })
            foreach (int ranks in new[] { 1, 2, 3, 4 })
                foreach (int tokens in new[] { 1, 2, 63, 64, 65, 1000 })
                    foreach (bool decay in new[] { false, true }) grid.Add(dtype, ranks, tokens, decay);
        return grid;
    }

    [Theory]
    [MemberData(nameof(Grid))]
    public void Any_number_of_ranks_gives_the_definition(DType dtype, int ranks, int tokens, bool decay) =>
        AssertAttends(new AttendCase(dtype, tokens, decay), ranks);

    [Theory]
    [InlineData(1)]
    [InlineData(3)]
    public void States_enter_and_leave(int ranks)
    {
        AssertAttends(new AttendCase(DType.F64, 130, WithDecay: true) { WithStates = true }, ranks);
        AssertAttends(new AttendCase(DType.F32, 2, WithDecay: true) { WithStates = true }, ranks);
        AssertAttends(new AttendCase(DType.F32, 65, WithDecay: false) { WithStates = true }, ranks);
    }

    [Theory]
    [InlineData(1)]
    [InlineData(2)]
    public void Key_heads_may_be_fewer_and_widths_may_differ(int ranks)
    {
        AssertAttends(new AttendCase(DType.F64, 70, WithDecay: true) { Hk = 2, D = 8, E = 24 }, ranks);
        AssertAttends(new AttendCase(DType.F32, 70, WithDecay: true) { Hk = 1, D = 33, E = 5, B = 1 }, ranks);
        AssertAttends(new AttendCase(DType.F32, 66, WithDecay: false) { H = 2, Hk = 2, D = 256, E = 192, B = 1 }, ranks);
    }

    [Theory]
    [InlineData(DType.F64)]
    [InlineData(DType.F32)]
    [InlineData(DType.BF16)]
    public void The_decay_gradient_has_the_decay_s_type(DType decay)
    {
        var call = new AttendCase(DType.F32, 65, WithDecay: true) { DecayDType = decay };
        call.AssertAttends("cpu", ranks: 2, name => decay == DType.BF16 && name == "d_log_decay" ? 4e-3 : 2e-5);
    }

    [Theory]
    [InlineData(1, 200, 2)]
    [InlineData(4, 200, 2)]
    [InlineData(2, 1, 4)]
    [InlineData(3, 65, 4)]
    public void Bf16_errs_at_most_twice_as_much_as_the_naive_op(int ranks, int tokens, int keyHeads)
    {
        var call = new AttendCase(DType.BF16, tokens, WithDecay: true) { Hk = keyHeads, E = 24 };
        call.AssertAttends("cpu", ranks, call.Bf16Tolerance());
    }

    [Fact]
    public void Scale_is_taken()
    {
        var call = new AttendCase(DType.F64, 65, WithDecay: true) { Scale = 0.7 };
        call.AssertAttends("cpu", ranks: 2, _ => 1e-11, "--scale", "0.7");
    }

    [Fact]
    public void Without_output_gradient_only_the_forward_results_are_written()
    {
        var call = new AttendCase(DType.F32, 65, WithDecay: true);
        call.Write(PathOf("in"), withGradient: false);
        LaspRun run = Lasp.Run("attend", "--input", PathOf("in"), "--output", PathOf("out"), "--device", "cpu", "--ranks", "2");
        Assert.Equal((0, ""), (run.ExitCode, run.ExitCode == 0 ? "" : run.Error));
        Dictionary<string, (double[] Values, Shape Shape, DType DType)> expected = call.Expected();
        foreach (string gradient in expected.Keys.Where(n => n[0] == 'd').ToArray()) expected.Remove(gradient);
        AttendCase.AssertFile(PathOf("out"), expected, _ => 2e-5);
    }

    [Fact]
    public void The_report_counts_what_the_formula_says()
    {
        var call = new AttendCase(DType.F32, 130, WithDecay: true);
        call.Write(PathOf("in"));
        LaspRun run = Lasp.Run("attend", "--input", PathOf("in"), "--output", PathOf("out"), "--device", "cpu", "--ranks", "4", "--json", PathOf("report"));
        Assert.Equal(0, run.ExitCode);
        Assert.Empty(run.Output);
        using JsonDocument report = JsonDocument.Parse(File.ReadAllText(PathOf("report")));
        Assert.Equal("lasp2", report.RootElement.GetProperty("strategy").GetString());
        Assert.Equal(4, report.RootElement.GetProperty("ranks").GetArrayLength());
        long state = call.B * call.H * call.D * call.E * sizeof(float);
        foreach (JsonElement rank in report.RootElement.GetProperty("ranks").EnumerateArray())
        {
            Assert.Equal(2 * 3 * state, rank.GetProperty("bytes_sent").GetInt64());
            Assert.Equal(2, rank.GetProperty("messages").GetInt64());
        }
    }

    [Fact]
    public void A_real_process_gives_the_same_bytes_as_a_call_in_this_one()
    {
        var call = new AttendCase(DType.F32, 100, WithDecay: true) { Hk = 2 };
        call.Write(PathOf("in"));
        string[] args = ["attend", "--input", PathOf("in"), "--device", "cpu", "--ranks", "3", "--output"];
        LaspRun process = Lasp.RunProcess([.. args, PathOf("process")]);
        Assert.Equal(0, process.ExitCode);
        Assert.Equal("attend: ", process.Error[..8]);
        Assert.Equal(3, JsonDocument.Parse(process.Output).RootElement.GetProperty("ranks").GetArrayLength());
        Assert.Equal(0, Lasp.Run([.. args, PathOf("here")]).ExitCode);
        Assert.Equal(File.ReadAllBytes(PathOf("here")), File.ReadAllBytes(PathOf("process")));
    }

    private static void AssertAttends(AttendCase call, int ranks) => call.AssertAttends("cpu", ranks, _ => call.DType == DType.F64 ? 1e-11 : 2e-5);
}
