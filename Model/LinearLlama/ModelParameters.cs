using System.Runtime.InteropServices;
using LaspNative.Autograd;
using LaspNative.Runtime;

namespace LaspNative.Model;

/// <summary>
/// Makes a model's parameters. Names are Hugging Face's where Llama has a counterpart. Weight decay pulls on matrices; norms' weights are left alone. Values depend on the seed and the tensor's name only: normal numbers drawn on the host in fp32 and then rounded to the model's
/// type, so that they are the same on every rank, for any number of ranks, and on every device.
/// </summary>
/// <param name="gradientDType">The type that the gradients of the blocks' parameters are collected in; those outside of the blocks take fp32 (fp64) in any case.</param>
/// <param name="keepsExact">Whether the unrounded values wait on the device to be taken: drawing a billion of them again takes seconds.</param>
internal sealed class ModelParameters(Device device, DType dtype, ulong seed, double initializerRange, DType? gradientDType = null, bool keepsExact = false) : IDisposable
{
    private const int PieceElements = 1 << 20;

    private readonly List<NamedParameter> _all = [];
    private readonly Dictionary<string, Tensor> _exact = new(StringComparer.Ordinal);
    private float[]? _piece;

    public IReadOnlyList<NamedParameter> All => _all;

    /// <summary>A weight [outputs, inputs] of a block, of normal values.</summary>
    public Variable Matrix(string name, long outputs, long inputs) => Add(name, [outputs, inputs], gradientDType);

    /// <summary>A vector per token id, [vocabulary, width], of normal values. Its gradient is a sum over chunks of tokens, and of the two uses of a tied table.</summary>
    public Variable Table(string name, long vocabulary, long width) => Add(name, [vocabulary, width]);

    /// <summary>The weight [width] of a norm in a block, of ones; null for a norm that has none.</summary>
    public Variable? NormWeight(string name, long width, NormKind kind) => kind == NormKind.SimpleRms ? null : Add(name, [width], gradientDType);

    /// <summary>As <see cref="NormWeight"/>, of the norm after the blocks.</summary>
    public Variable? LastNormWeight(string name, long width, NormKind kind) => kind == NormKind.SimpleRms ? null : Add(name, [width]);

    /// <summary>The initial value of a parameter before it is rounded to the model's type, in fp32: the one that was kept, the first time.</summary>
    public Tensor ExactValue(string name, Shape shape)
    {
        if (_exact.Remove(name, out Tensor? kept)) return kept;
        Tensor exact = Tensor.Empty(shape, DType.F32, device, MemoryCategory.Workspace);
        if (shape.Rank == 1) device.Backend.Fill(1, exact);
        else Draw(CounterRandom.Named(seed, name), exact);
        return exact;
    }

    /// <summary>A piece at a time: fresh host memory for a billion numbers costs more than drawing them.</summary>
    private void Draw(CounterRandom random, Tensor exact)
    {
        _piece ??= new float[PieceElements];
        for (long first = 0; first < exact.Count; first += PieceElements)
        {
            var count = (int)Math.Min(PieceElements, exact.Count - first);
            float[] piece = count == PieceElements ? _piece : new float[count];
            random.FillNormal(piece, initializerRange, first);
            device.CopyFromHost(MemoryMarshal.AsBytes(piece.AsSpan()), exact.Pointer + (nint)(first * sizeof(float)));
        }
    }

    private Variable Add(string name, Shape shape, DType? gradient = null)
    {
        Tensor exact = ExactValue(name, shape);
        Tensor value = Tensor.Empty(shape, dtype, device, MemoryCategory.Parameters);
        device.Backend.Cast(exact, value);
        if (keepsExact && dtype != dtype.Accumulator()) _exact.Add(name, exact);
        else exact.Dispose();
        var variable = Variable.Parameter(value, gradient);
        _all.Add(new NamedParameter(name, variable, Decays: shape.Rank > 1));
        return variable;
    }

    /// <summary>Frees what nobody took; the parameters are the model's.</summary>
    public void Dispose()
    {
        foreach (Tensor exact in _exact.Values) exact.Dispose();
        _exact.Clear();
        _piece = null;
    }
}
