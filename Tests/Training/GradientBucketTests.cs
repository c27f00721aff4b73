using LaspNative.Autograd;
using LaspNative.Collectives;
using LaspNative.Model;
using LaspNative.Runtime;
using LaspNative.Tests.Model;
using Xunit;

namespace LaspNative.Tests.Training;

/// <summary>Gradients summed in buckets while backward runs: the same bits for any bucket size, every byte by the formula, messages on their way before the pass ends.</summary>
public class GradientBucketTests
{
    private static StepOnRanks Step(bool tied) => new(
        StepOnRanks.Small with { TieWordEmbeddings = tied, LayerTypes = LayerPattern.Parse("LN", 2) },
        StepOnRanks.RandomBatch(4, 22, (b, i) => (b + i) % 5 != 0),
        DType.F32);

    [Theory]
    [InlineData(1, 4, true)]
    [InlineData(2, 2, true)]
    [InlineData(4, 1, true)]
    [InlineData(2, 2, false)]
    public void The_size_of_buckets_changes_no_bit_of_any_gradient(int dp, int sp, bool tied)
    {
        StepOnRanks step = Step(tied);
        step.AssertEqualsOneRank(dp, sp);
        Dictionary<string, double[]> one = (step with { BucketBytes = 1 }).Evaluate(dp, sp)[0].Gradients; // each parameter alone
        foreach (long bytes in (long[])[6000, 1 << 30])
        {
            foreach ((_, Dictionary<string, double[]> gradients) in (step with { BucketBytes = bytes }).Evaluate(dp, sp))
                Assert.All(one, p => Assert.Equal(p.Value, gradients[p.Key]));
        }
    }

    [Theory]
    [InlineData(1, 22, 14)]
    [InlineData(6000, 17, 9)]
    [InlineData(1 << 30, 1, 0)]
    [InlineData(1, 22, 14, DType.BF16)]
    [InlineData(1 << 30, 3, 1, DType.BF16)]
    public void Messages_leave_during_backward_and_their_bytes_are_the_formulas(long bytes, int buckets, int beforeEmbedding, DType dtype = DType.F32)
    {
        World.Run(new WorldOptions(DeviceKind.Cpu, 2), rank =>
        {
            StepOnRanks step = Step(tied: true);
            using var model = new LinearLlamaModel(step.Config, rank.Device, dtype, seed: 3, gradientDType: dtype, keepsInitialValues: false);
            using GradientBuckets gradients = GradientBuckets.WholeOnEveryRank(model.Parameters, rank.World, bytes);
            var global = new GlobalStep(model, rank.World, StepOnRanks.Alone(rank.World, step.Batch.Length), gradients);
            using Tensor totals = Tensor.Empty([2], DType.F32, rank.Device);
            Variable embedding = model.Parameters[0].Variable;
            Action<Variable> complete = embedding.GradientCompleted!;
            const int Others = 2; // the number of labels, and the loss
            long during = 0;
            embedding.GradientCompleted = v =>
            {
                during = rank.World.Counters.MessagesBy(CollectiveKind.AllReduce);
                complete(v);
            };
            for (int pass = 0; pass < 2; pass++)
            {
                rank.World.Counters.Reset();
                global.Run(step.Batch, step.Batch.Count, stop: false, totals);
                Assert.Equal(beforeEmbedding, during - Others); // all but the embedding's bucket, and seven products of the first block that keep the GPU busy while it travels
                Assert.Equal(buckets + Others, rank.World.Counters.MessagesBy(CollectiveKind.AllReduce));
                long padding = FlatBucket.Cut(model.Parameters.Reverse(), bytes, 1).Sum(b => b.Padding * b.GradientDType.Size());
                long size = model.Parameters.Sum(p => p.Variable.Shape.Count * (p.Name.StartsWith("model.layers.", StringComparison.Ordinal) ? dtype.Size() : 4));
                Assert.InRange(padding, 0, 4 * FlatBucket.Alignment * model.Parameters.Count);
                Assert.Equal(size + padding + 8 + 8, rank.World.Counters.BytesSentBy(CollectiveKind.AllReduce)); // 2 (R-1)/R = 1
                foreach (NamedParameter parameter in model.Parameters) parameter.Variable.ZeroGradient();
            }
            Assert.Equal(0, rank.Device.Memory.CurrentOf(MemoryCategory.Gradients));
        });
    }
}
