using System.CommandLine;
using System.CommandLine.Help;
using System.CommandLine.Invocation;

namespace LaspNative.Cli;

/// <summary>A command that knows lines to try.</summary>
internal sealed class ExampleCommand(string name, string description, params string[] examples) : Command(name, description)
{
    public IReadOnlyList<string> Examples { get; } = examples;
}

/// <summary>The usual help, then the command's examples.</summary>
internal sealed class HelpWithExamples(HelpAction help) : SynchronousCommandLineAction
{
    /// <summary>Help is printed also where other arguments are wrong or missing.</summary>
    public override bool ClearsParseErrors => true;

    public override int Invoke(ParseResult parseResult)
    {
        help.Invoke(parseResult);
        IReadOnlyList<string> examples = parseResult.CommandResult.Command is ExampleCommand command ? command.Examples : ["lasp train --data ."];
        TextWriter output = parseResult.InvocationConfiguration.Output;
        output.WriteLine(examples.Count == 1 ? "Example:" : "Examples:");
        foreach (string example in examples) output.WriteLine($"  {example}");
        return LaspProgram.Success;
    }
}
