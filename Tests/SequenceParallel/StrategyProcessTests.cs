using System.Reflection;
using System.Text;
using LaspNative.Collectives;
using LaspNative.Runtime;
using Xunit;

namespace LaspNative.Tests.SequenceParallel;

/// <summary>The strategy matrix, reduced, with one process per rank: this program is launched again as the ranks, each of which checks its own results (<see cref="StrategyRank"/>).</summary>
[Collection(nameof(OverNccl))]
public class StrategyProcessTests
{
    [Fact]
    public void Every_process_equals_the_definition_over_TCP() => Launch(DeviceKind.Cpu);

    [Fact]
    [Trait("Category", "TwoGpus")]
    public void Every_process_equals_the_definition_over_NCCL()
    {
        Gpu.Require(2);
        Launch(DeviceKind.Cuda);
    }

    [Fact]
    [Trait("Category", "FourGpus")]
    public void Each_of_four_processes_equals_the_definition_over_NCCL()
    {
        Gpu.Require(4);
        Launch(DeviceKind.Cuda, processes: 4);
    }

    private static void Launch(DeviceKind device, int processes = 2)
    {
        string program = Environment.ProcessPath!;
        string[] entry = Path.GetFileNameWithoutExtension(program) == "dotnet" ? [Assembly.GetEntryAssembly()!.Location] : [];
        using var output = new MemoryStream();
        var errors = new StringWriter();
        string[] arguments = [.. entry, "--filter-class", typeof(StrategyRank).FullName!, "--filter-method", $"*{device}_rank*", "--no-progress"];
        int code = ProcessLauncher.Run(new LaunchOptions(processes), program, arguments, output, errors);
        string log = Encoding.UTF8.GetString(output.ToArray()) + errors;
        Assert.True(code == 0, log);
        Assert.Contains("succeeded: 1", log, StringComparison.Ordinal);
    }
}

/// <summary>What one launched process does. Without a launcher there is nothing to do.</summary>
public class StrategyRank
{
    [Fact]
    public void Cpu_rank_equals_the_definition() => Check(DeviceKind.Cpu, 2e-5);

    [Fact]
    [Trait("Category", "TwoGpus")]
    public void Cuda_rank_equals_the_definition() => Check(DeviceKind.Cuda, 5e-5);

    private static void Check(DeviceKind device, double tolerance)
    {
        if (LaunchedRank.FromEnvironment() is null) Assert.Skip("skipped: runs as a rank of StrategyProcessTests");
        World.Run(new WorldOptions(device), rank =>
        {
            foreach ((string strategy, int w, int n, DecayKind decay, string kind) in StrategyMatrixTests.Matrix([.. StrategyVirtualRankTests.StrategyNames()], [rank.Size]).Select(row => row.Data))
                AssertWithin(StrategyMatrixTests.Case(strategy, w, n, decay, kind, DType.F32), rank, _ => tolerance);
            if (device == DeviceKind.Cpu) return;
            foreach (string strategy in StrategyVirtualRankTests.StrategyNames())
            {
                foreach (DecayKind decay in Enum.GetValues<DecayKind>())
                {
                    StrategyCase @case = StrategyGpuContract.Bf16Case(strategy, rank.Size, decay);
                    Dictionary<string, double> tolerances = @case.Bf16Tolerances();
                    AssertWithin(@case, rank, what => tolerances[what]);
                }
            }
        });
    }

    private static void AssertWithin(StrategyCase @case, RankContext rank, Func<string, double> tolerance) =>
        Assert.All(@case.ErrorsOfRank(rank), e => Assert.True(e.Value <= tolerance(e.Key), $"{@case}: {e.Key}: {e.Value:e2}"));
}
