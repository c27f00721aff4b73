using LaspNative.Autograd;
using LaspNative.Runtime;

namespace LaspNative.Model;

/// <summary>
/// Makes a model's parameters. Names are Hugging Face's where Llama has a counterpart. Weight decay pulls on matrices; norms' weights are left alone. Values depend on the seed and the tensor's name only: normal numbers drawn on the host in fp32 and then rounded to the model's
/// type, so that they are the same on every rank, for any number of ranks, and on every device.
/// </summary>
internal sealed class ModelParameters(Device device, DType dtype, ulong seed, double initializerRange)
{
    private readonly List<NamedParameter> _all = [];

    public IReadOnlyList<NamedParameter> All => _all;

    /// <summary>A weight [outputs, inputs] of normal values.</summary>
    public Variable Matrix(string name, long outputs, long inputs)
    {
        var values = new float[checked(outputs * inputs)];
        CounterRandom.Named(seed, name).FillNormal(values, initializerRange);
        return Add(name, values, [outputs, inputs]);
    }

    /// <summary>A norm's weight [width] of ones; null for a norm that has none.</summary>
    public Variable? NormWeight(string name, long width, NormKind kind)
    {
        if (kind == NormKind.SimpleRms) return null;
        var values = new float[width];
        Array.Fill(values, 1);
        return Add(name, values, [width]);
    }

    private Variable Add(string name, float[] values, Shape shape)
    {
        Tensor value = Tensor.Empty(shape, dtype, device, MemoryCategory.Parameters);
        Upload(values, value);
        var variable = Variable.Parameter(value);
        _all.Add(new NamedParameter(name, variable, Decays: shape.Rank > 1));
        return variable;
    }

    private static void Upload(float[] values, Tensor destination)
    {
        using Tensor exact = Tensor.FromSpan(values, destination.Shape, destination.Device, MemoryCategory.Workspace);
        destination.Device.Backend.Cast(exact, destination);
    }
}
