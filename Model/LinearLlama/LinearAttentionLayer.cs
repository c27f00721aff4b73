using LaspNative.Autograd;
using LaspNative.Collectives;
using LaspNative.Runtime;

namespace LaspNative.Model;

/// <summary>
/// The linear-attention part of a block, x [B, C, hidden] to [B, C, hidden]:
///   k = phi(x Wk), v = x Wv, q = phi(x Wq), gate = x Wg        o = attention(q, k, v; decay)        y = (norm(o) * silu(gate)) Wo
/// The order is the point: k and v come first, so that the state's message travels while q and the gate are projected; in backward, the query's and the gate's
/// gradients are what hides the message of the state's gradient.
/// </summary>
internal sealed class LinearAttentionLayer : IDisposable
{
    private readonly LinearLlamaConfig _config;
    private readonly Variable _qProj;
    private readonly Variable _kProj;
    private readonly Variable _vProj;
    private readonly Variable _oProj;
    private readonly Variable? _gProj;
    private readonly Variable? _oNorm;
    private readonly Variable? _decay;

    public LinearAttentionLayer(LinearLlamaConfig config, int layer, string prefix, ModelParameters parameters, Device device, DType dtype)
    {
        _config = config;
        long width = (long)config.NumAttentionHeads * config.HeadWidth, keyValueWidth = (long)config.LinearKeyValueHeads * config.HeadWidth;
        _qProj = parameters.Matrix(prefix + "q_proj.weight", width, config.HiddenSize);
        _kProj = parameters.Matrix(prefix + "k_proj.weight", keyValueWidth, config.HiddenSize);
        _vProj = parameters.Matrix(prefix + "v_proj.weight", keyValueWidth, config.HiddenSize);
        _oProj = parameters.Matrix(prefix + "o_proj.weight", config.HiddenSize, width);
        _gProj = config.OutputGate ? parameters.Matrix(prefix + "g_proj.weight", width, config.HiddenSize) : null;
        _oNorm = parameters.NormWeight(prefix + "o_norm.weight", config.HeadWidth, config.Norm);
        _decay = Decay(config, layer, device, dtype.Accumulator());
    }

    private static Variable? Decay(LinearLlamaConfig config, int layer, Device device, DType dtype)
    {
        if (config.Decay.LogDecay(config.NumAttentionHeads, layer, config.NumHiddenLayers) is not { } decay) return null;
        return Variable.Constant(dtype == DType.F64
            ? Tensor.FromSpan(decay, [decay.Length], device, MemoryCategory.Parameters)
            : Tensor.FromSpan(Array.ConvertAll(decay, g => (float)g), [decay.Length], device, MemoryCategory.Parameters));
    }

    public Variable Forward(Variable x, SequenceContext sequence)
    {
        using PendingAttention pending = BeginAttention(x, sequence);
        using Variable q = Features(x, _qProj, _config.NumAttentionHeads, sequence);
        using Variable? gate = _gProj is null ? null : Heads(x, _gProj, _config.NumAttentionHeads);
        using Variable o = LinearAttention.Finish(q, pending);
        using Variable normed = GatedHeadNorm.Apply(o, _oNorm, gate, _config.HeadEps);
        using Variable merged = Reshape.Apply(normed, [x.Shape[0], x.Shape[1], _oProj.Shape[1]]);
        return Linear.Apply(merged, _oProj);
    }

    private PendingAttention BeginAttention(Variable x, SequenceContext sequence)
    {
        using Variable k = Features(x, _kProj, _config.LinearKeyValueHeads, sequence);
        using Variable v = Heads(x, _vProj, _config.LinearKeyValueHeads);
        var options = new AttentionOptions { QueryHeads = _config.NumAttentionHeads, Partition = sequence.Partition };
        return LinearAttention.Begin(k, v, _decay, sequence.Group, sequence.Strategy, options);
    }

    /// <summary>Projected heads after the feature map and, where the model has it, the rotation by position.</summary>
    private Variable Features(Variable x, Variable weight, int heads, SequenceContext sequence)
    {
        Variable projected = Heads(x, weight, heads);
        Variable mapped = _config.FeatureMap == FeatureMap.Silu ? Consume(projected, Silu.Apply) : projected;
        return _config.LinearRope ? Consume(mapped, h => Rope.Apply(h, sequence.FirstPosition, _config.RopeTheta)) : mapped;
    }

    /// <summary>[B, C, hidden] to [B, C, heads, D].</summary>
    private Variable Heads(Variable x, Variable weight, int heads) =>
        Consume(Linear.Apply(x, weight), flat => Reshape.Apply(flat, [x.Shape[0], x.Shape[1], heads, _config.HeadWidth]));

    private static Variable Consume(Variable input, Func<Variable, Variable> op)
    {
        using (input) return op(input);
    }

    public void Dispose() => _decay?.Dispose();
}
