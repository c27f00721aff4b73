using LaspNative.Autograd;
using LaspNative.Collectives;
using LaspNative.Model;
using LaspNative.Runtime;
using LaspNative.Tests.Oracles;
using Xunit;

namespace LaspNative.Tests.Model;

/// <summary>W ranks compute what one rank computes: the loss and the gradient of every parameter, on every rank, also with uneven, empty or unlabelled chunks.</summary>
public class RankParityTests
{
    private static readonly LinearLlamaConfig s_small = new()
    {
        VocabSize = 40,
        HiddenSize = 24,
        NumHiddenLayers = 2,
        NumAttentionHeads = 4,
        HeadDim = 8,
        IntermediateSize = 32,
        InitializerRange = 0.2,
    };

    private static LinearLlamaConfig Variant(string name) => name switch
    {
        "plain" => s_small,
        "lightning" => s_small with { Decay = DecayRule.Lightning, Norm = NormKind.SimpleRms, HiddenAct = GateActivation.Identity },
        "retention" => s_small with { Decay = DecayRule.Retention, LinearRope = true, OutputGate = false, TieWordEmbeddings = false },
        _ => s_small with { LinearNumKeyValueHeads = 2, FeatureMap = FeatureMap.Identity, Decay = DecayRule.Retention },
    };

    public static TheoryData<string, int, int, DType> Cases
    {
        get
        {
            var cases = new TheoryData<string, int, int, DType>();
            foreach (string variant in (string[])["plain", "lightning", "retention", "grouped"])
                foreach (int ranks in (int[])[2, 3, 4])
                    foreach (DType dtype in (DType[])[DType.F64, DType.F32]) cases.Add(variant, ranks, 131, dtype);
            cases.Add("lightning", 4, 3, DType.F64); // one rank holds no token
            cases.Add("grouped", 4, 1, DType.F32);
            return cases;
        }
    }

    [Theory]
    [MemberData(nameof(Cases))]
    public void Loss_and_gradients_equal_one_rank(string variant, int ranks, int tokens, DType dtype) =>
        AssertParity(Variant(variant), Batch(tokens, (_, _) => true), ranks, dtype);

    [Theory]
    [InlineData(DType.F64)]
    [InlineData(DType.F32)]
    public void A_rank_without_a_valid_label_takes_part(DType dtype) =>
        AssertParity(Variant("lightning"), Batch(60, (_, i) => i is < 20 or >= 40), ranks: 3, dtype);

    [Fact]
    public void A_batch_without_any_label_has_no_loss_and_no_gradient()
    {
        (double loss, Dictionary<string, double[]> gradients) = Evaluate(s_small, Batch(10, (_, _) => false), ranks: 2, DType.F64)[1];
        Assert.Equal(0, loss);
        Assert.All(gradients.Values, g => Assert.All(g, x => Assert.Equal(0, x)));
    }

    private static SequenceBatch Batch(int tokens, Func<int, int, bool> valid)
    {
        var random = new CounterRandom(11);
        var batch = new SequenceBatch(2, tokens);
        for (int b = 0; b < 2; b++)
        {
            int[] text = [.. Enumerable.Range(0, tokens + 1).Select(i => (int)(random.Uniform((ulong)(i + b * 1000)) * 40))];
            text.AsSpan(0, tokens).CopyTo(batch.Tokens(b));
            for (int i = 0; i < tokens; i++) batch.Labels(b)[i] = valid(b, i) ? text[i + 1] : TokenStream.IgnoredLabel;
        }
        return batch;
    }

    private static void AssertParity(LinearLlamaConfig config, SequenceBatch batch, int ranks, DType dtype)
    {
        (double Loss, Dictionary<string, double[]> Gradients) one = Evaluate(config, batch, 1, dtype)[0];
        double tolerance = dtype == DType.F64 ? 1e-10 : 2e-5;
        foreach ((double loss, Dictionary<string, double[]> gradients) in Evaluate(config, batch, ranks, dtype))
        {
            Assert.Equal(one.Loss, loss, tolerance * one.Loss);
            foreach ((string name, double[] expected) in one.Gradients)
            {
                double error = Errors.Relative(gradients[name], expected);
                Assert.True(error < tolerance, $"{name}: relative error {error}");
            }
        }
    }

    /// <summary>Every rank's view of the global loss and of the summed gradients.</summary>
    private static (double Loss, Dictionary<string, double[]> Gradients)[] Evaluate(LinearLlamaConfig config, SequenceBatch batch, int ranks, DType dtype)
    {
        var results = new (double, Dictionary<string, double[]>)[ranks];
        World.Run(new WorldOptions(DeviceKind.Cpu, ranks), rank =>
        {
            using var model = new LinearLlamaModel(config, rank.Device, dtype, seed: 3);
            using var gradients = new GradientSynchronizer(model.Parameters, rank.World);
            var sequence = new SequenceContext(rank.World, Lasp2.Default, new SequencePartition(batch.Length, ranks));
            (Tensor ids, Tensor labels) = batch.Shard(sequence.Partition, rank.Rank, rank.Device);
            using (labels)
            using (var tape = new Tape())
            {
                using Variable loss = model.Loss(tape.Constant(ids), labels, Math.Max(1, batch.ValidLabels), sequence);
                using Tensor total = loss.Value.DType == DType.F64 ? Tensor.FromSpan(loss.Value.ToArray<double>(), [1], rank.Device) : Tensor.FromSpan(loss.Value.ToArray<float>(), [1], rank.Device);
                CommunicationWork reduced = rank.World.AllReduce(total);
                loss.Backward();
                reduced.Wait();
                gradients.Sum();
                results[rank.Rank] = (total.ToDoubles()[0], model.Parameters.ToDictionary(p => p.Name, p => p.Variable.Gradient!.ToDoubles()));
            }
        });
        return results;
    }
}
