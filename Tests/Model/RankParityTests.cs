using LaspNative.Collectives;
using LaspNative.Model;
using LaspNative.Runtime;
using Xunit;

namespace LaspNative.Tests.Model;

/// <summary>W ranks compute what one rank computes: the loss and the gradient of every parameter, on every rank, also with uneven, empty or unlabelled chunks.</summary>
public class RankParityTests
{
    private static LinearLlamaConfig Variant(string name) => name switch
    {
        "plain" => StepOnRanks.Small,
        "lightning" => StepOnRanks.Small with { Decay = DecayRule.Lightning, Norm = NormKind.SimpleRms, HiddenAct = GateActivation.Identity },
        "retention" => StepOnRanks.Small with { Decay = DecayRule.Retention, LinearRope = true, OutputGate = false, TieWordEmbeddings = false },
        "hybrid" => StepOnRanks.Small with { Decay = DecayRule.Retention, NumKeyValueHeads = 2, NumHiddenLayers = 4, LayerTypes = LayerPattern.Parse("LLLN", 4) },
        "softmax" => StepOnRanks.Small with { NumKeyValueHeads = 2, LayerTypes = LayerPattern.Parse("N", 2) },
        "bidirectional" => StepOnRanks.Small with { IsDecoder = false, LinearRope = true, NumHiddenLayers = 3, LayerTypes = LayerPattern.Parse("LLN", 3) },
        _ => StepOnRanks.Small with { LinearNumKeyValueHeads = 2, FeatureMap = FeatureMap.Identity, Decay = DecayRule.Retention },
    };

    public static TheoryData<string, int, int, DType> Cases
    {
        get
        {
            var cases = new TheoryData<string, int, int, DType>();
            foreach (string variant in (string[])["plain", "lightning", "retention", "grouped", "bidirectional"])
                foreach (int ranks in (int[])[2, 3, 4])
                    foreach (DType dtype in (DType[])[DType.F64, DType.F32]) cases.Add(variant, ranks, 131, dtype);
            cases.Add("lightning", 4, 3, DType.F64); // one rank holds no token
            cases.Add("grouped", 4, 1, DType.F32);
            cases.Add("hybrid", 4, 3, DType.F64);
            cases.Add("bidirectional", 4, 2, DType.F64);
            return cases;
        }
    }

    [Theory]
    [MemberData(nameof(Cases))]
    public void Loss_and_gradients_equal_one_rank(string variant, int ranks, int tokens, DType dtype) =>
        new StepOnRanks(Variant(variant), StepOnRanks.RandomBatch(2, tokens, (_, _) => true), dtype).AssertEqualsOneRank(1, ranks);

    public static TheoryData<string, int, int, DType> Grids
    {
        get
        {
            var grids = new TheoryData<string, int, int, DType>();
            foreach (string variant in (string[])["lightning", "hybrid", "softmax"])
                foreach ((int dp, int sp) in ((int, int)[])[(1, 4), (2, 2), (4, 1)])
                    foreach (DType dtype in (DType[])[DType.F64, DType.F32]) grids.Add(variant, dp, sp, dtype);
            return grids;
        }
    }

    /// <summary>Four ranks as DP x SP. In each grid some rank has no label that counts: those of the last tokens, or, where a rank holds whole sequences, the one with the last.</summary>
    [Theory]
    [MemberData(nameof(Grids))]
    public void Groups_of_ranks_equal_one_rank(string variant, int dp, int sp, DType dtype)
    {
        const int tokens = 70;
        SequenceBatch batch = StepOnRanks.RandomBatch(4, tokens, (b, i) => sp == 1 ? b != 3 : b % 2 == 0 ? i < tokens / 4 : i < tokens / 2);
        new StepOnRanks(Variant(variant), batch, dtype).AssertEqualsOneRank(dp, sp);
    }

    [Theory]
    [InlineData("hybrid", 1)]
    [InlineData("hybrid", 3)]
    [InlineData("retention", 4)]
    public void Packed_documents_are_trained_as_if_alone(string variant, int ranks)
    {
        long[] bounds = [0, 1, 20, 33, 70];
        SequenceBatch packed = StepOnRanks.RandomBatch(1, 70, (_, i) => !bounds.Contains(i + 1));
        var step = new StepOnRanks(Variant(variant), packed, DType.F64) { Documents = new PackedDocuments(bounds) };
        double sum = 0;
        for (int d = 0; d < bounds.Length - 1; d++)
        {
            (int start, int end) = ((int)bounds[d], (int)bounds[d + 1]);
            var alone = new SequenceBatch(1, end - start);
            packed.Tokens(0)[start..end].CopyTo(alone.Tokens(0));
            packed.Labels(0)[start..end].CopyTo(alone.Labels(0));
            sum += new StepOnRanks(step.Config, alone, DType.F64).Evaluate(1, 1)[0].Loss * alone.ValidLabels;
        }
        Assert.Equal(sum / packed.ValidLabels, step.Evaluate(1, ranks)[0].Loss, 1e-10);
        step.AssertEqualsOneRank(1, ranks);
    }

    [Theory]
    [InlineData("lasp1", "ring")]
    [InlineData("lasp2", "allgather")]
    [InlineData("zeco", "allgather-balanced")]
    [InlineData("ring", "zigzag")]
    [InlineData("ulysses", "ulysses")]
    public void Every_strategy_gives_the_same_step(string strategy, string softmax)
    {
        var step = new StepOnRanks(Variant("hybrid"), StepOnRanks.RandomBatch(4, 45, (_, i) => i % 3 != 0), DType.F64) { Strategy = LaspNative.Collectives.SequenceParallel.Parse(strategy), SoftmaxStrategy = LaspNative.Collectives.SoftmaxParallel.Parse(softmax) };
        step.AssertEqualsOneRank(1, 2);
        step.AssertEqualsOneRank(2, 2);
    }

    [Theory]
    [InlineData(DType.F64)]
    [InlineData(DType.F32)]
    public void A_rank_without_a_valid_label_takes_part(DType dtype) =>
        new StepOnRanks(Variant("lightning"), StepOnRanks.RandomBatch(2, 60, (_, i) => i is < 20 or >= 40), dtype).AssertEqualsOneRank(1, 3);

    [Fact]
    public void A_batch_without_any_label_has_no_loss_and_no_gradient()
    {
        (double loss, Dictionary<string, double[]> gradients) = new StepOnRanks(StepOnRanks.Small, StepOnRanks.RandomBatch(2, 10, (_, _) => false), DType.F64).Evaluate(1, 2)[1];
        Assert.Equal(0, loss);
        Assert.All(gradients.Values, g => Assert.All(g, x => Assert.Equal(0, x)));
    }
}
