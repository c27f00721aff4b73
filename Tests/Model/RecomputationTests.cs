using LaspNative.Autograd;
using LaspNative.Collectives;
using LaspNative.Model;
using LaspNative.Runtime;
using LaspNative.Tests.Oracles;
using Xunit;

namespace LaspNative.Tests.Model;

/// <summary>
/// Blocks that are computed again in backward: the same bits of loss and gradients on every rank, forward messages sent twice to the byte (once where states are kept), and only
/// the blocks' inputs alive between the passes.
/// </summary>
public class RecomputationTests
{
    private const int Tokens = 45;

    private static readonly Recomputation s_block = new() { EveryBlock = 1 };
    private static readonly Recomputation s_keeping = new() { EveryBlock = 1, KeepStates = true };

    private static LinearLlamaConfig Hybrid { get; } = StepOnRanks.Small with { Decay = DecayRule.Retention, NumKeyValueHeads = 2, NumHiddenLayers = 4, LayerTypes = LayerPattern.Parse("LLNL", 4) };

    private static LinearLlamaConfig Linear { get; } = StepOnRanks.Small with { Decay = DecayRule.Lightning, Norm = NormKind.SimpleRms, LinearRope = true, NumHiddenLayers = 3 };

    private static StepOnRanks Step(LinearLlamaConfig config, string strategy, string softmax, DType dtype) =>
        new(config, StepOnRanks.RandomBatch(2, Tokens, (_, i) => i % 5 != 0), dtype)
        {
            Strategy = LaspNative.Collectives.SequenceParallel.Parse(strategy),
            SoftmaxStrategy = LaspNative.Collectives.SoftmaxParallel.Parse(softmax),
        };

    private static void AssertSameBits(StepOnRanks step, int dp, int sp)
    {
        (double Loss, Dictionary<string, double[]> Gradients)[] expected = step.Evaluate(dp, sp);
        foreach (Recomputation recomputation in new[] { s_block, s_keeping, s_block with { EveryBlock = 2 }, s_block with { DeviceBytes = 5000 }, new Recomputation { FeedForward = true }, new Recomputation { KeepElementwise = true } })
        {
            (double Loss, Dictionary<string, double[]> Gradients)[] actual = (step with { Recomputation = recomputation }).Evaluate(dp, sp);
            for (int rank = 0; rank < expected.Length; rank++)
            {
                Assert.Equal(expected[rank].Loss, actual[rank].Loss);
                foreach ((string name, double[] gradient) in expected[rank].Gradients)
                    Assert.True(gradient.AsSpan().SequenceEqual(actual[rank].Gradients[name]), $"{name} on rank {rank} differs with {recomputation}");
            }
        }
    }

    public static TheoryData<string, string, int, DType> Strategies
    {
        get
        {
            var cases = new TheoryData<string, string, int, DType>();
            foreach ((string strategy, string softmax) in ((string, string)[])[("lasp1", "ring"), ("lasp2", "allgather"), ("zeco", "allgather-balanced"), ("ring", "zigzag"), ("ulysses", "ulysses")])
                foreach (int ranks in strategy == "ulysses" ? (int[])[1, 2] : [1, 2, 4])
                    foreach (DType dtype in (DType[])[DType.F32, DType.F64]) cases.Add(strategy, softmax, ranks, dtype);
            return cases;
        }
    }

    [Theory]
    [MemberData(nameof(Strategies))]
    public void Hybrid_models_give_the_same_bits(string strategy, string softmax, int ranks, DType dtype) => AssertSameBits(Step(Hybrid, strategy, softmax, dtype), 1, ranks);

    [Theory]
    [InlineData("lasp1", DType.F64)]
    [InlineData("lasp2", DType.F32)]
    [InlineData("zeco", DType.F32)]
    [InlineData("ring", DType.F64)]
    [InlineData("ulysses", DType.F32)]
    public void Linear_models_on_four_ranks_give_the_same_bits(string strategy, DType dtype) => AssertSameBits(Step(Linear, strategy, "allgather", dtype), 1, 4);

    [Theory]
    [InlineData("lasp2", "allgather", DType.F32)]
    [InlineData("zeco", "ring", DType.F64)]
    public void Data_parallel_groups_give_the_same_bits(string strategy, string softmax, DType dtype) => AssertSameBits(Step(Hybrid, strategy, softmax, dtype), 2, 2);

    [Theory]
    [InlineData("lasp1", 4)]
    [InlineData("lasp2", 1)]
    [InlineData("lasp2", 3)]
    [InlineData("ring", 2)]
    public void Packed_documents_give_the_same_bits(string strategy, int ranks)
    {
        StepOnRanks step = Step(Hybrid, strategy, "allgather", DType.F32) with { Batch = StepOnRanks.RandomBatch(1, 70, (_, _) => true), Documents = new PackedDocuments([0, 1, 20, 33, 70]) };
        AssertSameBits(step, 1, ranks);
    }

    [Theory]
    [InlineData(1)]
    [InlineData(2)]
    [InlineData(4)]
    public void Bidirectional_models_give_the_same_bits(int ranks) =>
        AssertSameBits(Step(StepOnRanks.Small with { IsDecoder = false, LinearRope = true, NumHiddenLayers = 3, LayerTypes = LayerPattern.Parse("LLN", 3) }, "lasp2", "allgather", DType.F64), 1, ranks);

    [Fact]
    public void Sixteen_bit_models_give_the_same_bits() => AssertSameBits(Step(Hybrid, "lasp2", "allgather", DType.BF16), 1, 2);

    [Fact]
    public void A_rank_without_tokens_takes_part() =>
        AssertSameBits(Step(Hybrid, "lasp2", "allgather", DType.F64) with { Batch = StepOnRanks.RandomBatch(2, 3, (_, _) => true) }, 1, 4);

    [Theory]
    [InlineData("lasp1", "ring", 4)]
    [InlineData("lasp2", "allgather", 2)]
    [InlineData("lasp2", "allgather", 4)]
    [InlineData("zeco", "zigzag", 4)]
    [InlineData("ring", "allgather-balanced", 2)]
    [InlineData("ulysses", "ulysses", 2)]
    public void Forward_messages_are_sent_twice_and_those_of_kept_states_once(string strategy, string softmax, int ranks)
    {
        StepOnRanks step = Step(Hybrid, strategy, softmax, DType.F32);
        long[] Sent(Recomputation recomputation)
        {
            var sent = new long[ranks];
            _ = (step with { Recomputation = recomputation, Observe = (rank, group) => sent[rank.Rank] = group.Counters.BytesSent }).Evaluate(1, ranks);
            return sent;
        }
        long[] once = Sent(Recomputation.None), twice = Sent(s_block), keeping = Sent(s_keeping);
        bool passesStates = strategy is "lasp1" or "lasp2" or "zeco";
        World.Run(new WorldOptions(DeviceKind.Cpu, ranks), rank =>
        {
            (long linear, long full) = ForwardBytes(step, rank.World);
            Assert.Equal(once[rank.Rank] + 2 * linear + full, twice[rank.Rank]); // all blocks but the last, a linear one
            Assert.Equal(once[rank.Rank] + (passesStates ? 0 : 2 * linear) + full, keeping[rank.Rank]);
        });
    }

    /// <summary>A pure linear model that keeps its states sends exactly what it sends without computing anything again.</summary>
    [Theory]
    [InlineData("lasp1")]
    [InlineData("lasp2")]
    [InlineData("zeco")]
    public void With_kept_states_nothing_is_sent_again(string strategy)
    {
        StepOnRanks step = Step(Linear, strategy, "allgather", DType.F32);
        var sent = new Dictionary<(Recomputation, int), (long, long)>();
        foreach (Recomputation recomputation in new[] { Recomputation.None, s_keeping })
            _ = (step with { Recomputation = recomputation, Observe = (rank, group) => { lock (sent) sent[(recomputation, rank.Rank)] = (group.Counters.BytesSent, group.Counters.Messages); } }).Evaluate(1, 4);
        for (int rank = 0; rank < 4; rank++) Assert.Equal(sent[(Recomputation.None, rank)], sent[(s_keeping, rank)]);
    }

    /// <summary>Chunks of the feed-forward part, alone and inside blocks that are computed again: rounding apart what the whole gives, as weights' gradients are summed in another order.</summary>
    [Theory]
    [InlineData(1, 0, DType.F64)]
    [InlineData(7, 0, DType.F64)]
    [InlineData(7, 0, DType.F32)]
    [InlineData(16, 1, DType.F64)]
    [InlineData(16, 1, DType.F32)]
    [InlineData(16, 2, DType.F32)]
    public void Feed_forward_chunks_are_exact(long chunk, int everyBlock, DType dtype)
    {
        StepOnRanks step = Step(Hybrid, "lasp2", "allgather", dtype);
        double tolerance = dtype == DType.F64 ? 1e-12 : 2e-6;
        (double loss, Dictionary<string, double[]> gradients) = step.Evaluate(1, 2)[1];
        (double chunkedLoss, Dictionary<string, double[]> chunked) = (step with { Recomputation = new Recomputation { EveryBlock = everyBlock, MlpChunk = chunk } }).Evaluate(1, 2)[1];
        Assert.Equal(loss, chunkedLoss, tolerance * loss);
        foreach ((string name, double[] gradient) in gradients) Errors.AssertClose(chunked[name], gradient, tolerance, name);
    }

    /// <summary>Where the feed-forward part goes in chunks, its gate, up and hidden activations are not kept, in any block.</summary>
    [Fact]
    public void Feed_forward_chunks_keep_no_wide_activation()
    {
        const int wide = 4096;
        LinearLlamaConfig config = Linear with { IntermediateSize = wide };
        (long Activations, long States, long ActivationsPeak) whole = Alive(config, Recomputation.None), chunked = Alive(config, new Recomputation { MlpChunk = 4 }), both = Alive(config, new Recomputation { EveryBlock = 1, MlpChunk = 4 });
        long oneWide = 128L * wide * sizeof(float);
        Assert.Equal(3 * 2 * oneWide, whole.Activations - chunked.Activations); // gate and up of three blocks; hidden is made again
        Assert.True(whole.ActivationsPeak - chunked.ActivationsPeak > 3 * 2 * oneWide && both.Activations < chunked.Activations, $"{whole}, {chunked}, {both}");
    }

    /// <summary>What one linear and one softmax layer of the model send forward.</summary>
    private static (long Linear, long Full) ForwardBytes(StepOnRanks step, ICommunicator group)
    {
        LinearLlamaConfig config = step.Config;
        var partition = new SequencePartition(Tokens, group.Size);
        var options = new AttentionOptions { QueryHeads = config.NumAttentionHeads, Partition = partition };
        Tensor Keys(int heads) => Tensor.Empty([step.Batch.Count, partition.Length(group.Rank), heads, config.HeadWidth], step.DType, group.Device);
        using Tensor k = Keys(config.LinearKeyValueHeads), few = Keys(config.FullKeyValueHeads), decay = Tensor.Zeros([config.NumAttentionHeads], DType.F32, group.Device);
        return (step.Strategy.PredictedBytesSent(new AttentionCall(k, k, decay, null, group, options), decay).Forward, step.SoftmaxStrategy.PredictedBytesSent(new SoftmaxCall(few, few, group, options)).Forward);
    }

    private static long StateBytes(LinearLlamaConfig config) => 2L * config.NumAttentionHeads * config.HeadWidth * config.HeadWidth * sizeof(float);

    /// <summary>Bytes alive between forward and backward, and the whole step's peak of activations, of one rank of two.</summary>
    private static (long Activations, long States, long ActivationsPeak) Alive(LinearLlamaConfig config, Recomputation recomputation)
    {
        (long, long, long) alive = default;
        World.Run(new WorldOptions(DeviceKind.Cpu, 2), rank =>
        {
            using var model = new LinearLlamaModel(config, rank.Device, DType.F32, seed: 3);
            using InputStash? inputs = recomputation.DeviceBytes is { } bytes ? new InputStash(bytes, new CpuHostMemory()) : null;
            var sequence = new SequenceContext(rank.World, Lasp2.Default, SoftmaxAllGather.Default, new SequencePartition(128, 2)) { Recomputation = recomputation, Inputs = inputs };
            using Tensor labels = Tensor.FromSpan(new int[128], [128], rank.Device), scale = Tensor.FromSpan([1 / 256f], [1], rank.Device);
            using var tape = new Tape();
            MemoryLedger memory = rank.Device.Memory;
            rank.World.Barrier();
            memory.ResetPeak();
            Variable loss = model.Loss(tape.Constant(Tensor.FromSpan(new int[128], [2, 64], rank.Device)), labels, scale, sequence);
            (long activations, long states) = (memory.CurrentOf(MemoryCategory.Activations), memory.CurrentOf(MemoryCategory.States));
            loss.Backward();
            if (rank.Rank == 1) alive = (activations, states, memory.PeakOf(MemoryCategory.Activations));
            Assert.Equal(0, memory.CurrentOf(MemoryCategory.States));
        });
        return alive;
    }

    [Theory]
    [InlineData("L")]
    [InlineData("N")]
    public void A_block_keeps_its_input_and_where_wanted_its_state_and_nothing_else(string pattern)
    {
        LinearLlamaConfig Deep(int layers) => Linear with { NumHiddenLayers = layers, LayerTypes = LayerPattern.Parse(pattern, layers) };
        long input = 2L * 64 * Linear.HiddenSize * sizeof(float);
        (long Activations, long States, long ActivationsPeak) one = Alive(Deep(1), s_block), six = Alive(Deep(6), s_block), keeping = Alive(Deep(6), s_keeping), none = Alive(Deep(6), Recomputation.None);
        Assert.Equal(5 * input, six.Activations - one.Activations);
        Assert.Equal(one.States, six.States); // of the last block
        Assert.Equal(six.Activations, keeping.Activations);
        Assert.Equal(pattern == "L" ? 5 * StateBytes(Linear) : 0, keeping.States - one.States);
        Assert.True(2 * six.ActivationsPeak < none.ActivationsPeak, $"the peak is {six.ActivationsPeak} bytes, {none.ActivationsPeak} without computing again");
        Assert.Equal(one.Activations + 3 * input, Alive(Deep(6), s_block with { DeviceBytes = 3 * input + 1 }).Activations);
        Assert.Equal(one.Activations, Alive(Deep(6), s_block with { DeviceBytes = 0 }).Activations);
        long whole = none.Activations - Alive(Deep(5), Recomputation.None).Activations;
        Recomputation everySecond = s_block with { EveryBlock = 2 };
        Assert.Equal(input + whole, Alive(Deep(6), everySecond).Activations - Alive(Deep(4), everySecond).Activations);
    }
}
