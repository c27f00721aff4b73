using LaspNative.Autograd;
using LaspNative.Runtime;

namespace LaspNative.Model;

/// <summary>
/// One layer:  h = x + attention(norm(x)),  y = h + Wdown (act(Wgate n) * Wup n) with n = norm(h).
/// </summary>
internal sealed class LinearLlamaBlock : IDisposable
{
    private readonly LinearLlamaConfig _config;
    private readonly Variable? _inputNorm;
    private readonly AttentionLayer _attention;
    private readonly Variable? _postAttentionNorm;
    private readonly Variable _gateProj;
    private readonly Variable _upProj;
    private readonly Variable _downProj;

    public LinearLlamaBlock(LinearLlamaConfig config, int layer, ModelParameters parameters, Device device, DType dtype)
    {
        _config = config;
        string prefix = $"model.layers.{layer}.";
        _inputNorm = parameters.NormWeight(prefix + "input_layernorm.weight", config.HiddenSize, config.Norm);
        _attention = config.LayerTypeOf(layer) == LayerType.LinearAttention
            ? new LinearAttentionLayer(config, layer, prefix + "self_attn.", parameters, device, dtype)
            : new FullAttentionLayer(config, prefix + "self_attn.", parameters);
        _postAttentionNorm = parameters.NormWeight(prefix + "post_attention_layernorm.weight", config.HiddenSize, config.Norm);
        _gateProj = parameters.Matrix(prefix + "mlp.gate_proj.weight", config.IntermediateSize, config.HiddenSize);
        _upProj = parameters.Matrix(prefix + "mlp.up_proj.weight", config.IntermediateSize, config.HiddenSize);
        _downProj = parameters.Matrix(prefix + "mlp.down_proj.weight", config.HiddenSize, config.IntermediateSize);
    }

    /// <summary>x [B, C, hidden] to y of the same shape.</summary>
    public Variable Forward(Variable x, SequenceContext sequence)
    {
        using Variable h = AddAttention(x, sequence);
        using Variable fed = FeedForward(h);
        return Add.Apply(h, fed);
    }

    private Variable AddAttention(Variable x, SequenceContext sequence)
    {
        using Variable normed = RmsNorm.Apply(x, _inputNorm, _config.RmsNormEps);
        using Variable attended = _attention.Forward(normed, sequence);
        return Add.Apply(x, attended);
    }

    private Variable FeedForward(Variable h)
    {
        using Variable normed = RmsNorm.Apply(h, _postAttentionNorm, _config.RmsNormEps);
        using Variable gate = Linear.Apply(normed, _gateProj);
        using Variable up = Linear.Apply(normed, _upProj);
        using Variable hidden = GatedLinearUnit.Apply(gate, up, _config.HiddenAct);
        return Linear.Apply(hidden, _downProj);
    }

    public void Dispose() => _attention.Dispose();
}
