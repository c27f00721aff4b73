using LaspNative.Runtime;

namespace LaspNative.Model;

/// <summary>What mixes tokens in a layer.</summary>
public enum LayerType
{
    /// <summary>A recurrent state of D x E per head, sequence-parallel by its affine maps.</summary>
    LinearAttention,

    /// <summary>Standard softmax attention with rotary positions.</summary>
    FullAttention,
}

/// <summary>What is applied to the projected queries and keys of a linear layer.</summary>
public enum FeatureMap
{
    Silu,
    Identity,
}

/// <summary>The normalisation before attention and before the feed-forward part.</summary>
public enum NormKind
{
    /// <summary>RMSNorm with a learned weight.</summary>
    Rms,

    /// <summary>RMSNorm without weight: SimpleRMSNorm of TransNormerLLM.</summary>
    SimpleRms,
}

/// <summary>
/// The shape of a Linear-Llama3: a Llama whose softmax attention is replaced, in some or all layers, by linear attention.
/// JSON keys are those of Hugging Face's Llama configuration where one exists (<see cref="LinearLlamaConfigJson"/>).
/// </summary>
public sealed record LinearLlamaConfig
{
    public int VocabSize { get; init; } = 256;

    public int HiddenSize { get; init; } = 128;

    public int NumHiddenLayers { get; init; } = 4;

    /// <summary>H: query heads of every layer.</summary>
    public int NumAttentionHeads { get; init; } = 4;

    /// <summary>Key/value heads of the softmax layers.</summary>
    public int? NumKeyValueHeads { get; init; }

    /// <summary>Hk: key/value heads of the linear layers; all of them by default, as a linear layer has no key/value cache to shrink.</summary>
    public int? LinearNumKeyValueHeads { get; init; }

    /// <summary>D = E: width of one head; hidden size / heads by default.</summary>
    public int? HeadDim { get; init; }

    /// <summary>Width of the feed-forward part.</summary>
    public int IntermediateSize { get; init; } = 384;

    public double RmsNormEps { get; init; } = 1e-5;

    /// <summary>
    /// Added to the mean square in the norm of a head's output; <see cref="RmsNormEps"/> by default. Outputs that are nearly zero, as of a sequence's first tokens, keep only their
    /// sign under a small one: then rounding differences grow about tenfold per step, and runs that should agree do not. 1 lets small outputs stay small.
    /// </summary>
    public double? HeadNormEps { get; init; }

    /// <summary>Base of the rotary angles.</summary>
    public double RopeTheta { get; init; } = 500000;

    /// <summary>Whether the output matrix is the embedding table.</summary>
    public bool TieWordEmbeddings { get; init; } = true;

    /// <summary>Standard deviation of the initial weights.</summary>
    public double InitializerRange { get; init; } = 0.02;

    /// <summary>One entry per layer; empty means that every layer is linear.</summary>
    public IReadOnlyList<LayerType> LayerTypes { get; init; } = [];

    /// <summary>Whether a token sees only itself and earlier ones; otherwise all tokens, and the model is trained to fill in masked ones.</summary>
    public bool IsDecoder { get; init; } = true;

    /// <summary>The token that stands for a masked one; only for a model that is no decoder.</summary>
    public int? MaskTokenId { get; init; }

    public FeatureMap FeatureMap { get; init; } = FeatureMap.Silu;

    /// <summary>Whether the heads' normed output is multiplied by silu of a gate projection.</summary>
    public bool OutputGate { get; init; } = true;

    /// <summary>Whether the queries and keys of linear layers are rotated by their position (Retention).</summary>
    public bool LinearRope { get; init; }

    /// <summary>Fixed forgetting of the linear layers, per head, or none.</summary>
    public DecayRule Decay { get; init; } = DecayRule.None;

    public NormKind Norm { get; init; } = NormKind.Rms;

    /// <summary>Activation of the feed-forward gate.</summary>
    public GateActivation HiddenAct { get; init; } = GateActivation.Silu;

    internal int HeadWidth => HeadDim ?? HiddenSize / NumAttentionHeads;

    internal double HeadEps => HeadNormEps ?? RmsNormEps;

    internal int LinearKeyValueHeads => LinearNumKeyValueHeads ?? NumAttentionHeads;

    internal int FullKeyValueHeads => NumKeyValueHeads ?? NumAttentionHeads;

    public LayerType LayerTypeOf(int layer) => LayerTypes.Count == 0 ? LayerType.LinearAttention : LayerTypes[layer];

    public bool HasLayersOf(LayerType type) => Enumerable.Range(0, NumHiddenLayers).Any(i => LayerTypeOf(i) == type);

    /// <summary>Throws a <see cref="LaspException"/> that names the first value no model can have.</summary>
    public void Validate()
    {
        RequirePositive(VocabSize, "vocab_size");
        RequirePositive(HiddenSize, "hidden_size");
        RequirePositive(NumHiddenLayers, "num_hidden_layers");
        RequirePositive(NumAttentionHeads, "num_attention_heads");
        RequirePositive(IntermediateSize, "intermediate_size");
        if (HeadDim is null && HiddenSize % NumAttentionHeads != 0)
            throw new LaspException($"hidden_size {HiddenSize} is not a multiple of num_attention_heads {NumAttentionHeads}; change one of them or give head_dim");
        if (HeadWidth is < 1 or > 256) throw new LaspException($"a head width of {HeadWidth} is not supported; head_dim lies between 1 and 256");
        RequireDivides(FullKeyValueHeads, "num_key_value_heads");
        RequireDivides(LinearKeyValueHeads, "linear_num_key_value_heads");
        if (!(RmsNormEps > 0)) throw new LaspException($"rms_norm_eps is {RmsNormEps}; it must be greater than 0");
        if (!(HeadEps > 0)) throw new LaspException($"head_norm_eps is {HeadEps}; it must be greater than 0");
        if (!(RopeTheta > 0)) throw new LaspException($"rope_theta is {RopeTheta}; it must be greater than 0");
        if (!(InitializerRange >= 0)) throw new LaspException($"initializer_range is {InitializerRange}; it must be 0 or more");
        if (LayerTypes.Count != 0 && LayerTypes.Count != NumHiddenLayers)
            throw new LaspException($"layer_types names {LayerTypes.Count} layers but num_hidden_layers is {NumHiddenLayers}; give one entry per layer");
        if (HeadWidth % 2 != 0 && (LinearRope || LayerTypes.Contains(LayerType.FullAttention)))
            throw new LaspException($"a head width of {HeadWidth} is odd; {(LinearRope ? "linear_rope" : "full_attention")} rotates pairs, so head_dim must be even");
        if (!IsDecoder && Decay != DecayRule.None) throw new LaspException("is_decoder is false, but a decay needs a direction; set decay to \"none\"");
        if (MaskTokenId < 0 || MaskTokenId >= VocabSize) throw new LaspException($"mask_token_id is {MaskTokenId}; it must lie between 0 and vocab_size - 1, {VocabSize - 1}");
    }

    private static void RequirePositive(int value, string key)
    {
        if (value < 1) throw new LaspException($"{key} is {value}; it must be at least 1");
    }

    private void RequireDivides(int heads, string key)
    {
        if (heads < 1 || NumAttentionHeads % heads != 0)
            throw new LaspException($"{key} {heads} does not divide num_attention_heads {NumAttentionHeads}; each key/value head serves the same number of query heads");
    }

    /// <summary>Numbers in all weights; tied embeddings count once.</summary>
    public long ParameterCount
    {
        get
        {
            long embeddings = (long)VocabSize * HiddenSize * (TieWordEmbeddings ? 1 : 2);
            long norm = Norm == NormKind.Rms ? HiddenSize : 0;
            long layers = 0;
            for (int i = 0; i < NumHiddenLayers; i++) layers += AttentionParameterCount(i) + 3L * HiddenSize * IntermediateSize + 2 * norm;
            return embeddings + layers + norm;
        }
    }

    private long AttentionParameterCount(int layer)
    {
        bool linear = LayerTypeOf(layer) == LayerType.LinearAttention;
        long heads = NumAttentionHeads, keyValueHeads = linear ? LinearKeyValueHeads : FullKeyValueHeads;
        long projections = 2 * heads + 2 * keyValueHeads + (linear && OutputGate ? heads : 0);
        long headNorm = linear && Norm == NormKind.Rms ? HeadWidth : 0;
        return projections * HeadWidth * HiddenSize + headNorm;
    }

    /// <summary>
    /// Floating-point operations of forward and backward per token of a sequence: 6 per parameter; per linear layer 3 H (4 x 64 D + 4 D D), products inside sub-chunks of 64 tokens
    /// (none without a mask) and with the state; per softmax layer 3 H 4 N D, halved where a token sees only earlier ones. The convention by which training speeds are compared.
    /// </summary>
    /// <param name="sequenceLength">N.</param>
    public double FlopsPerToken(long sequenceLength)
    {
        double linear = (IsDecoder ? 4.0 * 64 * HeadWidth : 0) + 4.0 * HeadWidth * HeadWidth;
        double softmax = 4.0 * sequenceLength * HeadWidth * (IsDecoder ? 0.5 : 1);
        double perHead = Enumerable.Range(0, NumHiddenLayers).Sum(i => LayerTypeOf(i) == LayerType.LinearAttention ? linear : softmax);
        return 6.0 * ParameterCount + 3.0 * NumAttentionHeads * perHead;
    }

    public bool Equals(LinearLlamaConfig? other) => other is not null && LinearLlamaConfigJson.Write(this) == LinearLlamaConfigJson.Write(other);

    public override int GetHashCode() => HashCode.Combine(VocabSize, HiddenSize, NumHiddenLayers, NumAttentionHeads, IntermediateSize);
}
