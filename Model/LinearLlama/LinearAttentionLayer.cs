using LaspNative.Autograd;
using LaspNative.Collectives;
using LaspNative.Runtime;

namespace LaspNative.Model;

/// <summary>
/// Linear attention in a block:
///   k = phi(x Wk), v = x Wv, q = phi(x Wq), gate = x Wg        o = attention(q, k, v; decay)        y = (norm(o) * silu(gate)) Wo
/// The state's message travels while q and the gate are projected.
/// </summary>
internal sealed class LinearAttentionLayer : AttentionLayer
{
    private readonly Variable? _gProj;
    private readonly Variable? _oNorm;
    private readonly Variable? _decay;

    public LinearAttentionLayer(LinearLlamaConfig config, int layer, string prefix, ModelParameters parameters, Device device, DType dtype)
        : base(config, config.LinearKeyValueHeads, prefix, parameters)
    {
        _gProj = config.OutputGate ? parameters.Matrix(prefix + "g_proj.weight", QueryProjection.Shape[0], config.HiddenSize) : null;
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

    public override Variable Forward(Variable x, SequenceContext sequence)
    {
        using PendingAttention pending = BeginAttention(x, sequence);
        using Variable q = Features(x, QueryProjection, Config.NumAttentionHeads, sequence);
        using Variable? gate = _gProj is null ? null : Heads(x, _gProj, Config.NumAttentionHeads);
        using Variable o = LinearAttention.Finish(q, pending);
        using Variable normed = GatedHeadNorm.Apply(o, _oNorm, gate, Config.HeadEps);
        return Merge(normed);
    }

    private PendingAttention BeginAttention(Variable x, SequenceContext sequence)
    {
        using Variable k = Features(x, KeyProjection, KeyValueHeads, sequence);
        using Variable v = Heads(x, ValueProjection, KeyValueHeads);
        return LinearAttention.Begin(k, v, _decay, sequence.Group, sequence.Strategy, sequence.Attention(Config));
    }

    /// <summary>Projected heads after the feature map and, where the model has it, the rotation by position.</summary>
    private Variable Features(Variable x, Variable weight, int heads, SequenceContext sequence)
    {
        Variable projected = Heads(x, weight, heads);
        if (Config is { FeatureMap: not FeatureMap.Silu, LinearRope: false }) return projected;
        using (projected)
        {
            return (Config.FeatureMap, Config.LinearRope) switch
            {
                (FeatureMap.Silu, true) => SiluRope.Apply(projected, sequence.Positions, Config.RopeTheta),
                (FeatureMap.Silu, false) => Silu.Apply(projected),
                _ => Rotate(projected, sequence),
            };
        }
    }

    public override void Dispose() => _decay?.Dispose();
}
