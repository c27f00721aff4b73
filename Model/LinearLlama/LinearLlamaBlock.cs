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

    /// <summary>The stream of x [B, C, hidden] to that of y; takes the former over.</summary>
    public ResidualStream Forward(ResidualStream x, SequenceContext sequence)
    {
        ResidualStream h = Continue(x, _inputNorm, normed => _attention.Forward(normed, sequence));
        return Continue(h, _postAttentionNorm, FeedForward);
    }

    private ResidualStream Continue(ResidualStream stream, Variable? norm, Func<Variable, Variable> branch)
    {
        (Variable sum, Variable normed) = stream.Norm(norm, _config.RmsNormEps);
        using (normed) return new ResidualStream(sum, branch(normed));
    }

    private Variable FeedForward(Variable normed)
    {
        using Variable gate = Linear.Apply(normed, _gateProj);
        using Variable up = Linear.Apply(normed, _upProj);
        using Variable hidden = GatedLinearUnit.Apply(gate, up, _config.HiddenAct);
        return Linear.Apply(hidden, _downProj);
    }

    public void Dispose() => _attention.Dispose();
}
