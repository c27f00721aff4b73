using LaspNative.Autograd;
using LaspNative.Collectives;
using LaspNative.Model;
using LaspNative.Runtime;
using Xunit;

namespace LaspNative.Tests.Model;

/// <summary>
/// What a layer keeps between forward and backward, to the byte: the residual stream at its two norms, the outputs of its projections and of its attention, one inverse norm per norm and head, and nothing
/// that an elementwise function can make again. And what backward adds to it at its peak.
/// </summary>
public class ActivationMemoryTests
{
    private const int Sequences = 2, Tokens = 64;

    /// <summary>Wide enough that no chunk of the loss matters, and with widths that differ, so that each term of a sum shows.</summary>
    private static LinearLlamaConfig Config { get; } = StepOnRanks.Small with { HiddenSize = 40, NumAttentionHeads = 6, LinearRope = true, NumKeyValueHeads = 3, IntermediateSize = 176 };

    private static (long Kept, long Peak) Step(LinearLlamaConfig config, DType dtype, Recomputation? recomputation = null)
    {
        (long Kept, long Peak) measured = default;
        World.Run(new WorldOptions(DeviceKind.Cpu, 1), rank =>
        {
            using var model = new LinearLlamaModel(config, rank.Device, dtype, seed: 3);
            using InputStash? inputs = recomputation?.DeviceBytes is { } bytes ? new InputStash(bytes, new CpuHostMemory()) : null;
            var sequence = new SequenceContext(rank.World, Lasp2.Default, SoftmaxAllGather.Default, new SequencePartition(Tokens, 1)) { Recomputation = recomputation ?? Recomputation.None, Inputs = inputs };
            using Tensor labels = Tensor.FromSpan(new int[Sequences * Tokens], [Sequences * Tokens], rank.Device);
            using Tensor scale = Tensor.Empty([1], dtype.Accumulator(), rank.Device, MemoryCategory.Workspace);
            rank.Device.Backend.Fill(1.0 / (Sequences * Tokens), scale);
            using var tape = new Tape { CheapValues = sequence.Recomputation.CheapValues };
            Variable loss = model.Loss(tape.Constant(Tensor.FromSpan(new int[Sequences * Tokens], [Sequences, Tokens], rank.Device)), labels, scale, sequence);
            MemoryLedger memory = rank.Device.Memory;
            long kept = memory.CurrentOf(MemoryCategory.Activations);
            memory.ResetPeak();
            loss.Backward();
            measured = (kept, memory.PeakOf(MemoryCategory.Activations));
        });
        return measured;
    }

    private static LinearLlamaConfig Deep(LinearLlamaConfig config, int layers) => config with { NumHiddenLayers = layers };

    [Theory]
    [InlineData(true, FeatureMap.Silu, true, DType.BF16)]
    [InlineData(false, FeatureMap.Silu, true, DType.BF16)]
    [InlineData(false, FeatureMap.Silu, false, DType.F32)]
    [InlineData(true, FeatureMap.Identity, false, DType.F64)]
    public void A_linear_layer_keeps_its_stream_its_projections_and_its_attention(bool outputGate, FeatureMap feature, bool rope, DType dtype)
    {
        LinearLlamaConfig config = Config with { OutputGate = outputGate, FeatureMap = feature, LinearRope = rope };
        long heads = (long)config.NumAttentionHeads * config.HeadWidth, keys = (long)config.LinearKeyValueHeads * config.HeadWidth;
        long elements = 2 * config.HiddenSize + (outputGate ? 3 : 2) * heads + 2 * keys + 2 * config.IntermediateSize; // x, h; q, o, (gate); k, v; gate, up
        long inverseNorms = 2 + config.NumAttentionHeads;
        long expected = Sequences * Tokens * (elements * dtype.Size() + inverseNorms * dtype.Accumulator().Size());
        Assert.Equal(expected, (Step(Deep(config, 4), dtype).Kept - Step(Deep(config, 2), dtype).Kept) / 2);
    }

    /// <summary>Linear-Llama3-1B, whose heads fill the hidden width and whose feed-forward part is four times as wide, keeps 14 x hidden per token and layer.</summary>
    [Fact]
    public void The_papers_model_keeps_fourteen_hidden_widths_per_token_and_layer()
    {
        LinearLlamaConfig paper = Preset.Find("linear-llama3-1b").Config;
        LinearLlamaConfig small = paper with { VocabSize = 64, HiddenSize = 32, NumAttentionHeads = 2, HeadDim = 16, IntermediateSize = 128 };
        Assert.Equal(paper.IntermediateSize / paper.HiddenSize, small.IntermediateSize / small.HiddenSize);
        long perToken = (Step(Deep(small, 3), DType.BF16).Kept - Step(Deep(small, 2), DType.BF16).Kept) / (Sequences * Tokens);
        Assert.Equal(14 * small.HiddenSize * 2 + (2 + small.NumAttentionHeads) * 4, perToken);
        Recomputation selective = Recomputation.Parse("selective")!;
        long feedForwardAgain = (Step(Deep(small, 3), DType.BF16, selective).Kept - Step(Deep(small, 2), DType.BF16, selective).Kept) / (Sequences * Tokens);
        Assert.Equal(perToken - 8 * small.HiddenSize * 2, feedForwardAgain);
        var keeping = new Recomputation { KeepElementwise = true }; // both norms, q and k after their feature maps, the head norm
        Assert.Equal(perToken + 5 * small.HiddenSize * 2, (Step(Deep(small, 3), DType.BF16, keeping).Kept - Step(Deep(small, 2), DType.BF16, keeping).Kept) / (Sequences * Tokens));
    }

    /// <summary>
    /// At its peak, in the feed-forward part of the last block, backward holds beside what was kept the gated product and nothing else: the gradient of the stream has taken the place of the last norm's sum,
    /// those of gate and up take the places of gate and up.
    /// </summary>
    [Fact]
    public void Backward_adds_one_gated_product_to_what_was_kept()
    {
        LinearLlamaConfig config = Deep(Config, 4);
        (long kept, long peak) = Step(config, DType.BF16);
        Assert.True(peak - kept <= (long)Sequences * Tokens * config.IntermediateSize * DType.BF16.Size(), $"{peak - kept} bytes beside the {kept} that were kept");
    }

    /// <summary>
    /// What bounds the length of a sequence: with blocks computed again and the feed-forward part in small chunks, the peak is one hidden width per token and block, and nine for the block at hand; with all
    /// inputs in host memory but the one that is on its way back, eleven, however deep the model is.
    /// </summary>
    [Theory]
    [InlineData(2)]
    [InlineData(5)]
    public void Long_sequences_need_nine_hidden_widths_and_one_per_block(int layers)
    {
        LinearLlamaConfig paper = Preset.Find("linear-llama3-1b").Config with { VocabSize = 64, HiddenSize = 64, NumAttentionHeads = 2, HeadDim = 32, IntermediateSize = 256, NumHiddenLayers = layers };
        var blocks = new Recomputation { EveryBlock = 1, MlpChunk = 1 };
        double width = Sequences * Tokens * paper.HiddenSize * 2;
        Assert.InRange(Step(paper, DType.BF16, blocks).Peak / width, 9 + layers, 9.5 + layers);
        Assert.InRange(Step(paper, DType.BF16, blocks with { DeviceBytes = 0 }).Peak / width, 11, 11.5);
    }
}
