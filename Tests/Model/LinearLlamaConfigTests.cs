using System.Text.Json.Nodes;
using LaspNative.Model;
using LaspNative.Runtime;
using Xunit;

namespace LaspNative.Tests.Model;

/// <summary>config.json: what is written is read back, Hugging Face's files are understood, and a bad value is named in one line.</summary>
public class LinearLlamaConfigTests
{
    public static TheoryData<string> PresetNames => [.. Presets.All.Select(p => p.Name)];

    [Theory]
    [MemberData(nameof(PresetNames))]
    public void Every_preset_survives_a_round_trip(string name)
    {
        LinearLlamaConfig config = Preset.Find(name).Config;
        Assert.Equal(config, LinearLlamaConfigJson.Parse(LinearLlamaConfigJson.Write(config)));
    }

    [Fact]
    public void Every_value_survives_a_round_trip()
    {
        var config = new LinearLlamaConfig
        {
            VocabSize = 300,
            HiddenSize = 96,
            NumHiddenLayers = 2,
            NumAttentionHeads = 6,
            NumKeyValueHeads = 2,
            LinearNumKeyValueHeads = 3,
            HeadDim = 20,
            IntermediateSize = 50,
            RmsNormEps = 1e-6,
            HeadNormEps = 0.5,
            RopeTheta = 10000.5,
            TieWordEmbeddings = false,
            InitializerRange = 0.1,
            LayerTypes = [LayerType.FullAttention, LayerType.LinearAttention],
            FeatureMap = FeatureMap.Identity,
            OutputGate = false,
            IsDecoder = false,
            MaskTokenId = 299,
            LinearRope = true,
            Norm = NormKind.SimpleRms,
            HiddenAct = GateActivation.Identity,
        };
        LinearLlamaConfig read = LinearLlamaConfigJson.Parse(LinearLlamaConfigJson.Write(config));
        Assert.Equal(config.LayerTypes, read.LayerTypes);
        Assert.Equal(config with { LayerTypes = [] }, read with { LayerTypes = [] });
        LinearLlamaConfig decaying = config with { IsDecoder = true, MaskTokenId = null, Decay = DecayRule.Retention };
        Assert.Equal(decaying, LinearLlamaConfigJson.Parse(LinearLlamaConfigJson.Write(decaying)));
    }

    [Theory]
    [InlineData("LLLN", 8, "LLLNLLLN")]
    [InlineData("LN", 5, "LNLNL")]
    [InlineData("N", 2, "NN")]
    [InlineData("L", 1, "L")]
    public void A_layer_pattern_is_repeated_to_the_models_depth(string pattern, int layers, string expected) =>
        Assert.Equal(expected, string.Concat(LayerPattern.Parse(pattern, layers).Select(t => t == LayerType.LinearAttention ? 'L' : 'N')));

    [Theory]
    [InlineData("", "layer pattern ''")]
    [InlineData("LLX", "layer pattern 'LLX'")]
    [InlineData("LLLN", "names 4 layers but the model has 3")]
    public void A_layer_pattern_that_fits_no_model_is_refused(string pattern, string named) =>
        Assert.Contains(named, Assert.Throws<LaspException>(() => LayerPattern.Parse(pattern, 3)).Message, StringComparison.Ordinal);

    [Fact]
    public void The_keys_are_those_of_Hugging_Face()
    {
        JsonNode json = JsonNode.Parse(LinearLlamaConfigJson.Write(Preset.Find("linear-llama3-1b-hybrid4").Config))!;
        Assert.Equal(2048, (int)json["hidden_size"]!);
        Assert.Equal(16, (int)json["num_hidden_layers"]!);
        Assert.Equal(16, (int)json["num_attention_heads"]!);
        Assert.Equal(8, (int)json["num_key_value_heads"]!);
        Assert.Equal(8192, (int)json["intermediate_size"]!);
        Assert.Equal(128256, (int)json["vocab_size"]!);
        Assert.Equal(1e-5, (double)json["rms_norm_eps"]!);
        Assert.Equal(500000, (double)json["rope_theta"]!);
        Assert.True((bool)json["tie_word_embeddings"]!);
        Assert.Equal(0.02, (double)json["initializer_range"]!);
        Assert.Equal(["linear_attention", "linear_attention", "linear_attention", "full_attention"], json["layer_types"]!.AsArray().Take(4).Select(t => (string)t!));
    }

    [Fact]
    public void Keys_of_Hugging_Face_that_change_nothing_are_passed_over()
    {
        LinearLlamaConfig config = LinearLlamaConfigJson.Parse("""
            { "architectures": ["LlamaForCausalLM"], "model_type": "llama", "torch_dtype": "bfloat16", "bos_token_id": 1, "use_cache": true, "attention_bias": false,
              "rope_scaling": null, "hidden_size": 64, "num_attention_heads": 2 }
            """);
        Assert.Equal(64, config.HiddenSize);
        Assert.Equal(32, config.HeadDim ?? config.HiddenSize / config.NumAttentionHeads);
    }

    [Theory]
    [InlineData("""{ "hiden_size": 3 }""", "hiden_size")]
    [InlineData("""{ "hidden_size": "x" }""", "hidden_size is \"x\"")]
    [InlineData("""{ "hidden_size": 1.5 }""", "hidden_size is 1.5")]
    [InlineData("""{ "hidden_size": -4 }""", "hidden_size is -4")]
    [InlineData("""{ "hidden_size": 130 }""", "hidden_size 130")]
    [InlineData("""{ "num_attention_heads": 0 }""", "num_attention_heads is 0")]
    [InlineData("""{ "num_key_value_heads": 3 }""", "num_key_value_heads 3")]
    [InlineData("""{ "linear_num_key_value_heads": 0 }""", "linear_num_key_value_heads 0")]
    [InlineData("""{ "head_dim": 300 }""", "300")]
    [InlineData("""{ "head_dim": 15, "linear_rope": true }""", "15")]
    [InlineData("""{ "feature_map": "relu" }""", "feature_map is \"relu\"")]
    [InlineData("""{ "hidden_act": "gelu" }""", "hidden_act is \"gelu\"")]
    [InlineData("""{ "norm": "layer" }""", "norm is \"layer\"")]
    [InlineData("""{ "decay": "token" }""", "decay is \"token\"")]
    [InlineData("""{ "decay": "head" }""", "decay_rule is missing")]
    [InlineData("""{ "decay_rule": "lightning" }""", "decay_rule needs")]
    [InlineData("""{ "layer_types": ["linear_attention"] }""", "layer_types names 1")]
    [InlineData("""{ "layer_types": "linear_attention" }""", "layer_types")]
    [InlineData("""{ "layer_types": ["mamba"] }""", "mamba")]
    [InlineData("""{ "output_gate": 1 }""", "output_gate is 1")]
    [InlineData("""{ "head_dim": 15, "num_hidden_layers": 1, "layer_types": ["full_attention"] }""", "full_attention rotates pairs")]
    [InlineData("""{ "is_decoder": "no" }""", "is_decoder is \"no\"")]
    [InlineData("""{ "is_decoder": false, "decay": "head", "decay_rule": "lightning" }""", "is_decoder is false, but a decay needs a direction")]
    [InlineData("""{ "mask_token_id": 256 }""", "mask_token_id is 256; it must lie between 0 and vocab_size - 1, 255")]
    [InlineData("""{ "rms_norm_eps": 0 }""", "rms_norm_eps is 0")]
    [InlineData("""{ "head_norm_eps": -1 }""", "head_norm_eps is -1")]
    [InlineData("""{ "attention_bias": true }""", "attention_bias is true")]
    [InlineData("""{ "rope_scaling": { "factor": 8 } }""", "rope_scaling")]
    [InlineData("""[1]""", "object")]
    [InlineData("{ \"hidden_size\":\n 1,, }", "line 2")]
    public void A_bad_value_is_named_in_one_line(string json, string named)
    {
        LaspException error = Assert.Throws<LaspException>(() => LinearLlamaConfigJson.Parse(json));
        Assert.Contains(named, error.Message, StringComparison.Ordinal);
        Assert.DoesNotContain('\n', error.Message);
    }

    [Fact]
    public void An_error_in_a_file_names_the_file()
    {
        string path = Path.GetTempFileName();
        try
        {
            File.WriteAllText(path, """{ "norm": 3 }""");
            Assert.Contains(path, Assert.Throws<LaspException>(() => LinearLlamaConfigJson.ReadFile(path)).Message, StringComparison.Ordinal);
        }
        finally
        {
            File.Delete(path);
        }
        Assert.Contains(path, Assert.Throws<LaspException>(() => LinearLlamaConfigJson.ReadFile(path)).Message, StringComparison.Ordinal);
    }

    [Fact]
    public void Slopes_follow_the_papers()
    {
        double[] first = DecayRule.Lightning.LogDecay(heads: 8, layer: 0, layers: 4)!;
        Assert.Equal(-0.5 * (1 + 1e-5), first[0], 12);
        Assert.Equal(-Math.Pow(2, -8) * (1 + 1e-5), first[7], 12);
        double[] last = DecayRule.Lightning.LogDecay(heads: 8, layer: 3, layers: 4)!;
        Assert.Equal(-0.5 * 1e-5, last[0], 12);
        double[] retention = DecayRule.Retention.LogDecay(heads: 2, layer: 3, layers: 4)!;
        Assert.Equal(Math.Log(31.0 / 32), retention[0], 12);
        Assert.Equal(Math.Log(63.0 / 64), retention[1], 12);
        Assert.Null(DecayRule.None.LogDecay(2, 0, 1));
    }
}
