using LaspNative.Autograd;
using LaspNative.Collectives;
using LaspNative.Runtime;

namespace LaspNative.Model;

/// <summary>
/// Sums all parameters' gradients over the ranks, in place: each rank's backward pass saw only its own tokens.
/// Large gradients travel as they are; small ones share one flat message, since a message costs more than their bytes.
/// </summary>
internal sealed class GradientSynchronizer : IDisposable
{
    private const long SmallBytes = 1 << 20;

    private readonly ICommunicator _group;
    private readonly List<Variable> _large = [];
    private readonly List<(Variable Variable, Tensor Part)> _small = [];
    private readonly Tensor? _flat;

    public GradientSynchronizer(IReadOnlyList<NamedParameter> parameters, ICommunicator group)
    {
        _group = group;
        if (group.Size == 1) return;
        List<Variable> small = [];
        foreach (NamedParameter parameter in parameters)
            (parameter.Variable.Shape.Count * parameter.Variable.DType.Accumulator().Size() < SmallBytes ? small : _large).Add(parameter.Variable);
        if (small.Count == 0) return;
        _flat = Tensor.Empty([small.Sum(v => v.Shape.Count)], small[0].DType.Accumulator(), group.Device, MemoryCategory.Communication);
        long offset = 0;
        foreach (Variable variable in small)
        {
            _small.Add((variable, _flat.Slice(offset, variable.Shape.Count)));
            offset += variable.Shape.Count;
        }
    }

    /// <summary>Call once after backward, on every rank.</summary>
    public void Sum()
    {
        if (_group.Size == 1) return;
        var works = new List<CommunicationWork>(_large.Count + 1);
        foreach (Variable variable in _large) works.Add(_group.AllReduce(GradientOf(variable)));
        foreach ((Variable variable, Tensor part) in _small) Copy(GradientOf(variable), part);
        if (_flat is not null) works.Add(_group.AllReduce(_flat));
        foreach (CommunicationWork work in works) work.Wait();
        foreach ((Variable variable, Tensor part) in _small) Copy(part, GradientOf(variable));
    }

    private static void Copy(Tensor source, Tensor destination) => source.Device.Copy(source.Pointer, destination.Pointer, source.Bytes);

    private static Tensor GradientOf(Variable variable) => variable.Gradient ?? throw new InvalidOperationException($"no gradient reached a parameter of shape {variable.Shape}");

    public void Dispose()
    {
        foreach ((_, Tensor part) in _small) part.Dispose();
        _flat?.Dispose();
    }
}
