using System.Globalization;
using System.Text.Json;
using System.Text.Json.Nodes;
using LaspNative.Runtime;

namespace LaspNative.Model;

/// <summary>
/// config.json: Hugging Face's keys for what a Llama has too, our own for the rest. Every key is optional and has the record's default.
/// Keys of Hugging Face that say nothing about the computation are passed over; any other unknown key is an error, since it is most likely a misspelt one.
/// </summary>
public static class LinearLlamaConfigJson
{
    private static readonly JsonSerializerOptions s_indented = new() { WriteIndented = true };

    private static readonly HashSet<string> s_ignored = new(StringComparer.Ordinal)
    {
        "_name_or_path", "architectures", "attention_dropout", "bos_token_id", "dtype", "eos_token_id", "max_position_embeddings", "model_type",
        "pad_token_id", "pretraining_tp", "torch_dtype", "transformers_version", "use_cache",
    };

    private static readonly (LayerType Value, string Name)[] s_layerTypes = [(LayerType.LinearAttention, "linear_attention"), (LayerType.FullAttention, "full_attention")];
    private static readonly (FeatureMap Value, string Name)[] s_featureMaps = [(FeatureMap.Silu, "silu"), (FeatureMap.Identity, "identity")];
    private static readonly (NormKind Value, string Name)[] s_norms = [(NormKind.Rms, "rms"), (NormKind.SimpleRms, "simple_rms")];
    private static readonly (GateActivation Value, string Name)[] s_activations = [(GateActivation.Silu, "silu"), (GateActivation.Identity, "identity")];
    private static readonly (DecayRule Value, string Name)[] s_decayRules = [(DecayRule.Lightning, "lightning"), (DecayRule.Retention, "retention")];
    private static readonly (bool Value, string Name)[] s_decays = [(false, "none"), (true, "head")];

    /// <summary>The configuration as indented JSON.</summary>
    public static string Write(LinearLlamaConfig config)
    {
        ArgumentNullException.ThrowIfNull(config);
        var json = new JsonObject
        {
            ["model_type"] = "linear_llama3",
            ["vocab_size"] = config.VocabSize,
            ["hidden_size"] = config.HiddenSize,
            ["num_hidden_layers"] = config.NumHiddenLayers,
            ["num_attention_heads"] = config.NumAttentionHeads,
            ["num_key_value_heads"] = config.FullKeyValueHeads,
            ["linear_num_key_value_heads"] = config.LinearKeyValueHeads,
            ["head_dim"] = config.HeadWidth,
            ["intermediate_size"] = config.IntermediateSize,
            ["hidden_act"] = NameOf(s_activations, config.HiddenAct),
            ["rms_norm_eps"] = config.RmsNormEps,
            ["head_norm_eps"] = config.HeadEps,
            ["rope_theta"] = config.RopeTheta,
            ["tie_word_embeddings"] = config.TieWordEmbeddings,
            ["initializer_range"] = config.InitializerRange,
            ["layer_types"] = new JsonArray([.. Enumerable.Range(0, config.NumHiddenLayers).Select(i => JsonValue.Create(NameOf(s_layerTypes, config.LayerTypeOf(i))))]),
            ["is_decoder"] = config.IsDecoder,
            ["feature_map"] = NameOf(s_featureMaps, config.FeatureMap),
            ["output_gate"] = config.OutputGate,
            ["linear_rope"] = config.LinearRope,
            ["norm"] = NameOf(s_norms, config.Norm),
            ["decay"] = NameOf(s_decays, config.Decay != DecayRule.None),
        };
        if (config.Decay != DecayRule.None) json["decay_rule"] = NameOf(s_decayRules, config.Decay);
        if (config.MaskTokenId is { } mask) json["mask_token_id"] = mask;
        return json.ToJsonString(s_indented);
    }

    /// <summary>Reads and validates a file. Throws <see cref="LaspException"/> with the file's name and the key at fault.</summary>
    public static LinearLlamaConfig ReadFile(string path)
    {
        try
        {
            return Parse(File.ReadAllText(path));
        }
        catch (Exception error) when (error is LaspException or IOException or UnauthorizedAccessException)
        {
            throw new LaspException(
                error is FileNotFoundException or DirectoryNotFoundException
                    ? $"configuration {path}: no such file; give the path of a config.json, such as one of a checkpoint"
                    : $"configuration {path}: {error.Message}",
                error);
        }
    }

    /// <summary>Reads and validates a configuration. Throws <see cref="LaspException"/> with the key at fault.</summary>
    public static LinearLlamaConfig Parse(string text)
    {
        var fields = new Fields(text);
        var defaults = new LinearLlamaConfig();
        var config = new LinearLlamaConfig
        {
            VocabSize = fields.Integer("vocab_size") ?? defaults.VocabSize,
            HiddenSize = fields.Integer("hidden_size") ?? defaults.HiddenSize,
            NumHiddenLayers = fields.Integer("num_hidden_layers") ?? defaults.NumHiddenLayers,
            NumAttentionHeads = fields.Integer("num_attention_heads") ?? defaults.NumAttentionHeads,
            NumKeyValueHeads = fields.Integer("num_key_value_heads"),
            LinearNumKeyValueHeads = fields.Integer("linear_num_key_value_heads"),
            HeadDim = fields.Integer("head_dim"),
            IntermediateSize = fields.Integer("intermediate_size") ?? defaults.IntermediateSize,
            HiddenAct = fields.Choice("hidden_act", s_activations) ?? defaults.HiddenAct,
            RmsNormEps = fields.Number("rms_norm_eps") ?? defaults.RmsNormEps,
            HeadNormEps = fields.Number("head_norm_eps"),
            RopeTheta = fields.Number("rope_theta") ?? defaults.RopeTheta,
            TieWordEmbeddings = fields.Flag("tie_word_embeddings") ?? defaults.TieWordEmbeddings,
            InitializerRange = fields.Number("initializer_range") ?? defaults.InitializerRange,
            LayerTypes = fields.Choices("layer_types", s_layerTypes) ?? defaults.LayerTypes,
            IsDecoder = fields.Flag("is_decoder") ?? defaults.IsDecoder,
            MaskTokenId = fields.Integer("mask_token_id"),
            FeatureMap = fields.Choice("feature_map", s_featureMaps) ?? defaults.FeatureMap,
            OutputGate = fields.Flag("output_gate") ?? defaults.OutputGate,
            LinearRope = fields.Flag("linear_rope") ?? defaults.LinearRope,
            Norm = fields.Choice("norm", s_norms) ?? defaults.Norm,
            Decay = Decay(fields),
        };
        foreach (string key in (string[])["attention_bias", "mlp_bias"])
            if (fields.Flag(key) == true) throw new LaspException($"{key} is true, but this model has no biases; set it to false");
        fields.RequireAllRead(s_ignored);
        config.Validate();
        return config;
    }

    private static DecayRule Decay(Fields fields)
    {
        DecayRule? rule = fields.Choice("decay_rule", s_decayRules);
        if (fields.Choice("decay", s_decays) == true)
            return rule ?? throw new LaspException("decay is \"head\" but decay_rule is missing; add decay_rule: \"lightning\" or \"retention\"");
        return rule is null ? DecayRule.None : throw new LaspException("decay_rule needs decay: \"head\"; remove decay_rule, or set decay");
    }

    private static string NameOf<T>((T Value, string Name)[] names, T value) => names.First(n => EqualityComparer<T>.Default.Equals(n.Value, value)).Name;

    /// <summary>The keys of one JSON object, each read once; what is left over at the end is unknown.</summary>
    private sealed class Fields
    {
        private readonly Dictionary<string, JsonElement> _unread = new(StringComparer.Ordinal);
        private readonly List<string> _read = [];

        public Fields(string text)
        {
            JsonElement root;
            try
            {
                using var document = JsonDocument.Parse(text, new JsonDocumentOptions { AllowTrailingCommas = true, CommentHandling = JsonCommentHandling.Skip });
                root = document.RootElement.Clone();
            }
            catch (JsonException error)
            {
                throw new LaspException($"not valid JSON: line {error.LineNumber + 1}, column {error.BytePositionInLine + 1}; correct it there", error);
            }
            if (root.ValueKind != JsonValueKind.Object) throw new LaspException($"a configuration is a JSON object, this is {Describe(root)}; enclose its keys in braces");
            foreach (JsonProperty property in root.EnumerateObject()) _unread[property.Name] = property.Value;
        }

        public int? Integer(string key) => Take(key) is { } value
            ? value.ValueKind == JsonValueKind.Number && value.TryGetInt32(out int number) ? number : throw Invalid(key, value, "an integer")
            : null;

        public double? Number(string key) => Take(key) is { } value
            ? value.ValueKind == JsonValueKind.Number && value.TryGetDouble(out double number) && double.IsFinite(number) ? number : throw Invalid(key, value, "a number")
            : null;

        public bool? Flag(string key) => Take(key) is { } value
            ? value.ValueKind is JsonValueKind.True or JsonValueKind.False ? value.GetBoolean() : throw Invalid(key, value, "true or false")
            : null;

        public T? Choice<T>(string key, (T Value, string Name)[] names) where T : struct => Take(key) is { } value ? Parse(key, value, names) : null;

        public List<T>? Choices<T>(string key, (T Value, string Name)[] names) where T : struct
        {
            if (Take(key) is not { } value) return null;
            if (value.ValueKind != JsonValueKind.Array) throw Invalid(key, value, "a list");
            return [.. value.EnumerateArray().Select(item => Parse(key, item, names))];
        }

        public void RequireAllRead(HashSet<string> ignored)
        {
            string? unknown = _unread.Keys.FirstOrDefault(k => !ignored.Contains(k) && _unread[k].ValueKind != JsonValueKind.Null);
            if (unknown is not null) throw new LaspException($"unknown key '{unknown}'; the keys are {string.Join(", ", _read.Order(StringComparer.Ordinal))}");
        }

        private JsonElement? Take(string key)
        {
            _read.Add(key);
            return _unread.Remove(key, out JsonElement value) && value.ValueKind != JsonValueKind.Null ? value : null;
        }

        private static T Parse<T>(string key, JsonElement value, (T Value, string Name)[] names)
        {
            foreach ((T choice, string name) in names)
                if (value.ValueKind == JsonValueKind.String && value.GetString() == name) return choice;
            throw Invalid(key, value, string.Join(" or ", names.Select(n => $"\"{n.Name}\"")));
        }

        private static LaspException Invalid(string key, JsonElement value, string expected) => new($"{key} is {Describe(value)}; it must be {expected}");

        private static string Describe(JsonElement value) => value.ValueKind switch
        {
            JsonValueKind.Object => "an object",
            JsonValueKind.Array => string.Create(CultureInfo.InvariantCulture, $"a list of {value.GetArrayLength()}"),
            _ => value.GetRawText().ReplaceLineEndings(" "),
        };
    }
}
