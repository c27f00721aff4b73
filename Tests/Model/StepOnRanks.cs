using LaspNative.Autograd;
using LaspNative.Collectives;
using LaspNative.Model;
using LaspNative.Runtime;
using LaspNative.Tests.Oracles;
using Xunit;

namespace LaspNative.Tests.Model;

/// <summary>Loss and every parameter's gradient of one step of a model on a grid of DP x SP CPU ranks, and that they equal those of one rank.</summary>
internal sealed record StepOnRanks(LinearLlamaConfig Config, SequenceBatch Batch, DType DType)
{
    public LaspNative.Collectives.SequenceParallel Strategy { get; init; } = Lasp2.Default;

    public LaspNative.Collectives.SoftmaxParallel SoftmaxStrategy { get; init; } = SoftmaxAllGather.Default;

    /// <summary>The documents that the one sequence is packed from.</summary>
    public PackedDocuments? Documents { get; init; }

    public long BucketBytes { get; init; } = 32 << 20;

    /// <summary>A whole sequence on a rank without a group to share it: data parallelism alone.</summary>
    public static SequenceContext Alone(ICommunicator world, long tokens)
    {
        ICommunicator? own = null;
        for (int rank = 0; rank < world.Size; rank++) own = world.Split([rank]) ?? own;
        return new SequenceContext(own!, Lasp2.Default, SoftmaxAllGather.Default, new SequencePartition(tokens, 1));
    }

    public Recomputation Recomputation { get; init; } = Recomputation.None;

    /// <summary>Called on every rank after its step with the communicator of its sequence-parallel group.</summary>
    public Action<RankContext, ICommunicator>? Observe { get; init; }

    /// <summary>A small model in which every part matters.</summary>
    public static LinearLlamaConfig Small { get; } = new()
    {
        VocabSize = 40,
        HiddenSize = 24,
        NumHiddenLayers = 2,
        NumAttentionHeads = 4,
        HeadDim = 8,
        IntermediateSize = 32,
        InitializerRange = 0.2,
    };

    /// <summary>Random sequences of <see cref="Small"/>'s vocabulary; the label of (sequence, position) counts where <paramref name="valid"/> says so.</summary>
    public static SequenceBatch RandomBatch(int sequences, int tokens, Func<int, int, bool> valid)
    {
        var random = new CounterRandom(11);
        var batch = new SequenceBatch(sequences, tokens);
        for (int b = 0; b < sequences; b++)
        {
            int[] text = [.. Enumerable.Range(0, tokens + 1).Select(i => (int)(random.Uniform((ulong)(i + b * 1000)) * Small.VocabSize))];
            text.AsSpan(0, tokens).CopyTo(batch.Tokens(b));
            for (int i = 0; i < tokens; i++) batch.Labels(b)[i] = valid(b, i) ? text[i + 1] : TokenStream.IgnoredLabel;
        }
        return batch;
    }

    public void AssertEqualsOneRank(int dp, int sp)
    {
        (double Loss, Dictionary<string, double[]> Gradients) one = Evaluate(1, 1)[0];
        double tolerance = DType == DType.F64 ? 1e-10 : 2e-5;
        foreach ((double loss, Dictionary<string, double[]> gradients) in Evaluate(dp, sp))
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
    public (double Loss, Dictionary<string, double[]> Gradients)[] Evaluate(int dp, int sp)
    {
        var results = new (double, Dictionary<string, double[]>)[dp * sp];
        World.Run(new WorldOptions(DeviceKind.Cpu, dp * sp), rank =>
        {
            using var mesh = new ProcessMesh(rank.World, dp, sp);
            using var model = new LinearLlamaModel(Config, rank.Device, DType, seed: 3);
            using InputStash? inputs = Recomputation.DeviceBytes is { } bytes ? new InputStash(bytes, new CpuHostMemory()) : null;
            using GradientBuckets buckets = GradientBuckets.WholeOnEveryRank(model.Parameters, mesh.World, BucketBytes);
            var step = new GlobalStep(model, mesh.World, new SequenceContext(mesh.SequenceParallel, Strategy, SoftmaxStrategy, new SequencePartition(Batch.Length, sp)) { Documents = Documents, Recomputation = Recomputation, Inputs = inputs }, buckets);
            int share = Batch.Count / dp;
            using Tensor totals = Tensor.Empty([2], DType.Accumulator(), rank.Device);
            step.Run(mesh.SpRank == SequenceScatter.Source ? Share(mesh.DpRank * share, share) : null, share, stop: false, totals);
            double loss = totals.ToDoubles()[0];
            Observe?.Invoke(rank, mesh.SequenceParallel);
            results[rank.Rank] = (loss, model.Parameters.ToDictionary(p => p.Name, p => p.Variable.Gradient!.ToDoubles()));
        });
        return results;
    }

    /// <summary>Some of the batch's sequences.</summary>
    private SequenceBatch Share(int first, int count)
    {
        var share = new SequenceBatch(count, Batch.Length);
        for (int b = 0; b < count; b++)
        {
            Batch.Tokens(first + b).CopyTo(share.Tokens(b));
            Batch.Labels(first + b).CopyTo(share.Labels(b));
        }
        return share;
    }
}
