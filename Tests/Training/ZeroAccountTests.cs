using LaspNative.Autograd;
using LaspNative.Collectives;
using LaspNative.Model;
using LaspNative.Runtime;
using LaspNative.Tests.Model;
using Xunit;

namespace LaspNative.Tests.Training;

/// <summary>What each ZeRO stage costs: bytes held by category and bytes sent per step are the formulas of <see cref="ZeroStage"/>, and every shard's gradient is plain data parallelism's.</summary>
public class ZeroAccountTests
{
    private const int Ranks = 4;
    private const long BucketBytes = 6000;

    private static readonly StepOnRanks s_step = new(
        StepOnRanks.Small with { TieWordEmbeddings = true, NumHiddenLayers = 4, LayerTypes = LayerPattern.Parse("LLN", 4) },
        StepOnRanks.RandomBatch(4, 22, (b, i) => (b + i) % 5 != 0),
        DType.F32);

    /// <summary>One of four data-parallel ranks, each with a batch of its own.</summary>
    private sealed record OneRank(RankContext Rank, LinearLlamaModel Model, ModelReplica Replica, GlobalStep Step, IReadOnlyList<FlatBucket> Layouts)
    {
        public long Elements => Model.Parameters.Sum(p => p.Variable.Shape.Count);

        public long Held(MemoryCategory category) => Rank.Device.Memory.CurrentOf(category);

        public void Backward()
        {
            using Tensor totals = Number(2);
            Step.Run(s_step.Batch, s_step.Batch.Count, stop: false, totals);
        }

        public double SquaredNorm()
        {
            using Tensor sum = Number(1);
            Replica.SquaredNorm(sum);
            return sum.ToDoubles()[0];
        }

        public void Update()
        {
            using Tensor squares = Number(1), loss = Number(1);
            Rank.Device.Backend.Fill(1, loss);
            Replica.SquaredNorm(squares);
            using Tensor factor = GradientClipping.Factor(squares, loss, 1);
            Replica.Update(1e-3, factor);
        }

        private Tensor Number(long count) => Tensor.Empty([count], DType.F32, Rank.Device, MemoryCategory.Workspace);
    }

    private static void Run(ZeroStage stage, DType dtype, Action<OneRank> body) => World.Run(new WorldOptions(DeviceKind.Cpu, Ranks), rank =>
    {
        using var model = new LinearLlamaModel(s_step.Config, rank.Device, dtype, seed: 3);
        using var replica = new ModelReplica(model, rank.World, rank.World, new AdamWOptions(), stage, BucketBytes);
        IReadOnlyList<FlatBucket> layouts = stage == ZeroStage.Parameters
            ? ParameterShards.Blocks(model.ReadingOrder, Ranks)
            : FlatBucket.Cut(model.Parameters.Reverse(), BucketBytes, stage == ZeroStage.None ? 1 : Ranks);
        var step = new GlobalStep(model, rank.World, StepOnRanks.Alone(rank.World, s_step.Batch.Length), replica.Gradients);
        body(new OneRank(rank, model, replica, step, layouts));
    });

    [Theory]
    [InlineData(ZeroStage.None, DType.F32)]
    [InlineData(ZeroStage.OptimizerStates, DType.F32)]
    [InlineData(ZeroStage.Gradients, DType.F32)]
    [InlineData(ZeroStage.Parameters, DType.F32)]
    [InlineData(ZeroStage.None, DType.BF16)]
    [InlineData(ZeroStage.OptimizerStates, DType.BF16)]
    [InlineData(ZeroStage.Gradients, DType.BF16)]
    [InlineData(ZeroStage.Parameters, DType.BF16)]
    public void Bytes_held_by_category_are_the_formula(ZeroStage stage, DType dtype) => Run(stage, dtype, rank =>
    {
        int p = dtype.Size(), o = dtype == DType.F32 ? 8 : 12;
        long whole = rank.Elements, padded = rank.Layouts.Sum(l => l.Length);
        using var bare = new LinearLlamaModel(s_step.Config, rank.Rank.Device, dtype, seed: 3);
        long before = rank.Held(MemoryCategory.Parameters);
        bare.Dispose();
        long constants = before - rank.Held(MemoryCategory.Parameters) - (p * whole); // the layers' decays
        long own = rank.Layouts.SelectMany(l => l.SegmentsOf(rank.Rank.Rank)).Sum(s => s.Count);
        for (int pass = 0; pass < 2; pass++)
        {
            rank.Rank.Device.Memory.ResetPeak();
            rank.Backward();
            Assert.Equal(4 * (stage >= ZeroStage.Gradients ? padded / Ranks : padded), rank.Held(MemoryCategory.Gradients));
            rank.Update();
            Assert.Equal(0, rank.Held(MemoryCategory.Gradients));
            Assert.Equal(o * (stage >= ZeroStage.OptimizerStates ? own : whole), rank.Held(MemoryCategory.Optimizer));
            long parameters = stage switch { ZeroStage.None => whole, ZeroStage.Parameters => padded / Ranks, _ => padded };
            Assert.Equal((p * parameters) + constants, rank.Held(MemoryCategory.Parameters));
        }
        Assert.InRange(padded - whole, 0, FlatBucket.Alignment * (rank.Model.Parameters.Count + (Ranks * rank.Layouts.Count)));
        if (stage != ZeroStage.None) Assert.InRange(own, 0, padded / Ranks);
        if (stage < ZeroStage.Gradients) return;
        long buckets = 3 * rank.Layouts.Max(l => l.Length), embedding = 40 * 24, moving = 32 * 24; // the head's gradient is there from forward on, and another may be on its way to its bucket
        Assert.InRange(rank.Rank.Device.Memory.PeakOf(MemoryCategory.Gradients), 4 * padded / Ranks, 4 * ((padded / Ranks) + buckets + embedding + moving));
        if (stage != ZeroStage.Parameters) return;
        long outside = rank.Layouts[^1].Length, block = rank.Layouts.SkipLast(1).Max(l => l.Length);
        Assert.Equal((p * ((padded / Ranks) + outside + (2 * block))) + constants, rank.Rank.Device.Memory.PeakOf(MemoryCategory.Parameters));
    });

    [Theory]
    [InlineData(ZeroStage.None, DType.F32)]
    [InlineData(ZeroStage.OptimizerStates, DType.F32)]
    [InlineData(ZeroStage.Gradients, DType.F32)]
    [InlineData(ZeroStage.Parameters, DType.F32)]
    [InlineData(ZeroStage.OptimizerStates, DType.BF16)]
    [InlineData(ZeroStage.Parameters, DType.BF16)]
    public void Bytes_sent_per_step_are_the_formula(ZeroStage stage, DType dtype) => Run(stage, dtype, rank =>
    {
        const int Numbers = 12 + 12; // two numbers of labels; loss and stop
        int p = dtype.Size(), norm = stage == ZeroStage.None ? 0 : 6;
        long padded = rank.Layouts.Sum(l => l.Length), last = rank.Layouts[0].Length, outside = rank.Layouts[^1].Length;
        CommunicationCounters sent = rank.Rank.World.Counters;
        for (int pass = 0; pass < 2; pass++)
        {
            sent.Reset();
            rank.Backward();
            rank.Update();
            Assert.Equal((stage == ZeroStage.None ? 2 * (Ranks - 1) * 4 * padded / Ranks : 0) + Numbers + norm, sent.BytesSentBy(CollectiveKind.AllReduce));
            Assert.Equal(stage == ZeroStage.None ? 0 : (Ranks - 1) * 4 * padded / Ranks, sent.BytesSentBy(CollectiveKind.ReduceScatter));
            long gathered = stage switch { ZeroStage.None => 0, ZeroStage.Parameters => (2 * padded) - last - outside, _ => padded };
            long orders = pass == 0 ? (Ranks - 1) * 4 * rank.Layouts.Count : 0; // told once
            Assert.Equal(((Ranks - 1) * p * gathered / Ranks) + orders, sent.BytesSentBy(CollectiveKind.AllGather));
            if (dtype == DType.F32) Assert.InRange(sent.BytesSent - Numbers - norm, 0, 1.5 * 2 * (Ranks - 1) * 4 * padded / Ranks);
        }
    });

    [Theory]
    [InlineData(ZeroStage.OptimizerStates)]
    [InlineData(ZeroStage.Gradients)]
    [InlineData(ZeroStage.Parameters)]
    public void Every_shard_holds_the_gradient_of_plain_data_parallelism(ZeroStage stage)
    {
        var plain = new Dictionary<string, double[]>(StringComparer.Ordinal);
        double norm = 0;
        Run(ZeroStage.None, DType.F32, rank =>
        {
            rank.Backward();
            if (rank.Rank.Rank != 0) return;
            foreach (NamedParameter parameter in rank.Model.Parameters) plain.Add(parameter.Name, parameter.Variable.Gradient!.ToDoubles());
            norm = rank.SquaredNorm();
        });
        Run(stage, DType.F32, rank =>
        {
            rank.Backward();
            for (int i = 0; i < rank.Layouts.Count; i++)
            {
                using Tensor shard = rank.Replica.Gradients.TakeShard(i);
                double[] values = shard.ToDoubles();
                foreach (FlatSegment segment in rank.Layouts[i].SegmentsOf(rank.Rank.Rank))
                    Assert.Equal(plain[segment.Parameter.Name].AsSpan((int)segment.First, (int)segment.Count), values.AsSpan((int)segment.Start, (int)segment.Count));
            }
            rank.Backward();
            Assert.Equal(norm, rank.SquaredNorm(), 1e-5 * norm);
        });
        Assert.True(norm > 0);
    }

    [Theory]
    [InlineData(ZeroStage.OptimizerStates)]
    [InlineData(ZeroStage.Parameters)]
    public void A_checkpoint_takes_one_tensor_more_on_rank_0_and_one_part_on_the_others(ZeroStage stage)
    {
        using var folder = new TemporaryFolder();
        Run(stage, DType.F32, rank =>
        {
            rank.Backward();
            rank.Update();
            rank.Rank.World.Barrier(); // what was staged for the others has been read
            MemoryLedger memory = rank.Rank.Device.Memory;
            long before = memory.Current;
            memory.ResetPeak();
            if (rank.Rank.Rank == 0)
            {
                SafetensorsWriter.Write(folder["model"], rank.Replica.Parameters());
                SafetensorsWriter.Write(folder["optimizer"], rank.Replica.OptimizerState());
            }
            else
            {
                Checkpoint.Contribute(rank.Replica);
            }
            long largest = 4 * rank.Model.Parameters.Max(p => p.Variable.Shape.Count);
            Assert.Equal(rank.Rank.Rank == 0 ? largest : 0, memory.PeakOf(MemoryCategory.Workspace));
            Assert.InRange(memory.Peak - before, 0, 3 * largest); // that, and two tensors' parts on their way
        });
        using SafetensorsFile optimizer = SafetensorsFile.Open(folder["optimizer"]);
        Assert.Contains("model.embed_tokens.weight.exp_avg_sq", optimizer.Names);
    }

    /// <summary>What the model reads before its blocks or in the first is updated as one range, and sent before the others are updated: also where short parameters of all blocks share a bucket.</summary>
    [Theory]
    [InlineData(1)]
    [InlineData(3000)]
    [InlineData(BucketBytes)]
    [InlineData(20000)]
    public void Buckets_of_what_is_read_first_come_last(long bytes) => Run(ZeroStage.None, DType.F32, rank =>
    {
        IReadOnlyList<FlatBucket> layouts = FlatBucket.Cut(rank.Model.Parameters.Reverse(), bytes, Ranks);
        bool[] first = [.. layouts.Select(layout => layout.Pieces.Any(p => rank.Model.ReadingOrder.FirstReader(p.Parameter) <= 0))];
        Assert.Contains(false, first);
        Assert.DoesNotContain(false, first.SkipWhile(isFirst => !isFirst));
        Assert.True(first[^1]);
    });

    [Fact]
    public void Every_element_of_every_parameter_lies_in_one_shard() => Run(ZeroStage.None, DType.F32, rank =>
    {
        foreach (IReadOnlyList<FlatBucket> layouts in (IReadOnlyList<FlatBucket>[])[ParameterShards.Blocks(rank.Model.ReadingOrder, 3), FlatBucket.Cut(rank.Model.Parameters, 4000, 7)])
        {
            Dictionary<string, long> found = rank.Model.Parameters.ToDictionary(p => p.Name, _ => 0L, StringComparer.Ordinal);
            foreach (FlatBucket layout in layouts)
            {
                Assert.Equal(0, layout.ShardLength % FlatBucket.Alignment);
                for (int r = 0; r < layout.Ranks; r++)
                {
                    foreach (FlatSegment segment in layout.SegmentsOf(r))
                    {
                        Assert.Equal(found[segment.Parameter.Name], segment.First);
                        Assert.Equal(0, segment.Start % FlatBucket.Alignment);
                        found[segment.Parameter.Name] += segment.Count;
                    }
                }
            }
            Assert.All(rank.Model.Parameters, p => Assert.Equal(p.Variable.Shape.Count, found[p.Name]));
        }
    });
}
