using LaspNative.Collectives;
using LaspNative.Model;
using LaspNative.Runtime;

namespace LaspNative.Perf;

/// <summary>What "step" was told beside its cases.</summary>
/// <param name="Out">Where the record goes.</param>
/// <param name="Compare">An earlier record.</param>
/// <param name="Steps">Steps that are timed, at the end.</param>
/// <param name="Warmup">Steps before all others.</param>
/// <param name="Breakdown">Whether two steps between are profiled; the first makes the profile's own code ready.</param>
/// <param name="Limit">Time of stepping after which a case begins no further step.</param>
/// <param name="Budget">Time after which no further case begins.</param>
internal sealed record StepHarnessOptions(string Out, string? Compare, int Steps, int Warmup, bool Breakdown, TimeSpan Limit, TimeSpan Budget)
{
    /// <summary>The first step that is timed, from 1.</summary>
    public int FirstTimed => Warmup + (Breakdown ? 2 : 0) + 1;

    public int AllSteps => FirstTimed - 1 + Steps;
}

/// <summary>One row: a model, and how it is trained.</summary>
internal sealed record StepCase(string Model, TrainOptions Options)
{
    public int Ranks => Options.World.Ranks ?? 1;

    public long Tokens => Options.Recipe.Batch * Options.Recipe.SequenceLength;

    /// <summary>Says all that tells cases apart; records are compared, and targets found, by it.</summary>
    public string Name => NameOf(Options.Recipe.SequenceLength, Ranks, Strategies, Options.Recomputation);

    /// <summary>The same model on one rank, which divides nothing, with this rank's share of the sequence.</summary>
    public string NameOnOneRank => NameOf(Options.Recipe.SequenceLength / Ranks, 1, "", Options.Recomputation);

    /// <summary>The same work with lasp2.</summary>
    public string NameWithLasp2 => NameOf(Options.Recipe.SequenceLength, Ranks, "lasp2", Options.Recomputation);

    /// <summary>The same work with all inputs of blocks on the device.</summary>
    public string NameWithoutOffload => NameOf(Options.Recipe.SequenceLength, Ranks, Strategies, Options.Recomputation with { DeviceBytes = null, HostBytes = null });

    private string NameOf(long tokens, int ranks, string strategies, Recomputation recomputation) => string.Join(' ', ((string[])[
        $"step {Model}",
        FormattableString.Invariant($"N={tokens}"),
        Options.Recipe.Batch > 1 ? FormattableString.Invariant($"B={Options.Recipe.Batch}") : "",
        FormattableString.Invariant($"W={ranks}"),
        Options.DataParallel > 1 ? FormattableString.Invariant($"DP={Options.DataParallel}") : "",
        Options.Config.OutputGate ? "gate" : "",
        strategies,
        recomputation.Kind == "none" ? "" : $"checkpointing={recomputation.Kind}",
        recomputation.KeepStates ? "keep-states" : "",
        recomputation.KeepElementwise ? "keep-elementwise" : "",
        recomputation.DeviceBytes is { } bytes ? $"checkpoint-memory={Size(bytes)}" : "",
        recomputation.MlpChunk > 0 ? FormattableString.Invariant($"mlp-chunk={recomputation.MlpChunk}") : "",
        Options.Strategy is StatePassing { SeparatesParts: true } ? "separate-parts" : "",
        Options is { World.Device: DeviceKind.Cuda, DType: DType.F32 } ? "fp32" : "",
        Options.GradientDType is { } gradients && gradients != Options.DType.Accumulator() ? $"gradients={gradients.ToString().ToLowerInvariant()}" : "",
        Options.BucketBytes == TrainOptions.DefaultBucketBytes ? "" : FormattableString.Invariant($"bucket={Options.BucketBytes >> 20}MiB"),
        ranks == 1 || Options.Zero == ZeroStage.None ? "" : FormattableString.Invariant($"zero={(int)Options.Zero}")]).Where(part => part.Length > 0));

    private static string Size(long bytes) => bytes is > 0 and < 1L << 30
        ? FormattableString.Invariant($"{bytes / (double)(1L << 20):0.##}MiB")
        : FormattableString.Invariant($"{bytes / (double)(1L << 30):0.##}GiB");

    private string Strategies => Ranks == 1 ? "" : string.Join('+', ((string?[])[
        Options.Config.HasLayersOf(LayerType.LinearAttention) ? Options.Strategy.Name : null,
        Options.Config.HasLayersOf(LayerType.FullAttention) ? Options.SoftmaxStrategy.Name : null]).OfType<string>());

    public string Shape => $"{(Options.DType == DType.F32 ? "fp32" : "bf16")}, fp32 master weights and moments";

    public double FlopsPerToken => Options.Config.FlopsPerToken(Options.Recipe.SequenceLength);
}
