using System.Diagnostics;
using LaspNative.Autograd;
using LaspNative.Collectives;
using LaspNative.Runtime;
using LaspNative.Runtime.Cpu;

namespace LaspNative.Model;

/// <summary>What to run: see <see cref="AttendCall"/>.</summary>
public sealed record AttendOptions
{
    /// <summary>Path of the safetensors file to read.</summary>
    public required string Input { get; init; }

    /// <summary>Path of the safetensors file to write.</summary>
    public required string Output { get; init; }

    /// <summary>Multiplies q.k; default 1/sqrt(D).</summary>
    public double? Scale { get; init; }

    public SequenceParallel Strategy { get; init; } = Lasp2.Default;

    public WorldOptions World { get; init; } = new(DeviceKind.Cpu);
}

/// <summary>What one rank did: its tokens, what it sent, the most memory it held, and how long the call and its backward pass took (loading not counted).</summary>
public readonly record struct AttendRank(long Tokens, long BytesSent, long Messages, long PeakBytes, double Seconds);

/// <summary>What ran and what was written.</summary>
public sealed record AttendReport(string Device, string Strategy, DType DType, long Batch, long Tokens, long Heads, long KeyHeads, long KeyDim, long ValueDim, IReadOnlyList<string> Written, IReadOnlyList<AttendRank> Ranks);

/// <summary>
/// One causal linear attention call on tensors of a file, so that any framework can be compared with this one:
///   S_i = exp(g) S_{i-1} + k_i^T v_i        o_i = scale * q_i S_i
/// Each rank reads its chunk of the tokens from the file; results are gathered in host memory and written as o, final_state, and when do is given
/// dq, dk, dv, d_log_decay, d_initial_state. Results have the inputs' element type; states are F32 (F64 beside F64); d_log_decay has log_decay's.
/// </summary>
public static class AttendCall
{
    public static AttendReport Run(AttendOptions options, CancellationToken cancellation = default)
    {
        ArgumentNullException.ThrowIfNull(options);
        if (options.Scale is { } scale && !double.IsFinite(scale)) throw new LaspException($"scale is {scale}; give a finite number");
        if (LaunchedRank.FromEnvironment() is { WorldSize: > 1 }) throw new LaspException("attend runs its ranks as threads of one process; start it once, without a launcher, and divide the tokens with --ranks");
        CheckFolder(options.Output);
        using SafetensorsFile file = SafetensorsFile.Open(options.Input);
        var inputs = new AttendInputs(file);
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
        return new AttendReport(device, options.Strategy.Name, inputs.DType, inputs.Batch, inputs.Tokens, inputs.Heads, inputs.KeyHeads, inputs.KeyDim, inputs.ValueDim, [.. results.Select(r => r.Name)], reports);
    }

    /// <summary>Refuses a result that could not be written before computing it.</summary>
    private static void CheckFolder(string output)
    {
        string folder = Path.GetDirectoryName(Path.GetFullPath(output))!;
        if (!Directory.Exists(folder)) throw new LaspException($"{output}: cannot be written: there is no folder {folder}; make it first");
        if (Directory.Exists(output)) throw new LaspException($"{output}: cannot be written: it is a folder; give the name of a file");
    }
}

/// <summary>One rank's part of the call.</summary>
internal sealed class AttendOnRank(RankContext rank, AttendInputs inputs, AttendOutputs outputs, AttendOptions options)
{
    private readonly SequencePartition _partition = new(inputs.Tokens, rank.Size);

    private long Start => _partition.Start(rank.Rank);

    private long Length => _partition.Length(rank.Rank);

    public AttendRank Run()
    {
        using Variable q = Leaf(Load("q"));
        using Variable k = Leaf(Load("k"));
        using Variable v = Leaf(Load("v"));
        using Variable? decay = inputs.HasDecay ? Leaf(inputs.LoadAsAccumulator("log_decay", rank.Device, MemoryCategory.Activations)) : null;
        using Variable? initialState = inputs.HasInitialState ? Leaf(inputs.LoadAsAccumulator("initial_state", rank.Device, MemoryCategory.States)) : null;
        using Tensor? dO = inputs.HasGradient ? Load("do") : null;
        using Tensor? dFinalState = inputs.HasFinalStateGradient ? inputs.LoadAsAccumulator("d_final_state", rank.Device, MemoryCategory.States) : null;
        rank.World.Barrier();
        long started = Stopwatch.GetTimestamp();

        var call = new AttentionOptions { Scale = options.Scale, Partition = _partition };
        LinearAttentionResult result = LinearAttention.ApplyWithState(q, k, v, decay, initialState, rank.World, options.Strategy, call);
        using Variable output = result.Output;
        using Variable finalState = result.FinalState;
        if (dO is not null && dFinalState is not null) Tape.Backward((output, dO), (finalState, dFinalState));
        else if (dO is not null) Tape.Backward((output, dO));
        rank.Device.Synchronize();
        double seconds = Stopwatch.GetElapsedTime(started).TotalSeconds;

        outputs.PutTokens("o", output.Value, Start);
        if (Length > 0 && Start + Length == _partition.Tokens) outputs.PutState("final_state", finalState.Value); // The last token's rank owns it.
        if (dO is not null) PutGradients(q, k, v, decay, initialState);
        return new AttendRank(Length, rank.World.Counters.BytesSent, rank.World.Counters.Messages, rank.Device.Memory.Peak, seconds);
    }

    private Tensor Load(string name) => inputs.LoadTokens(name, Start, Length, rank.Device);

    private Variable Leaf(Tensor value) => inputs.HasGradient ? Variable.Parameter(value) : Variable.Constant(value);

    private void PutGradients(Variable q, Variable k, Variable v, Variable? decay, Variable? initialState)
    {
        outputs.PutTokens("dq", q.Gradient!, Start);
        outputs.PutTokens("dk", k.Gradient!, Start);
        outputs.PutTokens("dv", v.Gradient!, Start);
        if (decay is not null) outputs.PutDecayGradient(rank.Rank, decay.Gradient!);
        if (initialState is not null && rank.Rank == 0) outputs.PutState("d_initial_state", initialState.Gradient!); // It enters at rank 0; the others' parts are zero.
    }
}
