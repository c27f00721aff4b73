using LaspNative.Autograd;
using LaspNative.Model;
using LaspNative.Runtime;
using LaspNative.Tests.Oracles;
using Xunit;

namespace LaspNative.Tests.Model;

/// <summary>The named models have the sizes they claim, and the count is what a built model has.</summary>
public class PresetTests
{
    [Fact]
    public void Linear_llama3_1b_has_the_papers_size()
    {
        LinearLlamaConfig config = Preset.Find("linear-llama3-1b").Config;
        Assert.Equal(1.336, config.ParameterCount / 1e9, 3);
        Assert.Equal(1.404, (config with { OutputGate = true }).ParameterCount / 1e9, 3);
        Assert.False(config.OutputGate);
    }

    [Fact]
    public void Flops_per_token_follow_the_formula() =>
        Assert.Equal(6 * 1336479744.0 + 3 * 16 * 16 * (4 * 64 * 128 + 4 * 128 * 128), Preset.Find("linear-llama3-1b").Config.FlopsPerToken(16384), 1.0);

    [Fact]
    public void Flops_of_softmax_layers_grow_with_the_sequence()
    {
        LinearLlamaConfig hybrid = Preset.Find("linear-llama3-1b-hybrid4").Config;
        double perToken = 3.0 * 4 * 16 * 4 * 128 * 0.5; // four softmax layers, causal
        Assert.Equal(perToken * 1000, hybrid.FlopsPerToken(2000) - hybrid.FlopsPerToken(1000), 1.0);
        Assert.Equal(2 * perToken * 1000, (hybrid with { IsDecoder = false }).FlopsPerToken(2000) - (hybrid with { IsDecoder = false }).FlopsPerToken(1000), 1.0);
    }

    [Theory]
    [InlineData("tiny", 0.8e6, 1.2e6)]
    [InlineData("tnl-0.4b", 0.37e9, 0.44e9)]
    [InlineData("tnl-1b", 0.9e9, 1.1e9)]
    [InlineData("linear-llama3-1b-hybrid4", 1.2e9, 1.4e9)]
    public void Presets_are_as_large_as_their_names(string name, double least, double most) =>
        Assert.InRange(Preset.Find(name).Config.ParameterCount, least, most);

    [Theory]
    [InlineData("tiny")]
    [InlineData("linear-llama3-1b-test")]
    [InlineData("tnl-0.4b-test")]
    [InlineData("tnl-1b-test")]
    [InlineData("linear-llama3-1b-hybrid4-test")]
    [InlineData("roberta-tiny")]
    public void The_count_is_that_of_the_built_model(string name)
    {
        LinearLlamaConfig config = Preset.Find(name).Config;
        using Device device = Device.Open("cpu");
        foreach (LinearLlamaConfig variant in (LinearLlamaConfig[])[config, config with { TieWordEmbeddings = false, OutputGate = !config.OutputGate, LinearNumKeyValueHeads = 2, NumKeyValueHeads = 1 }])
        {
            using var model = new LinearLlamaModel(variant, device, DType.F32, seed: 1);
            Assert.Equal(variant.ParameterCount, model.Parameters.Sum(p => p.Variable.Shape.Count));
        }
        Assert.Equal(0, device.Memory.Current);
    }

    [Fact]
    public void An_unknown_preset_is_answered_with_the_known_ones() =>
        Assert.Contains("tiny, linear-llama3-1b", Assert.Throws<LaspException>(() => Preset.Find("huge")).Message, StringComparison.Ordinal);

    [Fact]
    public void Recipes_are_valid() => Assert.All(Presets.All, p => p.Training.Validate());

    [Fact]
    public void Initial_weights_depend_on_seed_and_name_only()
    {
        LinearLlamaConfig config = Preset.Find("tnl-0.4b-test").Config;
        using Device one = Device.Open("cpu:1"), two = Device.Open("cpu:2");
        using var a = new LinearLlamaModel(config, one, DType.F32, seed: 5);
        using var b = new LinearLlamaModel(config with { NumHiddenLayers = 1, OutputGate = false }, two, DType.F64, seed: 5);
        using var other = new LinearLlamaModel(config, one, DType.F32, seed: 6);
        var values = a.Parameters.ToDictionary(p => p.Name, p => p.Variable.Value.ToDoubles());
        Assert.All(b.Parameters, p => Assert.Equal(values[p.Name], p.Variable.Value.ToDoubles()));
        Assert.NotEqual(values["model.embed_tokens.weight"], other.Parameters[0].Variable.Value.ToDoubles());
        double[] embeddings = values["model.embed_tokens.weight"];
        Assert.InRange(embeddings.Average(), -0.001, 0.001);
        Assert.InRange(Math.Sqrt(embeddings.Average(x => x * x)), 0.0195, 0.0205);
        Assert.NotEqual(values["model.layers.0.self_attn.q_proj.weight"], values["model.layers.0.self_attn.k_proj.weight"]);
    }

    [Fact]
    public void Master_weights_of_a_bf16_model_start_unrounded()
    {
        LinearLlamaConfig config = Preset.Find("tnl-0.4b-test").Config;
        using Device device = Device.Open("cpu");
        using var exact = new LinearLlamaModel(config, device, DType.F32, seed: 5);
        using var rounded = new LinearLlamaModel(config, device, DType.BF16, seed: 5);
        using var optimizer = new AdamW(rounded.Parameters, new AdamWOptions(), rounded.InitialValue);
        var masters = optimizer.ExportState().ToDictionary(t => t.Name, t => t.Tensor);
        Assert.All(exact.Parameters, p => Assert.Equal(p.Variable.Value.ToDoubles(), masters[p.Name + ".master"].ToDoubles()));
        Assert.All(exact.Parameters.Zip(rounded.Parameters), p => Assert.Equal(TestData.Rounded(p.First.Variable.Value.ToDoubles(), DType.BF16), p.Second.Variable.Value.ToDoubles()));
    }

    [Fact]
    public void Names_are_those_of_Hugging_Face()
    {
        using Device device = Device.Open("cpu");
        using var model = new LinearLlamaModel(Preset.Find("tiny").Config with { NumHiddenLayers = 1, TieWordEmbeddings = false }, device, DType.F32, seed: 1);
        Assert.Equal(
            [
                "lm_head.weight", "model.embed_tokens.weight", "model.layers.0.input_layernorm.weight", "model.layers.0.mlp.down_proj.weight", "model.layers.0.mlp.gate_proj.weight",
                "model.layers.0.mlp.up_proj.weight", "model.layers.0.post_attention_layernorm.weight", "model.layers.0.self_attn.g_proj.weight", "model.layers.0.self_attn.k_proj.weight",
                "model.layers.0.self_attn.o_norm.weight", "model.layers.0.self_attn.o_proj.weight", "model.layers.0.self_attn.q_proj.weight", "model.layers.0.self_attn.v_proj.weight",
                "model.norm.weight",
            ],
            model.Parameters.Select(p => p.Name).Order(StringComparer.Ordinal));
        Assert.All(model.Parameters, p => Assert.Equal(!p.Name.Contains("norm", StringComparison.Ordinal), p.Decays));
    }
}
