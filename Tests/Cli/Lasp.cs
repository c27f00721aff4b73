using System.Diagnostics;
using LaspNative.Cli;

namespace LaspNative.Tests.Cli;

/// <summary>What a run of lasp left behind.</summary>
public sealed record LaspRun(int ExitCode, string Output, string Error)
{
    public string[] ErrorLines => Error.Split('\n', StringSplitOptions.RemoveEmptyEntries);
}

/// <summary>Runs lasp, in this process or as a real one.</summary>
public static class Lasp
{
    public static LaspRun Run(params string[] args)
    {
        using var output = new StringWriter { NewLine = "\n" };
        using var error = new StringWriter { NewLine = "\n" };
        int code = LaspProgram.Run(args, new Terminal(output, error));
        return new LaspRun(code, output.ToString(), error.ToString());
    }

    /// <summary>The program beside this test assembly, started by the same runtime.</summary>
    public static LaspRun RunProcess(params string[] args) => Finish(Start(args));

    /// <summary>As <see cref="RunProcess"/>, with one environment variable more.</summary>
    public static LaspRun RunProcessWith(string variable, string value, params string[] args)
    {
        ProcessStartInfo start = StartInfo(args);
        start.Environment[variable] = value;
        return Finish(Process.Start(start)!);
    }

    private static LaspRun Finish(Process started)
    {
        using Process process = started;
        Task<string> output = process.StandardOutput.ReadToEndAsync();
        Task<string> error = process.StandardError.ReadToEndAsync();
        process.WaitForExit();
        return new LaspRun(process.ExitCode, output.Result, error.Result);
    }

    public static Process Start(params string[] args) => Process.Start(StartInfo(args))!;

    private static ProcessStartInfo StartInfo(string[] args)
    {
        var start = new ProcessStartInfo(Environment.GetEnvironmentVariable("DOTNET_HOST_PATH") ?? "dotnet") { UseShellExecute = false, RedirectStandardOutput = true, RedirectStandardError = true };
        start.ArgumentList.Add("exec");
        start.ArgumentList.Add(Path.Combine(AppContext.BaseDirectory, "lasp.dll"));
        foreach (string arg in args) start.ArgumentList.Add(arg);
        return start;
    }
}
