using System.CommandLine;
using System.Globalization;
using LaspNative.Collectives;
using LaspNative.Model;

namespace LaspNative.Cli;

/// <summary>What is trained and how ranks divide it: the options that every command which takes training steps shares.</summary>
internal sealed class RunOptions
{
    private readonly Option<string?> _preset = OptionKinds.Text("--preset", "A named model with its training recipe. [default: tiny]", "NAME");
    private readonly Option<string?> _config = OptionKinds.Text("--config", "A config.json with Hugging Face's Llama keys, trained by the recipe of tiny.", "FILE.json");
    private readonly Option<long?> _sequenceLength = OptionKinds.Whole("--seq-len", "Tokens of one sequence over all ranks.", "N", 1L);
    private readonly Option<int?> _batch = OptionKinds.Whole("--batch", "Sequences per step, over all data-parallel groups.", "B", 1);
    private readonly Option<string?> _layerPattern = OptionKinds.Text("--layer-pattern", "Linear (L) and softmax (N) layers, repeated to the model's depth: LLLN is a 1/4 hybrid. [default: the model's]", "PATTERN");
    private readonly Option<string?> _outputGate = OptionKinds.Choice("--output-gate", "Whether linear layers multiply their output by a projected gate. [default: the model's]", "on", "off");
    private readonly Option<string?> _checkpointing = OptionKinds.Parsed(
        "--checkpointing", "Keep less and compute it again in backward: of the feed-forward parts (selective), or of every block (of every k-th), only the input. [default: none]", "none|selective|block[:k]", text => Recomputation.Parse(text) is not null, "use none, selective, block, or block:k with k of 1 or more");
    private readonly Option<bool> _keepStates = new("--keep-states") { Description = "With --checkpointing: linear layers keep the state that entered the rank, so that computing them again sends nothing." };
    private readonly Option<bool> _keepElementwise = new("--keep-elementwise") { Description = "Keep norms and feature maps too, which are made again in backward otherwise: more memory, a little less time." };
    private readonly Option<string?> _checkpointMemory = OptionKinds.Parsed(
        "--checkpoint-memory", "With --checkpointing: how much of the blocks' inputs stays on the device; the rest waits in host memory, copied beside the work. [default: all]", "SIZE", text => ByteSize.Parse(text) is not null, "give a size such as 16GiB or 500MB");
    private readonly Option<string?> _pinnedMemory = OptionKinds.Parsed(
        "--pinned-memory", "With --checkpoint-memory: most host memory of a rank for the blocks' inputs that wait there. [default: as much as they take]", "SIZE", text => ByteSize.Parse(text) is not null, "give a size such as 64GiB or 500MB");
    private readonly Option<long?> _mlpChunk = OptionKinds.Whole("--mlp-chunk", "Tokens of a rank whose feed-forward activations are there at once; 0: all. [default: 0]", "TOKENS", 0L);
    private readonly Option<string?> _zero = OptionKinds.Choice("--zero", "What all ranks divide among themselves: 1 optimizer states, 2 gradients too, 3 parameters too. [default: 0, nothing]", "0", "1", "2", "3");
    private readonly Option<int?> _bucket = OptionKinds.Whole("--bucket-mib", "MiB of gradients that one message sums, while backward goes on. [default: 32]", "M", 1);

    private readonly Option<string?> _gradientDType = OptionKinds.Choice("--gradient-dtype", "Type that the gradients of the blocks are summed in, over tokens and over ranks; bf16 with --dtype bf16 only. [default: fp32]", "fp32", "bf16");

    public CommonOptions Common { get; } = new();

    public void AddTo(Command command)
    {
        foreach (Option option in new Option[] { _preset, _config, _sequenceLength, _batch, _layerPattern, _outputGate, _checkpointing, _keepStates, _keepElementwise, _checkpointMemory, _pinnedMemory, _mlpChunk, _zero, _bucket, _gradientDType }) command.Add(option);
        Common.AddTo(command);
        command.Validators.Add(result =>
        {
            if (result.GetResult(_preset) is not null && result.GetResult(_config) is not null) result.AddError("--preset and --config are both given; each is a whole model, so leave one out");
        });
    }

    /// <summary>The model's name and the run, with no data yet and its output in runs/name.</summary>
    public (string Name, TrainOptions Options) Of(ParseResult parsed)
    {
        string? config = parsed.GetValue(_config);
        Preset preset = Preset.Find(parsed.GetValue(_preset) ?? "tiny");
        string name = config is null ? preset.Name : Path.GetFileNameWithoutExtension(config);
        int groups = parsed.GetValue(Common.DataParallel) ?? 1;
        WorldOptions world = Common.WorldOf(parsed);
        return (name, new TrainOptions
        {
            Data = [],
            Config = Changed(config is null ? preset.Config : LinearLlamaConfigJson.ReadFile(config), parsed),
            Recipe = preset.Training with
            {
                SequenceLength = parsed.GetValue(_sequenceLength) ?? preset.Training.SequenceLength,
                Batch = parsed.GetValue(_batch) ?? preset.Training.Batch,
            },
            Output = Path.Combine("runs", name),
            World = world with { Ranks = TotalRanks(world.Ranks, groups) },
            DataParallel = groups,
            Zero = (ZeroStage)int.Parse(parsed.GetValue(_zero) ?? "0", CultureInfo.InvariantCulture),
            BucketBytes = (parsed.GetValue(_bucket) ?? 32L) << 20,
            Strategy = Common.StrategyOf(parsed),
            SoftmaxStrategy = Common.SoftmaxStrategyOf(parsed),
            Recomputation = RecomputationOf(parsed),
            DType = CommonOptions.DTypeOf(parsed.GetValue(Common.DType), world.Device),
            GradientDType = parsed.GetValue(_gradientDType) is { } gradient ? CommonOptions.DTypeOf(gradient, world.Device) : null,
            Seed = parsed.GetValue(Common.Seed) ?? 0,
        });
    }

    private Recomputation RecomputationOf(ParseResult parsed) => (Recomputation.Parse(parsed.GetValue(_checkpointing) ?? "none") ?? Recomputation.None) with
    {
        KeepStates = parsed.GetValue(_keepStates),
        KeepElementwise = parsed.GetValue(_keepElementwise),
        DeviceBytes = parsed.GetValue(_checkpointMemory) is { } size ? ByteSize.Parse(size) : null,
        HostBytes = parsed.GetValue(_pinnedMemory) is { } host ? ByteSize.Parse(host) : null,
        MlpChunk = parsed.GetValue(_mlpChunk) ?? 0,
    };

    private LinearLlamaConfig Changed(LinearLlamaConfig config, ParseResult parsed)
    {
        if (parsed.GetValue(_layerPattern) is { } pattern) config = config with { LayerTypes = LayerPattern.Parse(pattern, config.NumHiddenLayers) };
        return parsed.GetValue(_outputGate) is { } gate ? config with { OutputGate = gate == "on" } : config;
    }

    /// <summary>--ranks counts those of one group. Under a launcher, which says how many processes there are, it may be left out.</summary>
    private static int? TotalRanks(int? ranks, int groups) =>
        ranks is null && LaunchedRank.FromEnvironment() is not null ? null : checked((ranks ?? 1) * groups);
}
