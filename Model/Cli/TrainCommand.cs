using System.CommandLine;
using LaspNative.Model;

namespace LaspNative.Cli;

/// <summary>lasp train: from a folder of text to a checkpoint.</summary>
internal sealed class TrainCommand
{
    private readonly RunOptions _run = new();
    private readonly Option<string[]> _data = OptionKinds.Texts("--data", "Text files, or folders to read recursively; binary files are skipped and counted.", "PATH...");
    private readonly Option<bool> _listPresets = new("--list-presets") { Description = "List the presets and end." };
    private readonly Option<int?> _steps = OptionKinds.Whole("--steps", "Steps that the learning-rate schedule spans.", "S", 1);
    private readonly Option<double?> _learningRate = OptionKinds.Number("--lr", "Peak learning rate.", "X", 0);
    private readonly Option<int?> _warmup = OptionKinds.Whole("--warmup", "Steps of linear warm-up.", "K", 0);
    private readonly Option<string?> _out = OptionKinds.Text("--out", "Folder of metrics.jsonl and the checkpoints. [default: runs/<preset>]", "DIR");
    private readonly Option<bool> _resume = new("--resume") { Description = "Go on from the newest checkpoint in DIR." };
    private readonly Option<int?> _stopAfter = OptionKinds.Whole("--stop-after", "End after this step with a checkpoint; the schedule still spans --steps.", "K", 1);
    private readonly Option<int?> _checkpointEvery = OptionKinds.Whole("--checkpoint-every", "Steps between checkpoints; one is always written at the end.", "K", 1);
    private readonly Option<string?> _tokenizer = OptionKinds.Text("--tokenizer", "How text becomes tokens; bytes is the only way so far. [default: bytes]", "bytes");
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
        train._run.AddTo(command);
        command.Validators.Add(result =>
        {
            if (result.GetResult(train._listPresets) is null && result.GetResult(train._data) is null) result.AddError("--data is missing; name text files or folders, such as '--data .'");
        });
        command.SetAction(train.Run);
        return command;
    }

    private Option[] OwnOptions => [_data, _listPresets, _steps, _learningRate, _warmup, _out, _resume, _stopAfter, _checkpointEvery, _tokenizer];

    private int Run(ParseResult parsed)
    {
        if (parsed.GetValue(_listPresets)) return ListPresets();
        _run.Common.CheckAvailable(parsed);
        (string name, TrainOptions options) = Options(parsed);
        var progress = new TrainingProgress(_terminal, options, name);
        TrainingResult? result = TrainingRun.Run(options, progress, _terminal.Cancellation);
        if (result is null) return _terminal.Cancellation.IsCancellationRequested ? LaspProgram.Interrupted : LaspProgram.Success;
        JsonReport.Write(progress.Summary(result), parsed.GetValue(_run.Common.Json), _terminal);
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
        (string name, TrainOptions options) = _run.Of(parsed);
        TrainingRecipe recipe = options.Recipe;
        return (name, options with
        {
            Data = parsed.GetValue(_data)!,
            Recipe = recipe with
            {
                Steps = parsed.GetValue(_steps) ?? recipe.Steps,
                LearningRate = parsed.GetValue(_learningRate) ?? recipe.LearningRate,
                MinLearningRate = Math.Min(recipe.MinLearningRate, parsed.GetValue(_learningRate) ?? recipe.LearningRate),
                WarmupSteps = parsed.GetValue(_warmup) ?? recipe.WarmupSteps,
            },
            Output = parsed.GetValue(_out) ?? options.Output,
            Tokenizer = parsed.GetValue(_tokenizer) ?? "bytes",
            Resume = parsed.GetValue(_resume),
            StopAfter = parsed.GetValue(_stopAfter),
            CheckpointEvery = parsed.GetValue(_checkpointEvery) ?? 0,
        });
    }
}
