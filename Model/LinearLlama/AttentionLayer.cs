using LaspNative.Autograd;

namespace LaspNative.Model;

/// <summary>
/// The part of a block that mixes tokens, x [B, C, hidden] to [B, C, hidden]: four projections, and between them an attention whose message to the other ranks travels
/// while this rank works. The order is the point: k and v come first, then the message starts, then q is projected; in backward, q's gradients are what hides the message.
/// </summary>
internal abstract class AttentionLayer : IDisposable
{
    private readonly Variable _oProj;

    protected AttentionLayer(LinearLlamaConfig config, int keyValueHeads, string prefix, ModelParameters parameters)
    {
        (Config, KeyValueHeads) = (config, keyValueHeads);
        long width = (long)config.NumAttentionHeads * config.HeadWidth, keyValueWidth = (long)keyValueHeads * config.HeadWidth;
        QueryProjection = parameters.Matrix(prefix + "q_proj.weight", width, config.HiddenSize);
        KeyProjection = parameters.Matrix(prefix + "k_proj.weight", keyValueWidth, config.HiddenSize);
        ValueProjection = parameters.Matrix(prefix + "v_proj.weight", keyValueWidth, config.HiddenSize);
        _oProj = parameters.Matrix(prefix + "o_proj.weight", config.HiddenSize, width);
    }

    protected LinearLlamaConfig Config { get; }

    protected int KeyValueHeads { get; }

    /// <summary>[H D, hidden].</summary>
    protected Variable QueryProjection { get; }

    /// <summary>[Hk D, hidden].</summary>
    protected Variable KeyProjection { get; }

    /// <summary>[Hk D, hidden].</summary>
    protected Variable ValueProjection { get; }

    public abstract Variable Forward(Variable x, SequenceContext sequence);

    /// <summary>[B, C, hidden] to [B, C, heads, D].</summary>
    protected Variable Heads(Variable x, Variable weight, int heads) =>
        Linear.Apply(x, weight, [x.Shape[0], x.Shape[1], heads, Config.HeadWidth]);

    /// <summary>Turns heads by their tokens' positions.</summary>
    protected Variable Rotate(Variable heads, SequenceContext sequence) => Rope.Apply(heads, sequence.Positions, Config.RopeTheta);

    /// <summary>o [B, C, H, D] to [B, C, hidden].</summary>
    protected Variable Merge(Variable o) => Linear.Apply(o, _oProj, [o.Shape[0], o.Shape[1], _oProj.Shape[0]]);

    public virtual void Dispose() { }
}
