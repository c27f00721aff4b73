using LaspNative.Autograd;
using LaspNative.Collectives;
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
        int first = parameters.All.Count;
        string prefix = $"model.layers.{layer}.";
        _inputNorm = parameters.NormWeight(prefix + "input_layernorm.weight", config.HiddenSize, config.Norm);
        _attention = config.LayerTypeOf(layer) == LayerType.LinearAttention
            ? new LinearAttentionLayer(config, layer, prefix + "self_attn.", parameters, device, dtype)
            : new FullAttentionLayer(config, prefix + "self_attn.", parameters);
        _postAttentionNorm = parameters.NormWeight(prefix + "post_attention_layernorm.weight", config.HiddenSize, config.Norm);
        _gateProj = parameters.Matrix(prefix + "mlp.gate_proj.weight", config.IntermediateSize, config.HiddenSize);
        _upProj = parameters.Matrix(prefix + "mlp.up_proj.weight", config.IntermediateSize, config.HiddenSize);
        _downProj = parameters.Matrix(prefix + "mlp.down_proj.weight", config.HiddenSize, config.IntermediateSize);
        Parameters = [.. parameters.All.Skip(first)];
    }

    public IReadOnlyList<NamedParameter> Parameters { get; }

    /// <summary>The stream of x [B, C, hidden] to that of y; takes the former over.</summary>
    public ResidualStream Forward(ResidualStream x, SequenceContext sequence)
    {
        (Variable sum, Variable normed) = x.Norm(_inputNorm, _config.RmsNormEps);
        ResidualStream h;
        using (normed) h = new ResidualStream(sum, _attention.Forward(normed, sequence));
        (sum, normed) = h.Norm(_postAttentionNorm, _config.RmsNormEps);
        using (normed) return new ResidualStream(sum, FeedForward(normed, sequence));
    }

    /// <summary>As <see cref="Forward"/>, keeping nothing but x, and where they are wanted the attention's entering states, until backward runs the block again.</summary>
    public ResidualStream ForwardTwice(ResidualStream x, SequenceContext sequence)
    {
        using Variable joined = x.Join();
        StateCache? states = sequence.Recomputation.KeepStates ? new StateCache() : null;
        Variable[] y = Recompute.Apply([joined], (inputs, run) => Run(inputs[0], sequence with { States = states, Run = run }), states, sequence.Inputs, sequence.Recomputation.CheapValuesOfBlocks);
        return new ResidualStream(y[0], y[1]);
    }

    private Variable[] Run(Variable x, SequenceContext sequence)
    {
        ResidualStream y = Forward(new ResidualStream(x, null), sequence);
        return [y.Sum, y.Branch!];
    }

    private Variable FeedForward(Variable normed, SequenceContext sequence)
    {
        return sequence.Recomputation.FeedForwardChunk(normed.Shape.Rows) is { } chunk
            ? RowChunks.Apply(normed, chunk, FeedForward, sequence.Run)
            : FeedForward(normed, sequence.Run);
    }

    /// <summary>The down projection makes the block's output, so a replay leaves it out.</summary>
    private Variable FeedForward(Variable normed, RegionRun run)
    {
        using Variable gate = Linear.Apply(normed, _gateProj);
        using Variable up = Linear.Apply(normed, _upProj);
        return GatedProjection.Apply(gate, up, _config.HiddenAct, _downProj, run);
    }

    public void Dispose() => _attention.Dispose();
}
