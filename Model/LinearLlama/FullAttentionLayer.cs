using LaspNative.Autograd;
using LaspNative.Collectives;

namespace LaspNative.Model;

/// <summary>
/// Softmax attention in a block, as in Llama:
///   k = rope(x Wk), v = x Wv, q = rope(x Wq)        o = softmax(q k^T / sqrt(D)) v        y = o Wo
/// Keys and values have few heads (grouped-query attention), which is what makes their message small.
/// </summary>
internal sealed class FullAttentionLayer(LinearLlamaConfig config, string prefix, ModelParameters parameters) : AttentionLayer(config, config.FullKeyValueHeads, prefix, parameters)
{
    public override Variable Forward(Variable x, SequenceContext sequence)
    {
        using PendingSoftmaxAttention pending = BeginAttention(x, sequence);
        using Variable q = Rotated(x, QueryProjection, Config.NumAttentionHeads, sequence);
        using Variable o = SoftmaxAttention.Finish(q, pending);
        return Merge(o);
    }

    private PendingSoftmaxAttention BeginAttention(Variable x, SequenceContext sequence)
    {
        using Variable k = Rotated(x, KeyProjection, KeyValueHeads, sequence);
        using Variable v = Heads(x, ValueProjection, KeyValueHeads);
        return SoftmaxAttention.Begin(k, v, sequence.Group, sequence.SoftmaxStrategy, sequence.Attention(Config));
    }

    private Variable Rotated(Variable x, Variable weight, int heads, SequenceContext sequence)
    {
        using Variable projected = Heads(x, weight, heads);
        return Rotate(projected, sequence);
    }
}
