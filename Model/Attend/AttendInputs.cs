using LaspNative.Runtime;

namespace LaspNative.Model;

/// <summary>
/// The tensors of one attention call in a safetensors file, with every shape and element type checked against the others:
/// q [B, N, H, D], k [B, N, Hk, D], v [B, N, Hk, E], optional log_decay [H], initial_state and d_final_state [B, H, D, E], do [B, N, H, E].
/// </summary>
internal sealed class AttendInputs
{
    private const long MaxHeadWidth = 256;
    private readonly SafetensorsFile _file;

    public AttendInputs(SafetensorsFile file)
    {
        _file = file;
        (DType, Shape q) = Operand("q");
        Shape k = Operand("k").Shape;
        Shape v = Operand("v").Shape;
        (Batch, Tokens, Heads, KeyDim) = (q[0], q[1], q[2], q[3]);
        (KeyHeads, ValueDim) = (k[2], v[3]);
        Require(k == [Batch, Tokens, KeyHeads, KeyDim], $"k has shape {k}; beside q {q} it is [{Batch}, {Tokens}, Hk, {KeyDim}]");
        Require(v == [Batch, Tokens, KeyHeads, ValueDim], $"v has shape {v}; beside k {k} it is [{Batch}, {Tokens}, {KeyHeads}, E]");
        Require(q.Count > 0 && k.Count > 0 && v.Count > 0, $"q {q}, k {k} and v {v} must not be empty; give at least 1 token");
        Require(Heads % KeyHeads == 0, $"{KeyHeads} key/value heads cannot serve {Heads} query heads; Hk must divide H");
        Require(KeyDim <= MaxHeadWidth && ValueDim <= MaxHeadWidth, $"head widths D = {KeyDim} and E = {ValueDim}; at most {MaxHeadWidth} are supported");
        CheckDecay();
        CheckState("initial_state");
        CheckState("d_final_state");
        Require(!file.Contains("cu_seqlens"), "cu_seqlens (packed documents) is not available yet; run the documents one by one");
        if (HasGradient) Require(Operand("do").Shape == OutputShape, $"do has shape {file.Info("do").Shape}; the output's is {OutputShape}");
        else Require(!file.Contains("d_final_state"), "d_final_state is there but do is not; gradients are computed when do is given (zeros are allowed)");
    }

    public string Path => _file.Path;

    public DType DType { get; }

    public long Batch { get; }

    /// <summary>N.</summary>
    public long Tokens { get; }

    public long Heads { get; }

    public long KeyHeads { get; }

    public long KeyDim { get; }

    public long ValueDim { get; }

    public bool HasDecay => _file.Contains("log_decay");

    public bool HasInitialState => _file.Contains("initial_state");

    public bool HasFinalStateGradient => _file.Contains("d_final_state");

    /// <summary>Whether a backward pass is wanted.</summary>
    public bool HasGradient => _file.Contains("do");

    public DType DecayDType => _file.Info("log_decay").DType;

    /// <summary>[B, N, H, E].</summary>
    public Shape OutputShape => [Batch, Tokens, Heads, ValueDim];

    /// <summary>[B, H, D, E].</summary>
    public Shape StateShape => [Batch, Heads, KeyDim, ValueDim];

    public Shape ShapeOf(string name) => _file.Info(name).Shape;

    /// <summary>Tokens [start, start + count) of a [B, N, ...] tensor on a device.</summary>
    public Tensor LoadTokens(string name, long start, long count, Device device)
    {
        SafetensorsInfo info = _file.Info(name);
        long token = info.Shape[2] * info.Shape[3] * info.DType.Size();
        Tensor chunk = Tensor.Empty([Batch, count, info.Shape[2], info.Shape[3]], info.DType, device);
        for (long b = 0; b < Batch; b++)
            _file.ReadToDevice(name, (b * Tokens + start) * token, device, chunk.Pointer + (nint)(b * count * token), count * token);
        return chunk;
    }

    /// <summary>A tensor of any floating-point type as the call's accumulator type: decays and states.</summary>
    public Tensor LoadAsAccumulator(string name, Device device, MemoryCategory category)
    {
        double[] values = Values(name);
        return DType == DType.F64
            ? Tensor.FromSpan(values, ShapeOf(name), device, category)
            : Tensor.FromSpan(Array.ConvertAll(values, x => (float)x), ShapeOf(name), device, category);
    }

    private double[] Values(string name) => _file.Info(name).DType switch
    {
        DType.F64 => _file.ReadArray<double>(name),
        DType.F32 => Array.ConvertAll(_file.ReadArray<float>(name), x => (double)x),
        _ => Array.ConvertAll(_file.ReadArray<BF16>(name), x => (double)(float)x),
    };

    /// <summary>A tensor of four dimensions in the element type that q, k, v and do share.</summary>
    private SafetensorsInfo Operand(string name)
    {
        SafetensorsInfo info = _file.Info(name);
        Require(info.DType.IsFloat(), $"{name} is {info.DType}; give F64, F32 or BF16");
        Require(info.DType == _file.Info("q").DType, $"{name} is {info.DType} and q is {_file.Info("q").DType}; q, k, v and do share one element type");
        Require(info.Shape.Rank == 4, $"{name} has shape {info.Shape}; it has four dimensions, [B, N, heads, width]");
        return info;
    }

    private void CheckDecay()
    {
        if (!HasDecay) return;
        (DType dtype, Shape shape) = _file.Info("log_decay");
        Require(dtype.IsFloat(), $"log_decay is {dtype}; give F64, F32 or BF16");
        bool perToken = shape == [Batch, Tokens, Heads];
        Require(!perToken && shape != [Batch, Tokens, Heads, KeyDim], $"log_decay {shape}, one per token{(perToken ? "" : " and channel")}, is not available yet; give one per head, [{Heads}]");
        Require(shape == [Heads], $"log_decay has shape {shape}; here it is [{Heads}], one per query head");
        double[] values = Values("log_decay");
        int wrong = Array.FindIndex(values, x => !double.IsFinite(x));
        if (wrong >= 0) Require(false, $"log_decay of head {wrong} is {values[wrong]}; it must be finite (0 forgets nothing)");
    }

    private void CheckState(string name)
    {
        if (!_file.Contains(name)) return;
        (DType dtype, Shape shape) = _file.Info(name);
        Require(dtype.IsFloat(), $"{name} is {dtype}; give F64, F32 or BF16");
        Require(shape == StateShape, $"{name} has shape {shape}; here it is [B, H, D, E] = {StateShape}");
    }

    private void Require(bool condition, string otherwise)
    {
        if (!condition) throw new LaspException($"{Path}: {otherwise}");
    }
}
