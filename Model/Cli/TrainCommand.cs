using System.CommandLine;
using LaspNative.Collectives;
using LaspNative.Model;

namespace LaspNative.Cli;

/// <summary>lasp train: from a folder of text to a checkpoint.</summary>
internal sealed class TrainCommand
{
    private readonly CommonOptions _common = new();
    private readonly Option<string[]> _data = OptionKinds.Texts("--data", "Text files, or folders to read recursively; binary files are skipped and counted.", "PATH...");
    private readonly Option<string?> _preset = OptionKinds.Text("--preset", "A named model with its training recipe. [default: tiny]", "NAME");
    private readonly Option<string?> _config = OptionKinds.Text("--config", "A config.json with Hugging Face's Llama keys, trained by the recipe of tiny.", "FILE.json");
    private readonly Option<bool> _listPresets = new("--list-presets") { Description = "List the presets and end." };
    private readonly Option<long?> _sequenceLength = OptionKinds.Whole("--seq-len", "Tokens of one sequence over all ranks.", "N", 1L);
    private readonly Option<int?> _steps = OptionKinds.Whole("--steps", "Steps that the learning-rate schedule spans.", "S", 1);
    private readonly Option<int?> _batch = OptionKinds.Whole("--batch", "Sequences per step, over all data-parallel groups.", "B", 1);
    private readonly Option<double?> _learningRate = OptionKinds.Number("--lr", "Peak learning rate.", "X", 0);
    private readonly Option<int?> _warmup = OptionKinds.Whole("--warmup", "Steps of linear warm-up.", "K", 0);
    private readonly Option<string?> _layerPattern = OptionKinds.Text("--layer-pattern", "Linear (L) and softmax (N) layers, repeated to the model's depth: LLLN is a 1/4 hybrid. [default: the model's]", "PATTERN");
    private readonly Option<string?> _out = OptionKinds.Text("--out", "Folder of metrics.jsonl and the checkpoints. [default: runs/<preset>]", "DIR");
    private readonly Option<bool> _resume = new("--resume") { Description = "Go on from the newest checkpoint in DIR." };
    private readonly Option<int?> _stopAfter = OptionKinds.Whole("--stop-after", "End after this step with a checkpoint; the schedule still spans --steps.", "K", 1);
    private readonly Option<int?> _checkpointEvery = OptionKinds.Whole("--checkpoint-every", "Steps between checkpoints; one is always written at the end.", "K", 1);
    private readonly Option<string?> _tokenizer = OptionKinds.Text("--tokenizer", "How text becomes tokens. [default: bytes]", "bytes|FILE");
    private readonly Option<string?> _checkpointing = OptionKinds.Parsed(
        "--checkpointing", "Keep only the input of every block (of every k-th), and compute the rest again in backward. [default: none]", "none|block[:k]", text => Recomputation.ParseBlocks(text) is not null, "use none, block, or block:k with k of 1 or more");
    private readonly Option<bool> _keepStates = new("--keep-states") { Description = "With --checkpointing: linear layers keep the state that entered the rank, so that computing them again sends nothing." };
    private readonly Option<string?> _checkpointMemory = OptionKinds.Parsed(
        "--checkpoint-memory", "With --checkpointing: how much of the blocks' inputs stays on the device; the rest waits in host memory (cpu only). [default: all]", "SIZE", text => ByteSize.Parse(text) is not null, "give a size such as 16GiB or 500MB");
    private readonly Option<long?> _mlpChunk = OptionKinds.Whole("--mlp-chunk", "Tokens of a rank whose feed-forward activations are there at once; 0: all. [default: 0]", "TOKENS", 0L);
    private readonly Option<int?> _zero = OptionKinds.Whole("--zero", "What all ranks divide among themselves: 1 optimizer states, 2 gradients too, 3 parameters too. [default: 0, nothing]", "0|1|2|3", 0);
    private readonly Option<int?> _bucket = OptionKinds.Whole("--bucket-mib", "MiB of gradients that one message sums, while backward goes on. [default: 32]", "M", 1);
    private readonly Terminal _terminal;

    private TrainCommand(Terminal terminal) => _terminal = terminal;

    public static Command Create(Terminal terminal)
    {
        var train = new TrainCommand(terminal);
        var command = new ExampleCommand(
            "train",
            "Train a Linear-Llama3 on text, its sequence divided among ranks.",
            "lasp train --data .",
            "lasp train --data docs notes.txt --ranks 4 --steps 200 --out runs/mine",
            "lasp train --data corpus --preset linear-llama3-1b --device cuda --seq-len 32768 --batch 1",
            "lasp train --data . --layer-pattern LLLN --strategy zeco --softmax-strategy zigzag --ranks 2 --dp 2",
            "lasp train --data corpus --preset linear-llama3-1b --seq-len 131072 --batch 1 --checkpointing block --mlp-chunk 16384",
            "lasp train --data . --ranks 2 --dp 2 --zero 3",
            "lasp train --data . --resume --steps 120");
        foreach (Option option in train.OwnOptions) command.Add(option);
        train._common.AddTo(command);
        command.Validators.Add(result =>
        {
            if (result.GetResult(train._listPresets) is not null) return;
            if (result.GetResult(train._data) is null) result.AddError("--data is missing; name text files or folders, such as '--data .'");
            else if (result.GetResult(train._preset) is not null && result.GetResult(train._config) is not null) result.AddError("--preset and --config are both given; each is a whole model, so leave one out");
        });
        command.SetAction(train.Run);
        return command;
    }

    private Option[] OwnOptions =>
        [_data, _preset, _config, _listPresets, _sequenceLength, _steps, _batch, _learningRate, _warmup, _layerPattern, _out, _resume, _stopAfter, _checkpointEvery, _tokenizer,
            _checkpointing, _keepStates, _checkpointMemory, _mlpChunk, _zero, _bucket];

    private int Run(ParseResult parsed)
    {
        if (parsed.GetValue(_listPresets)) return ListPresets();
        _common.CheckAvailable(parsed);
        (string name, TrainOptions options) = Options(parsed);
        var progress = new TrainingProgress(_terminal, options, name);
        TrainingResult? result = TrainingRun.Run(options, progress, _terminal.Cancellation);
        if (result is null) return _terminal.Cancellation.IsCancellationRequested ? LaspProgram.Interrupted : LaspProgram.Success;
        JsonReport.Write(progress.Summary(result), parsed.GetValue(_common.Json), _terminal);
        progress.End(result);
        return result.Interrupted ? LaspProgram.Interrupted : LaspProgram.Success;
    }

    private int ListPresets()
    {
        foreach (Preset preset in Presets.All)
            _terminal.Output.WriteLine($"{preset.Name,-30} {TrainingProgress.Parameters(preset.Config),8} parameters  {preset.Description}");
        return LaspProgram.Success;
    }

    private (string Name, TrainOptions Options) Options(ParseResult parsed)
    {
        string? config = parsed.GetValue(_config);
        Preset preset = Preset.Find(parsed.GetValue(_preset) ?? "tiny");
        string name = config is null ? preset.Name : Path.GetFileNameWithoutExtension(config);
        int groups = parsed.GetValue(_common.DataParallel) ?? 1;
        WorldOptions world = _common.WorldOf(parsed);
        TrainingRecipe recipe = preset.Training;
        return (name, new TrainOptions
        {
            Data = parsed.GetValue(_data)!,
            Config = WithPattern(config is null ? preset.Config : LinearLlamaConfigJson.ReadFile(config), parsed.GetValue(_layerPattern)),
            Recipe = recipe with
            {
                SequenceLength = parsed.GetValue(_sequenceLength) ?? recipe.SequenceLength,
                Batch = parsed.GetValue(_batch) ?? recipe.Batch,
                Steps = parsed.GetValue(_steps) ?? recipe.Steps,
                LearningRate = parsed.GetValue(_learningRate) ?? recipe.LearningRate,
                MinLearningRate = Math.Min(recipe.MinLearningRate, parsed.GetValue(_learningRate) ?? recipe.LearningRate),
                WarmupSteps = parsed.GetValue(_warmup) ?? recipe.WarmupSteps,
            },
            Output = parsed.GetValue(_out) ?? Path.Combine("runs", name),
            Tokenizer = parsed.GetValue(_tokenizer) ?? "bytes",
            World = world with { Ranks = TotalRanks(world.Ranks, groups) },
            DataParallel = groups,
            Zero = (ZeroStage)(parsed.GetValue(_zero) ?? 0),
            BucketBytes = (parsed.GetValue(_bucket) ?? 32L) << 20,
            Strategy = _common.StrategyOf(parsed),
            SoftmaxStrategy = _common.SoftmaxStrategyOf(parsed),
            Recomputation = RecomputationOf(parsed),
            DType = CommonOptions.DTypeOf(parsed.GetValue(_common.DType), world.Device),
            Seed = parsed.GetValue(_common.Seed) ?? 0,
            Resume = parsed.GetValue(_resume),
            StopAfter = parsed.GetValue(_stopAfter),
            CheckpointEvery = parsed.GetValue(_checkpointEvery) ?? 0,
        });
    }

    private Recomputation RecomputationOf(ParseResult parsed) => new()
    {
        EveryBlock = Recomputation.ParseBlocks(parsed.GetValue(_checkpointing) ?? "none") ?? 0,
        KeepStates = parsed.GetValue(_keepStates),
        DeviceBytes = parsed.GetValue(_checkpointMemory) is { } size ? ByteSize.Parse(size) : null,
        MlpChunk = parsed.GetValue(_mlpChunk) ?? 0,
    };

    private static LinearLlamaConfig WithPattern(LinearLlamaConfig config, string? pattern) =>
        pattern is null ? config : config with { LayerTypes = LayerPattern.Parse(pattern, config.NumHiddenLayers) };

    /// <summary>--ranks counts those of one group. Under a launcher, which says how many processes there are, it may be left out.</summary>
    private static int? TotalRanks(int? ranks, int groups) =>
        ranks is null && LaunchedRank.FromEnvironment() is not null ? null : checked((ranks ?? 1) * groups);
}
