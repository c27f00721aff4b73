using LaspNative.Autograd;
using LaspNative.Collectives;
using LaspNative.Model;
using LaspNative.Runtime;
using Xunit;

namespace LaspNative.Tests.Training;

/// <summary>
/// Ranks whose gradients are complete in different orders: of the same length, they would be added to each other without a sign. The model is two square matrices, a and b, of which a pass applies either first.
/// </summary>
public class GradientOrderTests
{
    private const int OnCpu = 8;

    internal sealed class TwoMatrices : IDisposable
    {
        private readonly int _width;
        private readonly ZeroStage _stage;
        private readonly NamedParameter[] _parameters;
        private readonly GradientBuckets _gradients;

        public TwoMatrices(ICommunicator group, int width, ZeroStage stage)
        {
            (_width, _stage) = (width, stage);
            _parameters = [.. new[] { "a", "b" }.Select(name => new NamedParameter(name, Variable.Parameter(Tensor.Zeros([width, width], DType.F32, group.Device)), Decays: true))];
            const int EachAlone = 1;
            _gradients = stage == ZeroStage.None
                ? GradientBuckets.WholeOnEveryRank(_parameters, group, EachAlone)
                : new GradientBuckets(FlatBucket.Cut(_parameters.Reverse(), EachAlone, group.Size), group, stage);
        }

        public void Pass(bool fromBToA)
        {
            Device device = _parameters[0].Variable.Device;
            using var tape = new Tape();
            using Tensor dy = Tensor.Zeros([1, _width], DType.F32, device);
            Variable x = tape.Constant(Tensor.Zeros([1, _width], DType.F32, device)), first = _parameters[fromBToA ? 1 : 0].Variable, second = _parameters[fromBToA ? 0 : 1].Variable;
            Linear.Apply(Linear.Apply(x, first), second).Backward(dy);
            _gradients.Finish();
            for (int i = 0; i < _parameters.Length; i++)
            {
                if (_stage == ZeroStage.None) _parameters[i].Variable.ZeroGradient();
                else _gradients.TakeShard(i).Dispose();
            }
        }

        public void Dispose()
        {
            _gradients.Dispose();
            foreach (NamedParameter parameter in _parameters) parameter.Variable.Dispose();
        }
    }

    /// <summary>What every rank throws in the first pass when the last one takes b first, and what one throws when it does so in the third.</summary>
    internal static void AssertFound(WorldOptions world, Func<RankContext, ICommunicator> groupOf, int width, ZeroStage stage)
    {
        int last = world.Ranks!.Value - 1;
        var errors = new Exception?[last + 1];
        LaspException later = Assert.Throws<LaspException>(() => World.Run(world, rank =>
        {
            using ICommunicator group = groupOf(rank);
            using (var model = new TwoMatrices(group, width, stage))
                errors[rank.Rank] = Record.Exception(() => model.Pass(fromBToA: rank.Rank == last));
            using var next = new TwoMatrices(group, width, stage);
            for (int pass = 0; pass < 3; pass++) next.Pass(fromBToA: rank.Rank == last && pass == 2);
        }));
        Assert.All(errors, e => Assert.Equal(
            $"rank {last} has sent the gradients of the bucket of 'a' where rank 0 sent those of 'b', so that sums are wrong; record the same functions on every rank",
            Assert.IsType<LaspException>(e).Message));
        Assert.Equal($"rank {last} has the gradients of the bucket of 'a' where the first pass, whose order all ranks keep to, had those of 'b'; record the same functions in every step", later.Message);
    }

    [Theory]
    [InlineData(2, ZeroStage.None)]
    [InlineData(3, ZeroStage.None)]
    [InlineData(2, ZeroStage.OptimizerStates)]
    [InlineData(2, ZeroStage.Gradients)]
    public void A_rank_whose_order_differs_is_found(int ranks, ZeroStage stage) => AssertFound(new WorldOptions(DeviceKind.Cpu, ranks), r => r.World, OnCpu, stage);

    /// <summary>Before anything has left out of turn; and orders are compared once, whatever they are.</summary>
    [Theory]
    [InlineData(false)]
    [InlineData(true)]
    public void A_pass_out_of_order_sends_nothing_and_those_in_order_nothing_more(bool fromBToA) => World.Run(new WorldOptions(DeviceKind.Cpu, 2), rank =>
    {
        const int Numbers = 2;
        using var model = new TwoMatrices(rank.World, OnCpu, ZeroStage.None);
        for (int pass = 0; pass < 3; pass++)
        {
            rank.World.Counters.Reset();
            model.Pass(fromBToA);
            Assert.Equal(pass == 0 ? Numbers * sizeof(int) : 0, rank.World.Counters.BytesSentBy(CollectiveKind.AllGather));
            Assert.Equal(Numbers * OnCpu * OnCpu * sizeof(float), rank.World.Counters.BytesSentBy(CollectiveKind.AllReduce));
        }
        rank.World.Counters.Reset();
        Assert.Throws<LaspException>(() => model.Pass(!fromBToA));
        Assert.Equal(0, rank.World.Counters.BytesSent);
        rank.World.Barrier();
    });
}

/// <summary>The same between GPUs, for messages that NCCL carries and for those of copy engines.</summary>
[Trait("Category", "TwoGpus")]
[Collection(nameof(OverNccl))]
public class GradientOrderNcclTests
{
    [Theory]
    [InlineData(true, ZeroStage.None)]
    [InlineData(false, ZeroStage.Gradients)]
    public void A_rank_whose_order_differs_is_found(bool byCopyEngines, ZeroStage stage)
    {
        const int Width = 1024; // 4 MiB a matrix: long enough for copy engines
        Gpu.Require(2);
        GradientOrderTests.AssertFound(new WorldOptions(DeviceKind.Cuda, 2) { PeerSums = byCopyEngines }, r => r.World.Background(), Width, stage);
    }
}
