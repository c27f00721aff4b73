using LaspNative.Collectives;
using LaspNative.Model;
using LaspNative.Runtime;
using LaspNative.Tests.Model;
using Xunit;

namespace LaspNative.Tests.Training;

/// <summary>Thirty steps of every ZeRO stage on a GPU that four ranks share, against one rank on it.</summary>
[Trait("Category", "Gpu")]
public class ZeroGpuTests
{
    [Fact]
    public void Virtual_ranks_train_as_one_rank_does_in_every_stage()
    {
        Gpu.Require();
        AssertEveryStage(2, 2, new WorldOptions(DeviceKind.Cuda, 4, VirtualRanks: true));
    }

    internal static void AssertEveryStage(int dp, int sp, WorldOptions world)
    {
        using var folder = new TemporaryFolder();
        StepRecord[] one = ZeroTrainingTests.Steps(ZeroTrainingTests.Options(folder, 1, 1, ZeroStage.None, clip: 0.5) with { World = new WorldOptions(DeviceKind.Cuda, 1), Output = folder["one"] });
        foreach (ZeroStage zero in Enum.GetValues<ZeroStage>())
        {
            StepRecord[] steps = ZeroTrainingTests.Steps(ZeroTrainingTests.Options(folder, dp, sp, zero, clip: 0.5) with { World = world });
            Assert.InRange(ZeroTrainingTests.LargestDifference(one, steps), 0, 1e-3);
        }
    }
}

/// <summary>The same over NCCL, one GPU per rank.</summary>
[Collection(nameof(OverNccl))]
public class ZeroNcclTests
{
    public static IEnumerable<TheoryDataRow<int, int>> Meshes() =>
        OverNccl.ByGpus<TheoryDataRow<int, int>>([(1, 2), (2, 1), (1, 4), (2, 2), (4, 1)], row => row.Data.Item1 * row.Data.Item2);

    [Theory]
    [MemberData(nameof(Meshes))]
    public void Gpus_train_as_one_does_in_every_stage(int dp, int sp)
    {
        Gpu.Require(dp * sp);
        ZeroGpuTests.AssertEveryStage(dp, sp, new WorldOptions(DeviceKind.Cuda, dp * sp));
    }
}
