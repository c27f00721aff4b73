using LaspNative.Runtime;
using LaspNative.Runtime.Cpu;

namespace LaspNative.Model;

/// <summary>
/// The results of an attention call in host memory, filled by the ranks: each writes its own tokens, so that they need no lock.
/// </summary>
internal sealed class AttendOutputs : IDisposable
{
    private readonly AttendInputs _inputs;
    private readonly CpuDevice _host;
    private readonly Dictionary<string, Tensor> _tensors = new(StringComparer.Ordinal);
    private readonly double[]?[] _decayGradients;

    public AttendOutputs(AttendInputs inputs, int ranks, CpuDevice host)
    {
        _inputs = inputs;
        _host = host;
        _decayGradients = new double[ranks][];
        Allocate("o", inputs.OutputShape, inputs.DType);
        Allocate("final_state", inputs.StateShape, inputs.DType.Accumulator());
        if (!inputs.HasGradient) return;
        Allocate("dq", inputs.ShapeOf("q"), inputs.DType);
        Allocate("dk", inputs.ShapeOf("k"), inputs.DType);
        Allocate("dv", inputs.ShapeOf("v"), inputs.DType);
        if (inputs.HasInitialState) Allocate("d_initial_state", inputs.StateShape, inputs.DType.Accumulator());
    }

    private void Allocate(string name, Shape shape, DType dtype) => _tensors.Add(name, Tensor.Empty(shape, dtype, _host));

    /// <summary>Tokens [start, ...) of a result, from a rank's chunk [B, C, heads, width] of any floating-point type.</summary>
    public void PutTokens(string name, Tensor chunk, long start)
    {
        Tensor whole = _tensors[name];
        using Tensor rounded = chunk.DType == whole.DType ? chunk.Share() : Tensor.Empty(chunk.Shape, whole.DType, chunk.Device);
        if (chunk.DType != whole.DType) chunk.Device.Backend.Cast(chunk, rounded);
        (long batch, long count) = (chunk.Shape[0], chunk.Shape[1]);
        long token = whole.Bytes / (batch * whole.Shape[1]);
        for (long b = 0; b < batch; b++)
            CopyToHost(rounded.Device, rounded.Pointer + (nint)(b * count * token), whole.Pointer + (nint)((b * whole.Shape[1] + start) * token), count * token);
    }

    /// <summary>A state, which one rank gives whole.</summary>
    public void PutState(string name, Tensor state) => CopyToHost(state.Device, state.Pointer, _tensors[name].Pointer, state.Bytes);

    /// <summary>A rank's part of the decay's gradient [H].</summary>
    public void PutDecayGradient(int rank, Tensor part) => _decayGradients[rank] = part.ToDoubles();

    /// <summary>All results under their names. They stay owned by this object.</summary>
    public IReadOnlyList<(string Name, Tensor Tensor)> Collect()
    {
        if (_inputs is { HasDecay: true, HasGradient: true }) _tensors.Add("d_log_decay", DecayGradient());
        return [.. _tensors.Select(t => (t.Key, t.Value))];
    }

    /// <summary>The sum of the ranks' parts, in rank order, in log_decay's element type.</summary>
    private Tensor DecayGradient()
    {
        var sum = new double[_inputs.Heads];
        foreach (double[]? part in _decayGradients)
        {
            for (int h = 0; h < sum.Length; h++) sum[h] += part![h];
        }
        return _inputs.DecayDType switch
        {
            DType.F64 => Tensor.FromSpan(sum, [_inputs.Heads], _host),
            DType.F32 => Tensor.FromSpan(Array.ConvertAll(sum, x => (float)x), [_inputs.Heads], _host),
            _ => Tensor.FromSpan(Array.ConvertAll(sum, x => (BF16)(float)x), [_inputs.Heads], _host),
        };
    }

    private static unsafe void CopyToHost(Device device, nint source, nint destination, long bytes)
    {
        const int piece = 1 << 28;
        for (long done = 0; done < bytes; done += piece)
            device.CopyToHost(source + (nint)done, new Span<byte>((void*)(destination + (nint)done), (int)Math.Min(piece, bytes - done)));
    }

    public void Dispose()
    {
        foreach (Tensor tensor in _tensors.Values) tensor.Dispose();
        _tensors.Clear();
    }
}
