using LaspNative.Runtime;
using LaspNative.Runtime.Cpu;

namespace LaspNative.Model;

/// <summary>
/// The results of an attention call in host memory, filled by the ranks. Each writes its own tokens, so that these need no lock; what belongs to no token is summed over
/// the ranks.
/// </summary>
internal sealed class AttendOutputs : IDisposable
{
    private readonly AttendInputs _inputs;
    private readonly CpuDevice _host;
    private readonly Dictionary<string, Tensor> _tensors = new(StringComparer.Ordinal);
    private readonly double[]?[] _decayGradients;
    private readonly Lock _states = new();

    public AttendOutputs(AttendInputs inputs, int ranks, CpuDevice host)
    {
        _inputs = inputs;
        _host = host;
        _decayGradients = new double[ranks][];
        Allocate("o", inputs.OutputShape, inputs.DType);
        if (inputs.Attention == AttentionKind.Linear) AllocateState("final_state");
        if (!inputs.HasGradient) return;
        Allocate("dq", inputs.ShapeOf("q"), inputs.DType);
        Allocate("dk", inputs.ShapeOf("k"), inputs.DType);
        Allocate("dv", inputs.ShapeOf("v"), inputs.DType);
        if (inputs is { HasDecay: true, DecayIsPerToken: true }) Allocate("d_log_decay", inputs.ShapeOf("log_decay"), inputs.DecayDType);
        if (inputs.HasInitialState) AllocateState("d_initial_state");
    }

    private void Allocate(string name, Shape shape, DType dtype) => _tensors.Add(name, Tensor.Empty(shape, dtype, _host));

    private void AllocateState(string name) => _tensors.Add(name, Tensor.Zeros(_inputs.StateShape, _inputs.DType.Accumulator(), _host));

    /// <summary>Tokens [start, ...) of a result, from a rank's chunk [B, C, ...] of any floating-point type.</summary>
    public void PutTokens(string name, Tensor chunk, long start)
    {
        Tensor whole = _tensors[name];
        using Tensor rounded = Rounded(chunk, whole.DType);
        (long batch, long count) = (chunk.Shape[0], chunk.Shape[1]);
        long token = whole.Bytes / (batch * whole.Shape[1]);
        for (long b = 0; b < batch; b++)
            CopyToHost(rounded.Device, rounded.Pointer + (nint)(b * count * token), whole.Pointer + (nint)((b * whole.Shape[1] + start) * token), count * token);
    }

    /// <summary>The chunk in another element type: on its device, or in host memory for F64, which only the CPU has.</summary>
    private Tensor Rounded(Tensor chunk, DType dtype)
    {
        if (chunk.DType == dtype) return chunk.Share();
        if (dtype == DType.F64) return Tensor.FromSpan(chunk.ToDoubles(), chunk.Shape, _host);
        Tensor rounded = Tensor.Empty(chunk.Shape, dtype, chunk.Device);
        chunk.Device.Backend.Cast(chunk, rounded);
        return rounded;
    }

    /// <summary>Adds a rank's part of the states [B or n, H, D, E]. Each state is owned by one rank and zero on the others, so the order of the ranks changes nothing.</summary>
    public void AddState(string name, Tensor part)
    {
        Tensor sum = _tensors[name];
        lock (_states)
        {
            if (sum.DType == DType.F64) Add<double>(part, sum);
            else Add<float>(part, sum);
        }
    }

    private static void Add<T>(Tensor part, Tensor sum) where T : unmanaged, System.Numerics.INumber<T>
    {
        T[] values = part.ToArray<T>();
        Span<T> totals = sum.Span<T>();
        for (int i = 0; i < values.Length; i++) totals[i] += values[i];
    }

    /// <summary>A rank's part of the gradient of a decay per head [H].</summary>
    public void PutDecayGradient(int rank, Tensor part) => _decayGradients[rank] = part.ToDoubles();

    /// <summary>All results under their names. They stay owned by this object.</summary>
    public IReadOnlyList<(string Name, Tensor Tensor)> Collect()
    {
        if (_inputs is { HasDecay: true, DecayIsPerToken: false, HasGradient: true }) _tensors.Add("d_log_decay", DecayGradient());
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
