using System.CommandLine;
using LaspNative.Cli;
using LaspNative.Collectives;
using LaspNative.Model;
using LaspNative.Runtime;

namespace LaspNative.Perf;

/// <summary>
/// Perf step: training steps of a model on random tokens, timed. It takes the options of `lasp train` that say what is trained and how ranks divide it; a case is a few of them more, which go before
/// those given for all cases:  step --preset linear-llama3-1b --batch 1 --breakdown --case "--seq-len 8192" --case "--seq-len 32768 --output-gate on"
/// </summary>
internal sealed class StepCommand
{
    private const string DefaultRecord = "step-record.json";

    private readonly RunOptions _run = new();
    private readonly Option<string[]> _cases = new("--case") { Description = "Options of one case; may be repeated.", HelpName = "\"OPTIONS\"" };
    private readonly Option<string?> _suite = OptionKinds.Choice("--suite", "Cases that are kept together: of one GPU, of two.", [.. StepSuites.Names]);
    private readonly Option<int?> _steps = OptionKinds.Whole("--steps", "Steps that are timed. [default: 5]", "S", 1);
    private readonly Option<int?> _warmup = OptionKinds.Whole("--warmup", "Steps before them. [default: 2]", "K", 0);
    private readonly Option<bool> _breakdown = new("--breakdown") { Description = "After the warm-up, two steps with events around everything that the compute stream does, of which the second is told. (cuda)" };
    private readonly Option<double?> _limit = OptionKinds.Number("--limit", "Seconds of stepping after which a case begins no further step. [default: 60]", "X", 0);
    private readonly Option<double?> _budget = OptionKinds.Number("--budget", "Seconds after which no further case begins. [default: none]", "X", 0);
    private readonly Option<bool> _separateParts = new("--separate-parts") { Description = "With lasp1 or lasp2: no kernel fusion, as in LASP's ablation: the entering state's part of attention is a kernel of its own." };
    private readonly Option<string?> _only = OptionKinds.Text("--only", "Run the cases whose names hold this.", "TEXT");
    private readonly Option<string?> _compare = OptionKinds.Text("--compare", "An earlier record to put beside this one.", "FILE.json");

    public static int Run(IReadOnlyList<string> arguments, TextWriter text)
    {
        var step = new StepCommand();
        Command command = step.Command();
        ParseResult parsed = command.Parse(arguments);
        if (parsed.Errors.Count > 0) throw new LaspException($"step: {parsed.Errors[0].Message}");
        if (parsed.Action is { } action && arguments.Any(a => a is "--help" or "-h")) return ((System.CommandLine.Invocation.SynchronousCommandLineAction)action).Invoke(parsed);
        var harness = new StepHarness(step.Options(parsed), text);
        return harness.Run([.. step.Cases(command, parsed, arguments)]) ? 0 : 1;
    }

    private Option[] OfAllCases => [_cases, _suite, _steps, _warmup, _breakdown, _limit, _budget, _only, _compare, _run.Common.Json];

    private Command Command()
    {
        var command = new RootCommand("Times training steps on random tokens.");
        foreach (Option option in OfAllCases.Except([_run.Common.Json]).Append(_separateParts)) command.Add(option);
        _run.AddTo(command);
        _run.Common.Json.Description = $"Write the record to this file. [default: {DefaultRecord}]";
        return command;
    }

    private StepHarnessOptions Options(ParseResult parsed) => new(
        parsed.GetValue(_run.Common.Json) is var record && record != "-" ? record ?? DefaultRecord : throw new LaspException("step: --json is '-'; give the name of a file, as the record grows case by case"),
        parsed.GetValue(_compare),
        parsed.GetValue(_steps) ?? 5,
        parsed.GetValue(_warmup) ?? 2,
        parsed.GetValue(_breakdown),
        TimeSpan.FromSeconds(parsed.GetValue(_limit) ?? 60),
        parsed.GetValue(_budget) is { } seconds ? TimeSpan.FromSeconds(seconds) : TimeSpan.MaxValue);

    private IEnumerable<StepCase> Cases(Command command, ParseResult parsed, IReadOnlyList<string> arguments)
    {
        string[] lines = [.. parsed.GetValue(_suite) is { } suite ? StepSuites.Of(suite) : [], .. parsed.GetValue(_cases) ?? []];
        string? only = parsed.GetValue(_only);
        foreach (string line in lines.Length == 0 ? [""] : lines)
        {
            string[] own = line.Split(' ', StringSplitOptions.RemoveEmptyEntries);
            if (own.FirstOrDefault(o => OfAllCases.Any(option => option.Name == o)) is { } shared) throw new LaspException($"case \"{line}\": {shared} is for all cases; give it outside of --case");
            ParseResult merged = command.Parse([.. Without(arguments, own), .. own]);
            if (merged.Errors.Count > 0) throw new LaspException($"case \"{line}\": {merged.Errors[0].Message}");
            (string model, TrainOptions options) = _run.Of(merged);
            var made = new StepCase(model, merged.GetValue(_separateParts) ? options with { Strategy = WithSeparateParts(options.Strategy) } : options);
            if (only is null || made.Name.Contains(only, StringComparison.Ordinal)) yield return made;
        }
    }

    private static SequenceParallel WithSeparateParts(SequenceParallel strategy) => strategy switch
    {
        Lasp1 => new Lasp1 { SeparatesParts = true },
        Lasp2 => new Lasp2 { SeparatesParts = true },
        _ => throw new LaspException($"--separate-parts is there with lasp1 and lasp2 only, not with {strategy.Name}"),
    };

    /// <summary>The arguments without cases, and without the options, and their values, that a case gives itself.</summary>
    private IEnumerable<string> Without(IReadOnlyList<string> arguments, string[] own)
    {
        bool skips = false;
        for (int i = 0; i < arguments.Count; i++)
        {
            bool isCase = arguments[i] == _cases.Name;
            if (isCase) i++; // a case begins as an option does
            else if (arguments[i].StartsWith("--", StringComparison.Ordinal)) skips = own.Contains(arguments[i], StringComparer.Ordinal);
            if (!isCase && !skips) yield return arguments[i];
        }
    }
}
