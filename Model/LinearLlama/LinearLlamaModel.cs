using LaspNative.Autograd;
using LaspNative.Runtime;

namespace LaspNative.Model;

/// <summary>
/// Linear-Llama3 on one rank: the whole set of parameters, applied to this rank's chunk of each sequence. Ranks meet only in the attention layers.
/// </summary>
public sealed class LinearLlamaModel : IDisposable
{
    private readonly List<LinearLlamaBlock> _blocks = [];
    private readonly ModelParameters _parameters;
    private readonly Variable _embedTokens;
    private readonly Variable? _norm;
    private readonly Variable _lmHead;

    /// <summary>Builds the model with initial weights of this seed. Throws <see cref="LaspException"/> for a configuration that no model can have.</summary>
    public LinearLlamaModel(LinearLlamaConfig config, Device device, DType dtype, ulong seed) : this(config, device, dtype, seed, gradientDType: null, keepsInitialValues: false) { }

    /// <param name="gradientDType">The type that the gradients of the blocks' parameters are collected in: <paramref name="dtype"/>, or (null) fp32 (fp64).</param>
    /// <param name="keepsInitialValues">Whether an optimizer is about to ask for every <see cref="InitialValue"/>: they wait for it on the device.</param>
    internal LinearLlamaModel(LinearLlamaConfig config, Device device, DType dtype, ulong seed, DType? gradientDType, bool keepsInitialValues)
    {
        ArgumentNullException.ThrowIfNull(config);
        config.Validate();
        Config = config;
        DType = dtype;
        _parameters = new ModelParameters(device, dtype, seed, config.InitializerRange, gradientDType, keepsInitialValues);
        try
        {
            _embedTokens = _parameters.Table("model.embed_tokens.weight", config.VocabSize, config.HiddenSize);
            NamedParameter[] before = [.. Parameters];
            for (int i = 0; i < config.NumHiddenLayers; i++) _blocks.Add(new LinearLlamaBlock(config, i, _parameters, device, dtype));
            int blocksEnd = Parameters.Count;
            _norm = _parameters.LastNormWeight("model.norm.weight", config.HiddenSize, config.Norm);
            _lmHead = config.TieWordEmbeddings ? _embedTokens : _parameters.Table("lm_head.weight", config.VocabSize, config.HiddenSize);
            ReadingOrder = new ParameterOrder(before, [.. _blocks.Select(b => b.Parameters)], [.. Parameters.Skip(blocksEnd)]);
        }
        catch
        {
            Dispose();
            throw;
        }
    }

    public LinearLlamaConfig Config { get; }

    /// <summary>Type of parameters and activations.</summary>
    public DType DType { get; }

    public IReadOnlyList<NamedParameter> Parameters => _parameters.All;

    /// <summary>Which of them belong to which block, and when they are read.</summary>
    internal ParameterOrder ReadingOrder { get; }

    /// <summary>Brings the parameters where ranks divide them; null: they are always there.</summary>
    internal IParameterResidency? Residency { get; set; }

    /// <summary>The initial value of a parameter in fp32, before it was rounded to the model's type: what an optimizer's master weights start from. The caller's.</summary>
    public Tensor InitialValue(NamedParameter parameter) => _parameters.ExactValue(parameter.Name, parameter.Variable.Shape);

    /// <summary>
    /// This rank's part of the loss, [1]: the sum of its tokens' losses x <paramref name="scale"/>. The sum over the group's ranks is the loss.
    /// </summary>
    /// <param name="ids">Token ids [B, C] of this rank's chunk; a constant of the step's tape.</param>
    /// <param name="labels">[B*C]; negative ones do not count.</param>
    /// <param name="scale">[1]: 1 / labels that count, over all ranks (<see cref="IBackend.CountReciprocal"/>).</param>
    public Variable Loss(Variable ids, Tensor labels, Tensor scale, SequenceContext sequence)
    {
        using Variable hidden = Hidden(ids, sequence);
        using Variable rows = Reshape.Apply(hidden, [hidden.Shape.Rows, Config.HiddenSize]);
        return LinearCrossEntropy.Apply(rows, _lmHead, labels, scale);
    }

    /// <summary>The normed output of the last layer, [B, C, hidden].</summary>
    private Variable Hidden(Variable ids, SequenceContext sequence)
    {
        Residency?.EnterModel(ids);
        var stream = new ResidualStream(Embedding.Apply(ids, _embedTokens), null);
        for (int i = 0; i < _blocks.Count; i++)
        {
            Residency?.EnterBlock(i, stream.Sum);
            stream = sequence.Recomputation.Covers(i, _blocks.Count) ? _blocks[i].ForwardTwice(stream, sequence) : _blocks[i].Forward(stream, sequence);
            Residency?.LeaveBlock(i, stream.Sum);
            // Where gradients are sent as they come, the embedding's, the longest and the last, has the first block's products to travel beside.
            if (i == 0 && _embedTokens.GradientCompleted is not null) Tape.PostponeParameters(stream.Sum);
        }
        if (sequence.Inputs is { } inputs) Tape.WhenBackward(stream.Sum, inputs.Prefetch); // while the last block, which waits for none, runs backwards
        (Variable sum, Variable normed) = stream.Norm(_norm, Config.RmsNormEps);
        using (sum) return normed;
    }

    public void Dispose()
    {
        foreach (LinearLlamaBlock block in _blocks) block.Dispose();
        foreach (NamedParameter parameter in Parameters) parameter.Variable.Dispose();
        _parameters.Dispose();
    }
}
