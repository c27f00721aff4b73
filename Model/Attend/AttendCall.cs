using LaspNative.Collectives;
using LaspNative.Runtime;
using LaspNative.Runtime.Cpu;

namespace LaspNative.Model;

/// <summary>The kind of attention of a call.</summary>
public enum AttentionKind
{
    /// <summary>S_i = exp(g_i) S_{i-1} + k_i^T v_i, o_i = scale * q_i S_i.</summary>
    Linear,

    /// <summary>o_i = sum over visible j of softmax_j(scale * q_i.k_j) v_j.</summary>
    Softmax,
}

/// <summary>What to run: see <see cref="AttendCall"/>.</summary>
public sealed record AttendOptions
{
    /// <summary>Path of the safetensors file to read.</summary>
    public required string Input { get; init; }

    /// <summary>Path of the safetensors file to write.</summary>
    public required string Output { get; init; }

    public AttentionKind Attention { get; init; }

    /// <summary>Whether a token sees only itself and earlier ones.</summary>
    public bool Causal { get; init; } = true;

    /// <summary>Multiplies q.k; default 1/sqrt(D).</summary>
    public double? Scale { get; init; }

    /// <summary>Of linear attention.</summary>
    public SequenceParallel Strategy { get; init; } = Lasp2.Default;

    /// <summary>Of softmax attention.</summary>
    public SoftmaxParallel SoftmaxStrategy { get; init; } = SoftmaxAllGather.Default;

    public WorldOptions World { get; init; } = new(DeviceKind.Cpu);

    /// <summary>Name of the strategy that this kind of attention uses.</summary>
    public string StrategyName => Attention == AttentionKind.Linear ? Strategy.Name : SoftmaxStrategy.Name;
}

/// <summary>What one rank did: its tokens, what it sent, the most memory it held, and how long the call and its backward pass took (loading not counted).</summary>
public readonly record struct AttendRank(long Tokens, long BytesSent, long Messages, long PeakBytes, double Seconds);

/// <summary>What ran and what was written. Documents is how many were packed into one sequence; null: none were.</summary>
public sealed record AttendReport(
    string Device, AttentionKind Attention, string Strategy, DType DType, long Batch, long Tokens, long Heads, long KeyHeads, long KeyDim, long ValueDim, int? Documents, IReadOnlyList<string> Written, IReadOnlyList<AttendRank> Ranks);

/// <summary>
/// One attention call on tensors of a file, so that any framework can be compared with this one. Each rank reads its chunk of the tokens from the file; results are put together
/// in host memory and written as o, final_state (linear), and when do is given dq, dk, dv, d_log_decay, d_initial_state. Results have the inputs' element type; states are F32
/// (F64 beside F64); d_log_decay has log_decay's.
/// </summary>
public static class AttendCall
{
    public static AttendReport Run(AttendOptions options, CancellationToken cancellation = default)
    {
        ArgumentNullException.ThrowIfNull(options);
        if (options.Scale is { } scale && !double.IsFinite(scale)) throw new LaspException($"scale is {scale}; give a finite number");
        if (LaunchedRank.FromEnvironment() is { WorldSize: > 1 }) throw new LaspException("attend runs its ranks as threads of one process; start it once, without a launcher, and divide the tokens with --ranks");
        CheckOutput(options.Output, options.Input);
        using SafetensorsFile file = SafetensorsFile.Open(options.Input);
        var inputs = new AttendInputs(file, options.Attention, options.Causal);
        if (inputs.DType == DType.F64 && options.World.Device == DeviceKind.Cuda) throw new LaspException($"{file.Path}: q is F64, which runs on the cpu only; use --device cpu, or F32");
        int ranks = options.World.Ranks ?? 1;
        using var host = new CpuDevice(threads: 1);
        using var outputs = new AttendOutputs(inputs, ranks, host);
        var reports = new AttendRank[ranks];
        string device = "";
        World.Run(options.World with { Ranks = ranks }, rank =>
        {
            if (rank.Rank == 0) device = rank.Device.Name;
            reports[rank.Rank] = new AttendOnRank(rank, inputs, outputs, options).Run();
        }, cancellation);
        cancellation.ThrowIfCancellationRequested();
        IReadOnlyList<(string Name, Tensor Tensor)> results = outputs.Collect();
        SafetensorsWriter.Write(options.Output, results);
        return new AttendReport(
            device, options.Attention, options.StrategyName, inputs.DType, inputs.Batch, inputs.Tokens, inputs.Heads, inputs.KeyHeads, inputs.KeyDim, inputs.ValueDim, inputs.Documents?.Count, [.. results.Select(r => r.Name)], reports);
    }

    /// <summary>Refuses a result that could not be written before computing it.</summary>
    private static void CheckOutput(string output, string input)
    {
        string folder = Path.GetDirectoryName(Path.GetFullPath(output))!;
        if (!Directory.Exists(folder)) throw new LaspException($"{output}: cannot be written: there is no folder {folder}; make it first");
        if (Directory.Exists(output)) throw new LaspException($"{output}: cannot be written: it is a folder; give the name of a file");
        if (Path.GetFullPath(output) == Path.GetFullPath(input)) throw new LaspException($"{output}: is the input too, which the results would replace; give another name to one of them");
    }
}
