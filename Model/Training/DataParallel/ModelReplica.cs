using LaspNative.Autograd;
using LaspNative.Collectives;
using LaspNative.Runtime;

namespace LaspNative.Model;

/// <summary>
/// What one rank holds of a model in training, and how the ranks keep it one model: parameters, gradients and optimizer states, each whole or divided over all ranks of DP x SP
/// (<see cref="ZeroStage"/>). Checkpoints do not show the difference.
/// </summary>
internal sealed class ModelReplica : IDisposable
{
    private readonly LinearLlamaModel _model;
    private readonly ICommunicator _group;
    private readonly ZeroStage _stage;
    private readonly ParameterShards? _shards;
    private readonly AdamW _optimizer;

    /// <param name="model">Stays the caller's; its parameters may move, and in stage 3 leave between uses.</param>
    /// <param name="gradients">The same ranks as <paramref name="group"/>, in the background: what sums of gradients travel through, and what is updated in stages 1 and 2.</param>
    /// <param name="bucketBytes">Bytes of gradients in one message; in stage 3 a block is one message.</param>
    public ModelReplica(LinearLlamaModel model, ICommunicator group, ICommunicator gradients, AdamWOptions options, ZeroStage stage, long bucketBytes)
    {
        (_model, _group, _stage) = (model, group, group.Size == 1 ? ZeroStage.None : stage);
        if (_stage == ZeroStage.None)
        {
            Gradients = GradientBuckets.WholeOnEveryRank(model.Parameters, gradients, bucketBytes);
            _optimizer = new AdamW(model.Parameters, options, model.InitialValue);
            return;
        }
        IReadOnlyList<FlatBucket> layouts = _stage == ZeroStage.Parameters
            ? ParameterShards.Blocks(model.ReadingOrder, group.Size)
            : FlatBucket.Cut(model.Parameters.Reverse(), bucketBytes, group.Size);
        Gradients = new GradientBuckets(layouts, gradients, _stage);
        _shards = new ParameterShards(layouts, model.ReadingOrder, group, gradients, _stage);
        model.Residency = _shards;
        _optimizer = new AdamW(_shards.Segments, options, InitialSegment);
    }

    public GradientBuckets Gradients { get; }

    /// <summary>
    /// sum = the sum of squares over the whole gradient, [1] in fp32 (fp64), the same on every rank. Call once after backward, on every rank; where ranks know the squares of different parts it takes one message
    /// of one number.
    /// </summary>
    public void SquaredNorm(Tensor sum)
    {
        if (!Gradients.DivideSquares)
        {
            sum.Device.Backend.Fill(0, sum);
            _optimizer.AddSquaredNorm(sum);
            return;
        }
        Gradients.SquaredNorm(sum);
        _shards?.TakeGradients(Gradients);
        _group.AllReduce(sum).Wait();
    }

    /// <summary>
    /// Updates every parameter and frees the gradients. Call after <see cref="SquaredNorm"/>. In stages 1 and 2 the other ranks' parts may then be on their way: the model waits for them where it reads them,
    /// and nobody else may read a parameter before <see cref="Parameters"/> was called.
    /// </summary>
    /// <param name="gradientScale">As <see cref="AdamW.Step"/> takes it, the same on every rank.</param>
    public void Update(double learningRate, Tensor gradientScale)
    {
        if (_shards is null) _optimizer.Step(learningRate, gradientScale);
        else _optimizer.StepInTwo(learningRate, gradientScale, _shards.ReadFirst, _shards.PublishReadFirst);
        _optimizer.ZeroGradients();
        _shards?.PublishOthers();
    }

    /// <summary>The parameters, whole. Entries are loaded on every rank in the file's order; rank 0 gets the tensors, the others may get empty ones.</summary>
    public IEnumerable<SafetensorsSource> Parameters()
    {
        _shards?.BringAll();
        if (_stage != ZeroStage.Parameters) return _model.Parameters.Select(p => new SafetensorsSource(p.Name, p.Variable.DType, p.Variable.Shape, p.Variable.Value.Share));
        Dictionary<string, Tensor> own = _shards!.Segments.ToDictionary(s => s.Name, s => s.Variable.Value, StringComparer.Ordinal);
        return _model.Parameters.Select(p => new SafetensorsSource(p.Name, p.Variable.DType, p.Variable.Shape, () => GatherOnRankZero(p, p.Variable.DType, own.GetValueOrDefault(p.Name))));
    }

    /// <summary>The optimizer's state, whole; loaded as <see cref="Parameters"/> are.</summary>
    public IEnumerable<SafetensorsSource> OptimizerState()
    {
        IReadOnlyList<NamedTensor> state = _optimizer.ExportState();
        if (_shards is null) return state.Select(t => new SafetensorsSource(t.Name, t.Tensor.DType, t.Tensor.Shape, t.Tensor.Share));
        Dictionary<string, Tensor> own = state.ToDictionary(t => t.Name, t => t.Tensor, StringComparer.Ordinal);
        DType acc = _model.DType.Accumulator();
        return from parameter in _model.Parameters
               from name in AdamW.StateNames(parameter)
               select new SafetensorsSource(name, acc, parameter.Variable.Shape, () => GatherOnRankZero(parameter, acc, own.GetValueOrDefault(name)));
    }

    /// <summary>Sets a parameter, or this rank's part of it, to a value of any type.</summary>
    public void SetParameter(NamedParameter parameter, Tensor value)
    {
        if (_stage != ZeroStage.Parameters)
        {
            value.Device.Backend.Cast(value, parameter.Variable.Value);
            return;
        }
        if (_shards!.Segments.FirstOrDefault(s => s.Name == parameter.Name) is not { } segment) return;
        using Tensor part = PartOf(parameter.Name, value);
        value.Device.Backend.Cast(part, segment.Variable.Value);
    }

    /// <summary>As <see cref="AdamW.ImportState"/>, for a state that is whole.</summary>
    public void ImportState(long stepCount, Func<string, Tensor?> find)
    {
        if (_shards is null)
        {
            _optimizer.ImportState(stepCount, find);
            return;
        }
        Dictionary<string, string> owners = _shards.Segments.SelectMany(s => AdamW.StateNames(s), (s, name) => (name, s.Name)).ToDictionary(StringComparer.Ordinal);
        Tensor? part = null;
        _optimizer.ImportState(stepCount, name =>
        {
            part?.Dispose();
            return part = find(name) is { } whole ? PartOf(owners[name], whole) : null;
        });
        part?.Dispose();
    }

    /// <summary>This rank's part of a tensor that is shaped as a parameter.</summary>
    private Tensor PartOf(string parameter, Tensor whole)
    {
        FlatSegment segment = _shards!.SegmentOf(parameter, _group.Rank)!.Value;
        if (whole.Shape != segment.Parameter.Variable.Shape)
            throw new LaspException($"the state of '{parameter}' has shape {whole.Shape}, the model needs {segment.Parameter.Variable.Shape}; use the checkpoint's own config");
        using Tensor flat = whole.View([whole.Count]);
        return flat.Slice(segment.First, segment.Count);
    }

    private Tensor InitialSegment(NamedParameter segment)
    {
        using Tensor whole = _model.InitialValue(_model.Parameters.First(p => p.Name == segment.Name));
        return PartOf(segment.Name, whole);
    }

    /// <summary>
    /// A tensor whose parts lie on the ranks as the parameter's do; empty on other ranks than 0. Every rank calls it, and none runs ahead: it ends when all have come.
    /// </summary>
    private Tensor GatherOnRankZero(NamedParameter parameter, DType dtype, Tensor? own)
    {
        long[] counts = [.. Enumerable.Range(0, _group.Size).Select(rank => _shards!.SegmentOf(parameter.Name, rank)?.Count ?? 0)], sent = new long[_group.Size], received = new long[_group.Size];
        sent[0] = counts[_group.Rank];
        if (_group.Rank == 0) received = counts; // parts lie in the ranks' order, so they make the tensor as they come
        using Tensor part = own?.Share() ?? Tensor.Empty([0], dtype, _group.Device, MemoryCategory.Workspace);
        Tensor whole = Tensor.Empty([received.Sum()], dtype, _group.Device, MemoryCategory.Workspace);
        _group.AllToAll(part, sent, whole, received).Wait();
        if (_group.Rank > 0) return whole;
        using (whole) return whole.View(parameter.Variable.Shape);
    }

    public void Dispose()
    {
        _optimizer.Dispose();
        _shards?.Dispose();
        Gradients.Dispose();
    }
}
