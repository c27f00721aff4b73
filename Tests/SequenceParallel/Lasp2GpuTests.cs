using LaspNative.Collectives;
using LaspNative.Runtime;
using Xunit;

namespace LaspNative.Tests.SequenceParallel;

/// <summary>LASP-2 over ranks that share one GPU, in fp32.</summary>
[Trait("Category", "Gpu")]
public class Lasp2GpuTests
{
    [Theory]
    [InlineData(1, 130, false)]
    [InlineData(2, 65, true)]
    [InlineData(3, 2, true)]
    [InlineData(4, 1000, true)]
    public void Every_rank_equals_the_definition(int w, int n, bool decay)
    {
        Gpu.Require();
        Dictionary<string, double> errors = new StrategyCase(w, n, DType.F32) { Decay = decay ? DecayKind.Head : DecayKind.None, States = decay }.Errors(new WorldOptions(DeviceKind.Cuda, VirtualRanks: true));
        Assert.All(errors, e => Assert.True(e.Value <= 5e-5, $"{e.Key}: {e.Value:e2}"));
    }
}

/// <summary>The same over NCCL, one GPU per rank.</summary>
[Trait("Category", "TwoGpus")]
public class Lasp2NcclTests
{
    [Theory]
    [InlineData(1, false)]
    [InlineData(65, true)]
    [InlineData(1000, true)]
    public void Every_rank_equals_the_definition(int n, bool decay)
    {
        Gpu.Require(2);
        Dictionary<string, double> errors = new StrategyCase(2, n, DType.F32) { Decay = decay ? DecayKind.Head : DecayKind.None, States = decay }.Errors(new WorldOptions(DeviceKind.Cuda));
        Assert.All(errors, e => Assert.True(e.Value <= 5e-5, $"{e.Key}: {e.Value:e2}"));
    }

    [Fact]
    public void Bytes_per_layer_are_the_formula()
    {
        Gpu.Require(2);
        var @case = new StrategyCase(2, 256, DType.F32) { Decay = DecayKind.Head };
        long state = @case.B * @case.H * @case.D * @case.E * sizeof(float);
        var sent = new long[2];
        @case.Errors(new WorldOptions(DeviceKind.Cuda), rank => sent[rank.Rank] = rank.World.Counters.BytesSent);
        Assert.All(sent, bytes => Assert.Equal(2 * (2 - 1) * state, bytes));
    }
}
