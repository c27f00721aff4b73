using System.Runtime.InteropServices;
using LaspNative.Collectives;
using LaspNative.Runtime;

namespace LaspNative.Model;

/// <summary>
/// The tensors of one attention call in a safetensors file, with every shape and element type checked against the others:
/// q [B, N, H, D], k [B, N, Hk, D], v [B, N, Hk, E], optional do [B, N, H, E] and cu_seqlens [n+1] (then B = 1); for linear attention also
/// log_decay [H], [B, N, H] or [B, N, H, D], initial_state and d_final_state [B, H, D, E] (with cu_seqlens [n, H, D, E]).
/// </summary>
internal sealed class AttendInputs
{
    private const long MaxHeadWidth = 256;
    private readonly SafetensorsFile _file;

    public AttendInputs(SafetensorsFile file, AttentionKind attention, bool causal)
    {
        (_file, Attention) = (file, attention);
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
        Documents = ReadDocuments();
        if (attention == AttentionKind.Softmax) RefuseStates();
        Require(causal || !HasDecay, "--no-causal with log_decay has no meaning, as a decay needs a direction; leave one of them out");
        CheckDecay();
        CheckState("initial_state");
        CheckState("d_final_state");
        if (HasGradient) Require(Operand("do").Shape == OutputShape, $"do has shape {file.Info("do").Shape}; the output's is {OutputShape}");
        else Require(!file.Contains("d_final_state"), "d_final_state is there but do is not; gradients are computed when do is given (zeros are allowed)");
    }

    public string Path => _file.Path;

    public AttentionKind Attention { get; }

    public DType DType { get; }

    public long Batch { get; }

    /// <summary>N.</summary>
    public long Tokens { get; }

    public long Heads { get; }

    public long KeyHeads { get; }

    public long KeyDim { get; }

    public long ValueDim { get; }

    /// <summary>The documents packed into one sequence; null: every batch row is one.</summary>
    public PackedDocuments? Documents { get; }

    public bool HasDecay => _file.Contains("log_decay");

    /// <summary>Whether the decay has a value per token, so that each rank has its own chunk of it.</summary>
    public bool DecayIsPerToken => ShapeOf("log_decay").Rank > 1;

    public bool HasInitialState => _file.Contains("initial_state");

    public bool HasFinalStateGradient => _file.Contains("d_final_state");

    /// <summary>Whether a backward pass is wanted.</summary>
    public bool HasGradient => _file.Contains("do");

    public DType DecayDType => _file.Info("log_decay").DType;

    /// <summary>[B, N, H, E].</summary>
    public Shape OutputShape => [Batch, Tokens, Heads, ValueDim];

    /// <summary>[B or n, H, D, E].</summary>
    public Shape StateShape => [Documents?.Count ?? Batch, Heads, KeyDim, ValueDim];

    public Shape ShapeOf(string name) => _file.Info(name).Shape;

    /// <summary>Tokens [start, start + count) of a [B, N, heads, width] tensor on a device.</summary>
    public Tensor LoadTokens(string name, long start, long count, Device device)
    {
        (DType dtype, Shape shape) = _file.Info(name);
        long token = shape[2] * shape[3] * dtype.Size();
        Tensor chunk = Tensor.Empty([Batch, count, shape[2], shape[3]], dtype, device);
        for (long b = 0; b < Batch; b++)
            _file.ReadToDevice(name, (b * Tokens + start) * token, device, chunk.Pointer + (nint)(b * count * token), count * token);
        return chunk;
    }

    /// <summary>The log decay of tokens [start, start + count), or that per head, in the call's accumulator type. Throws where it is not finite.</summary>
    public Tensor LoadDecay(long start, long count, Device device)
    {
        Shape whole = ShapeOf("log_decay");
        if (!DecayIsPerToken) return LoadWidened("log_decay", whole, MemoryCategory.Activations, device);
        long token = whole.Count / (Batch * Tokens);
        Tensor chunk = Tensor.Empty(whole.Rank == 3 ? [Batch, count, Heads] : [Batch, count, Heads, KeyDim], DType.Accumulator(), device);
        for (long b = 0; b < Batch; b++) LoadWidened("log_decay", (b * Tokens + start) * token, chunk, b * count * token, count * token);
        return chunk;
    }

    /// <summary>States of any floating-point type in the call's accumulator type.</summary>
    public Tensor LoadState(string name, Device device) => LoadWidened(name, StateShape, MemoryCategory.States, device);

    private Tensor LoadWidened(string name, Shape shape, MemoryCategory category, Device device)
    {
        Tensor tensor = Tensor.Empty(shape, DType.Accumulator(), device, category);
        LoadWidened(name, 0, tensor, 0, shape.Count);
        return tensor;
    }

    /// <summary>Elements [first, first + count) of any floating-point type, as the accumulator type of <paramref name="destination"/> from element <paramref name="at"/> on.</summary>
    private void LoadWidened(string name, long first, Tensor destination, long at, long count)
    {
        var values = new double[Math.Min(count, 1 << 18)];
        for (long done = 0; done < count; done += values.Length)
        {
            Span<double> part = values.AsSpan(0, (int)Math.Min(values.Length, count - done));
            _file.ReadDoubles(name, first + done, part);
            if (name == "log_decay") CheckFinite(part, first + done);
            nint pointer = destination.Pointer + (nint)((at + done) * destination.DType.Size());
            if (destination.DType == DType.F64) destination.Device.CopyFromHost(MemoryMarshal.AsBytes(part), pointer);
            else destination.Device.CopyFromHost(MemoryMarshal.AsBytes(Array.ConvertAll(part.ToArray(), x => (float)x).AsSpan()), pointer);
        }
    }

    private void CheckFinite(ReadOnlySpan<double> decay, long first)
    {
        for (int i = 0; i < decay.Length; i++)
        {
            if (double.IsFinite(decay[i])) continue;
            long head = (first + i) / (ShapeOf("log_decay").Rank == 4 ? KeyDim : 1);
            string token = DecayIsPerToken ? $"token {head / Heads % Tokens}, " : "";
            throw new LaspException($"{Path}: log_decay of {token}head {head % Heads} is {decay[i]}; it must be finite (0 forgets nothing)");
        }
    }

    /// <summary>A tensor of four dimensions in the element type that q, k, v and do share.</summary>
    private SafetensorsInfo Operand(string name)
    {
        SafetensorsInfo info = _file.Info(name);
        Require(info.DType.IsFloat(), $"{name} is {info.DType}; give F64, F32 or BF16");
        Require(info.DType == _file.Info("q").DType, $"{name} is {info.DType} and q is {_file.Info("q").DType}; q, k, v and do share one element type");
        Require(info.Shape.Rank == 4, $"{name} has shape {info.Shape}; it has four dimensions, [B, N, heads, width]");
        return info;
    }

    private PackedDocuments? ReadDocuments()
    {
        if (!_file.Contains("cu_seqlens")) return null;
        (DType dtype, Shape shape) = _file.Info("cu_seqlens");
        Require(dtype == DType.I64 && shape.Rank == 1, $"cu_seqlens is {dtype} {shape}; it is I64 [n+1], where each document starts and N at the end");
        Require(Batch == 1, $"cu_seqlens packs documents into one sequence, but the batch is {Batch}; put the rows one after another and make B 1");
        PackedDocuments documents;
        try
        {
            documents = new PackedDocuments(_file.ReadArray<long>("cu_seqlens"));
        }
        catch (LaspException error)
        {
            throw new LaspException($"{Path}: {error.Message}", error);
        }
        Require(documents.Tokens == Tokens, $"cu_seqlens ends at {documents.Tokens}, but there are {Tokens} tokens; its last entry is N");
        return documents;
    }

    private void RefuseStates()
    {
        foreach (string name in (string[])["log_decay", "initial_state", "d_final_state"])
            Require(!_file.Contains(name), $"{name} belongs to linear attention; softmax attention has no state, so leave it out");
    }

    private void CheckDecay()
    {
        if (!HasDecay) return;
        (DType dtype, Shape shape) = _file.Info("log_decay");
        Require(dtype.IsFloat(), $"log_decay is {dtype}; give F64, F32 or BF16");
        Require(
            shape == [Heads] || shape == [Batch, Tokens, Heads] || shape == [Batch, Tokens, Heads, KeyDim],
            $"log_decay has shape {shape}; here it is [{Heads}] per head, [{Batch}, {Tokens}, {Heads}] per token or [{Batch}, {Tokens}, {Heads}, {KeyDim}] per token and channel");
    }

    private void CheckState(string name)
    {
        if (!_file.Contains(name)) return;
        (DType dtype, Shape shape) = _file.Info(name);
        Require(dtype.IsFloat(), $"{name} is {dtype}; give F64, F32 or BF16");
        Require(shape == StateShape, $"{name} has shape {shape}; here it is [{(Documents is null ? "B" : "n")}, H, D, E] = {StateShape}");
    }

    private void Require(bool condition, string otherwise)
    {
        if (!condition) throw new LaspException($"{Path}: {otherwise}");
    }
}
