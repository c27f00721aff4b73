using LaspNative.Runtime;

namespace LaspNative.Model;

/// <summary>A named model, and how it is trained unless the user says otherwise.</summary>
public sealed record Preset(string Name, string Description, LinearLlamaConfig Config, TrainingRecipe Training)
{
    /// <summary>The preset of that name. Throws <see cref="LaspException"/> with the names there are.</summary>
    public static Preset Find(string name) => Presets.All.FirstOrDefault(p => p.Name == name)
        ?? throw new LaspException($"unknown preset '{name}'; use one of {string.Join(", ", Presets.All.Select(p => p.Name))}");
}

/// <summary>
/// The models that this library knows by name. Sizes and training: LASP-2 (arXiv 2502.07563, section 4: 16K tokens x 8 sequences, Adam 0.9/0.95, weight decay 0.1, clip 1, cosine to 1e-6)
/// and LASP (arXiv 2404.02882, appendix: Adam 0.9/0.999, rate 5e-4, weight decay 0.01, 2,000 + 50,000 updates). Names that end in -test are the same architecture in small.
/// </summary>
public static class Presets
{
    // 50 billion tokens at 131,072 tokens per update.
    private static readonly TrainingRecipe s_lasp2 = new(16384, 8, 381470, 3e-4, 1e-6, 2000, 0.1, 0.9, 0.95, 1.0);
    private static readonly TrainingRecipe s_lasp = new(16384, 8, 50000, 5e-4, 1e-6, 2000, 0.01, 0.9, 0.999, 1.0);
    private static readonly TrainingRecipe s_test = new(128, 2, 20, 3e-3, 1e-4, 4, 0.1, 0.9, 0.95, 1.0);

    private static readonly LinearLlamaConfig s_llama1B = new()
    {
        VocabSize = 128256,
        HiddenSize = 2048,
        NumHiddenLayers = 16,
        NumAttentionHeads = 16,
        HeadDim = 128,
        IntermediateSize = 8192,
        OutputGate = false,
    };

    private static readonly LinearLlamaConfig s_tnl = new()
    {
        VocabSize = 50272,
        HiddenSize = 1024,
        NumHiddenLayers = 24,
        NumAttentionHeads = 8,
        HeadDim = 128,
        IntermediateSize = 2816,
        Decay = DecayRule.Lightning,
        Norm = NormKind.SimpleRms,
        HiddenAct = GateActivation.Identity,
    };

    // The bytes and one token for a masked one. Attention without a mask knows no order, so positions come from the rotation.
    private static readonly LinearLlamaConfig s_roberta = new() { VocabSize = 257, IsDecoder = false, MaskTokenId = 256, LinearRope = true, HeadNormEps = 1 };

    public static IReadOnlyList<Preset> All { get; } =
    [
        new("tiny", "learns bytes on a CPU in under a minute", new LinearLlamaConfig { Decay = DecayRule.Lightning, HeadNormEps = 1 },
            new(256, 8, 60, 1e-3, 1e-4, 10, 0.1, 0.9, 0.95, 1.0)),
        new("linear-llama3-1b", "Linear-Llama3 of LASP-2, basic linear attention in every layer", s_llama1B, s_lasp2),
        new("linear-llama3-1b-test", "the same in small", Small(s_llama1B), s_test),
        new("linear-llama3-1b-hybrid4", "every fourth layer softmax attention", Hybrid4(s_llama1B with { NumKeyValueHeads = 8 }), s_lasp2),
        new("linear-llama3-1b-hybrid4-test", "the same in small", Hybrid4(Small(s_llama1B) with { NumKeyValueHeads = 2 }), s_test),
        new("tnl-0.4b", "TransNormerLLM: lightning decay, gated output, unweighted norms", s_tnl, s_lasp),
        new("tnl-0.4b-test", "the same in small", Small(s_tnl), s_test),
        new("tnl-1b", "TransNormerLLM", s_tnl with { HiddenSize = 2048, NumHiddenLayers = 16, NumAttentionHeads = 16, IntermediateSize = 5632 }, s_lasp),
        new("tnl-1b-test", "the same in small", Small(s_tnl) with { HiddenSize = 128, NumAttentionHeads = 8 }, s_test),
        new("roberta-tiny", "a masked language model: bidirectional, learns to fill in bytes", s_roberta, new(256, 8, 60, 2e-3, 2e-4, 10, 0.01, 0.9, 0.98, 1.0)),
    ];

    private static LinearLlamaConfig Small(LinearLlamaConfig config) => config with
    {
        VocabSize = 256,
        HiddenSize = 64,
        NumHiddenLayers = 4,
        NumAttentionHeads = 4,
        HeadDim = 16,
        IntermediateSize = 176,
        HeadNormEps = 1,
    };

    private static LinearLlamaConfig Hybrid4(LinearLlamaConfig config) => config with
    {
        LayerTypes = LayerPattern.Parse("LLLN", config.NumHiddenLayers),
    };
}
