// Entry point of lasp: the real console, and Ctrl-C.
using LaspNative.Cli;

using var interruption = new Interruption();
return LaspProgram.Run(args, new Terminal(Console.Out, Console.Error, interruption.Token)
{
    IsInteractive = !Console.IsErrorRedirected,
    IsOutputRedirected = Console.IsOutputRedirected,
});
