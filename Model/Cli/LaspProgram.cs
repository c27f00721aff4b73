using System.CommandLine;
using System.CommandLine.Help;
using System.Reflection;
using LaspNative.Runtime;

namespace LaspNative.Cli;

/// <summary>
/// The program: parses the command line, runs the command, and turns every ending into an exit code and at most one line:
/// 0 done, 1 failed (a <see cref="LaspException"/>'s line, or that it is a defect of ours), 2 wrong usage, 130 interrupted.
/// Stack traces appear only under LASP_DEBUG=1.
/// </summary>
internal static class LaspProgram
{
    public const int Success = 0;
    public const int Failure = 1;
    public const int WrongUsage = 2;
    public const int Interrupted = 130;

    public static int Run(IReadOnlyList<string> args, Terminal terminal)
    {
        ParseResult parsed = Root(terminal).Parse(args, new ParserConfiguration { ResponseFileTokenReplacer = null });
        if (parsed.Action is not null && parsed.Errors.Count > 0)
        {
            string problem = parsed.UnmatchedTokens is [string unknown, ..] ? $"unknown command or option '{unknown}'" : parsed.Errors[0].Message.TrimEnd('.');
            terminal.Error.WriteLine($"{Path(parsed)}: {OneLine(problem)}; see {Path(parsed)} --help");
            return WrongUsage;
        }
        try
        {
            return parsed.Invoke(new InvocationConfiguration { Output = terminal.Output, Error = terminal.Error, EnableDefaultExceptionHandler = false, ProcessTerminationTimeout = null });
        }
        catch (Exception e)
        {
            return Report(e, Path(parsed), terminal);
        }
    }

    private static RootCommand Root(Terminal terminal)
    {
        var root = new RootCommand("Sequence-parallel linear attention (LASP-2): train, try single calls, inspect the machine.")
        {
            TrainCommand.Create(terminal),
            AttendCommand.Create(terminal),
            LaunchCommand.Create(terminal),
            DoctorCommand.Create(terminal),
        };
        HelpOption help = root.Options.OfType<HelpOption>().Single();
        help.Action = new HelpWithExamples((HelpAction)help.Action!);
        VersionOption version = root.Options.OfType<VersionOption>().Single();
        version.Action = new PrintVersion();
        return root;
    }

    private static int Report(Exception error, string command, Terminal terminal)
    {
        bool debug = LaspOptions.Current.Debug;
        (int code, string line) = error switch
        {
            OperationCanceledException => (Interrupted, "interrupted"),
            LaspException => (Failure, error.Message),
            IOException or UnauthorizedAccessException => (Failure, error.Message),
            OutOfMemoryException => (Failure, "not enough memory; take a smaller model, a shorter sequence or more ranks"),
            _ => (Failure, $"this is a defect of lasp ({error.GetType().Name}: {error.Message}); please report it{(debug ? "" : ", with the stack trace that LASP_DEBUG=1 prints")}"),
        };
        terminal.Error.WriteLine($"{command}: {OneLine(line)}");
        if (debug) terminal.Error.WriteLine(error.ToString());
        return code;
    }

    /// <summary>"lasp train".</summary>
    private static string Path(ParseResult parsed)
    {
        string name = parsed.CommandResult.Command.Name;
        return parsed.CommandResult.Command is RootCommand ? "lasp" : $"lasp {name}";
    }

    private static string OneLine(string text) => string.Join(' ', text.Split(['\r', '\n'], StringSplitOptions.RemoveEmptyEntries | StringSplitOptions.TrimEntries));

    private sealed class PrintVersion : System.CommandLine.Invocation.SynchronousCommandLineAction
    {
        public override int Invoke(ParseResult parseResult)
        {
            string version = typeof(LaspProgram).Assembly.GetCustomAttribute<AssemblyInformationalVersionAttribute>()!.InformationalVersion;
            parseResult.InvocationConfiguration.Output.WriteLine($"lasp {version.Split('+')[0]}");
            return Success;
        }
    }
}
