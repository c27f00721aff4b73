using Spectre.Console;

namespace LaspNative.Cli;

/// <summary>
/// Where a command writes: what machines read goes to <paramref name="Output"/>, what people read goes to <paramref name="Error"/>.
/// Tests pass writers of their own.
/// </summary>
internal sealed record Terminal(TextWriter Output, TextWriter Error, CancellationToken Cancellation = default)
{
    /// <summary>Whether <see cref="Error"/> is a screen: only then are there colours and lines that change.</summary>
    public bool IsInteractive { get; init; }

    /// <summary>Whether <see cref="Output"/> is a file or pipe: then somebody wants to read the result by machine.</summary>
    public bool IsOutputRedirected { get; init; } = true;

    /// <summary>Error output through Spectre.Console, which draws tables; without colours where it is no screen.</summary>
    public IAnsiConsole Console
    {
        get
        {
            const int widthOfFiles = 160;
            IAnsiConsole console = AnsiConsole.Create(new AnsiConsoleSettings
            {
                Out = new AnsiConsoleOutput(Error),
                Ansi = IsInteractive ? AnsiSupport.Detect : AnsiSupport.No,
                ColorSystem = IsInteractive ? ColorSystemSupport.Detect : ColorSystemSupport.NoColors,
                Interactive = IsInteractive ? InteractionSupport.Detect : InteractionSupport.No,
            });
            if (!IsInteractive) console.Profile.Width = widthOfFiles;
            return console;
        }
    }

    /// <summary>One line for people.</summary>
    public void Note(string line) => Error.WriteLine(line);
}
