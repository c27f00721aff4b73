using LaspNative.Runtime;
using Xunit;

namespace LaspNative.Tests.Cli;

/// <summary>lasp attend on a GPU that all ranks share, against the fp64 definition: F32 within 5e-5, BF16 within twice the naive op's error.</summary>
[Trait("Category", "Gpu")]
public sealed class AttendGpuTests : IDisposable
{
    private readonly string _folder = Directory.CreateTempSubdirectory("lasp-attend-").FullName;

    public void Dispose() => Directory.Delete(_folder, recursive: true);

    public static TheoryData<DType, int, int, bool> Grid()
    {
        var grid = new TheoryData<DType, int, int, bool>();
        foreach (DType dtype in new[] { DType.F32, DType.BF16 })
            foreach (int ranks in new[] { 1, 2, 3, 4 })
                foreach (int tokens in new[] { 1, 2, 63, 64, 65, 1000 })
                    foreach (bool decay in new[] { false, true }) grid.Add(dtype, ranks, tokens, decay);
        return grid;
    }

    [Theory]
    [MemberData(nameof(Grid))]
    public void Any_number_of_ranks_gives_the_definition(DType dtype, int ranks, int tokens, bool decay)
    {
        Gpu.Require();
        var call = new AttendCase(dtype, tokens, decay) { E = 24 };
        AssertAttends(call, dtype == DType.BF16 ? call.Bf16Tolerance() : _ => 5e-5, "--virtual-ranks", "--ranks", $"{ranks}");
    }

    [Fact]
    public void States_enter_and_leave()
    {
        Gpu.Require();
        AssertAttends(new AttendCase(DType.F32, 130, WithDecay: true) { WithStates = true, Hk = 2, D = 33, E = 5 }, _ => 5e-5, "--virtual-ranks", "--ranks", "3");
    }

    private void AssertAttends(AttendCase call, Func<string, double> tolerance, params string[] more)
    {
        string input = Path.Combine(_folder, "in");
        string output = Path.Combine(_folder, "out");
        call.Write(input);
        LaspRun run = Lasp.Run(["attend", "--input", input, "--output", output, "--device", "cuda", .. more]);
        Assert.True(run.ExitCode == 0, run.Error);
        AttendCase.AssertFile(output, call.Expected(), tolerance);
    }
}
