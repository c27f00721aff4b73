using System.Diagnostics;
using System.Globalization;
using LaspNative.Collectives;
using LaspNative.Model;
using LaspNative.Runtime;

namespace LaspNative.Cli;

/// <summary>What a training run looks like to its user: a banner, one line per step, how it ended.</summary>
internal sealed class TrainingProgress(Terminal terminal, TrainOptions options, string name) : ITrainingListener
{
    private readonly long _started = Stopwatch.GetTimestamp();
    private readonly List<double> _tokensPerSecond = [];
    private readonly int _ranks = options.World.Ranks ?? LaunchedRank.FromEnvironment()?.WorldSize ?? 1;
    private readonly GpuPeak? _gpu = options.World.Device == DeviceKind.Cuda ? GpuPeak.OfFirst() : null;
    private StepRecord? _last;
    private bool _announced;

    /// <summary>"1.34 B".</summary>
    public static string Parameters(LinearLlamaConfig config)
    {
        double count = config.ParameterCount;
        return count >= 1e9 ? Text($"{count / 1e9:0.000} B") : Text($"{count / 1e6:0.00} M");
    }

    /// <summary>Printed before the first line that the run has to say, so that a run which cannot start prints its error alone.</summary>
    private void Announce()
    {
        if (_announced) return;
        _announced = true;
        TrainingRecipe recipe = options.Recipe;
        string device = _gpu?.Name ?? Text($"{Environment.ProcessorCount} cores");
        terminal.Note(Text($"{name}: {Parameters(options.Config)} parameters, {DTypeName} on {options.World.Device.ToString().ToLowerInvariant()} ({device}), {Ranks}{(options.World is { Device: DeviceKind.Cuda, VirtualRanks: true } ? " sharing one GPU" : "")}, {Strategies}"));
        terminal.Note(Text($"{recipe.Steps} steps of {recipe.Batch} x {recipe.SequenceLength} tokens, seed {options.Seed}, output in {options.Output}"));
    }

    public void Note(string line)
    {
        Announce();
        terminal.Note(line);
    }

    public void Step(StepRecord record)
    {
        Announce();
        _last = record;
        _tokensPerSecond.Add(record.TokensPerSecond);
        int width = Text($"{options.Recipe.Steps}").Length;
        string wait = _ranks > 1 ? Text($"  waiting {record.ExposedCommunication,6:0.0%}") : "";
        terminal.Note(Text($"step {record.Step.ToString(CultureInfo.InvariantCulture).PadLeft(width)}/{options.Recipe.Steps}  loss {record.Loss:0.0000}  norm {record.GradientNorm:0.000}  lr {record.LearningRate:0.00e+00}  {record.TokensPerSecond,7:0} tok/s{Speed(record)}  peak {Bytes(record.PeakMemoryBytes)}{wait}"));
    }

    public void End(TrainingResult result)
    {
        string seconds = Text($"{Stopwatch.GetElapsedTime(_started).TotalSeconds:0.0} s");
        string loss = result is { FirstLoss: { } first, LastLoss: { } last } ? Text($"loss {first:0.0000} -> {last:0.0000} ({(last - first) / first:+0.0%;-0.0%}), ") : "";
        terminal.Note($"{(result.Interrupted ? Text($"interrupted after step {result.LastStep}: ") : "")}{loss}{seconds}, checkpoint in {result.Checkpoint}");
    }

    /// <summary>The run for machines.</summary>
    public object Summary(TrainingResult result) => new
    {
        Model = name,
        Parameters = options.Config.ParameterCount,
        Device = options.World.Device,
        DeviceName = _gpu?.Name,
        Ranks = _ranks / options.DataParallel,
        options.DataParallel,
        Zero = (int)options.Zero,
        Strategy = options.Strategy.Name,
        SoftmaxStrategy = options.SoftmaxStrategy.Name,
        Dtype = DTypeName,
        options.Seed,
        SequenceLength = options.Recipe.SequenceLength,
        options.Recipe.Batch,
        options.Recipe.Steps,
        result.FirstLoss,
        result.LastLoss,
        result.LastStep,
        result.Interrupted,
        MedianTokensPerSecond = Median(_tokensPerSecond),
        PeakMemoryBytes = _last?.PeakMemoryBytes,
        Seconds = Stopwatch.GetElapsedTime(_started).TotalSeconds,
        options.Output,
        result.Checkpoint,
    };

    private string Ranks => options.DataParallel == 1
        ? Text($"{_ranks} {(_ranks == 1 ? "rank" : "ranks")}")
        : Text($"{options.DataParallel} groups of {_ranks / options.DataParallel} {(_ranks == options.DataParallel ? "rank" : "ranks")}");

    /// <summary>Of the kinds of layers that the model has.</summary>
    private string Strategies => string.Join(" and ", ((string?[])[
        options.Config.HasLayersOf(LayerType.LinearAttention) ? options.Strategy.Name : null,
        options.Config.HasLayersOf(LayerType.FullAttention) ? options.SoftmaxStrategy.Name : null]).OfType<string>());

    private string DTypeName => options.DType == DType.F32 ? "fp32" : "bf16";

    /// <summary>Model TFLOP/s and their share of the GPUs' peak; nothing on the CPU.</summary>
    private string Speed(StepRecord record)
    {
        if (options.World.Device != DeviceKind.Cuda) return "";
        int gpus = options.World.VirtualRanks ? 1 : _ranks;
        string share = _gpu?.PeakTeraFlops is { } peak && options.DType == DType.BF16 ? Text($"  MFU {record.ModelTeraFlops / (peak * gpus):0.0%}") : "";
        return Text($"  {record.ModelTeraFlops:0.0} TFLOP/s{share}");
    }

    private static double? Median(List<double> values)
    {
        if (values.Count == 0) return null;
        double[] ordered = [.. values.Order()];
        return (ordered[(ordered.Length - 1) / 2] + ordered[ordered.Length / 2]) / 2;
    }

    private static string Bytes(long bytes) => bytes >= 1L << 30 ? Text($"{bytes / (double)(1L << 30):0.0} GiB") : Text($"{bytes / (double)(1L << 20):0.0} MiB");

    private static string Text(FormattableString text) => FormattableString.Invariant(text);
}
