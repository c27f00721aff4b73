using System.CommandLine;
using System.Runtime.InteropServices;
using System.Runtime.Intrinsics;
using LaspNative.Runtime;
using LaspNative.Runtime.Interop;
using Spectre.Console;

namespace LaspNative.Cli;

/// <summary>lasp doctor: what this machine has, what is missing and how to get it, and whether it works. A machine without a GPU is healthy.</summary>
internal static class DoctorCommand
{
    public static Command Create(Terminal terminal)
    {
        Option<string?> json = OptionKinds.Text("--json", "Write the findings as JSON to this file; - is standard output.", "FILE");
        var command = new ExampleCommand(
            "doctor",
            "Look for .NET, GPUs, driver, NVRTC, cuBLASLt and NCCL; compile and run one kernel; gather once between two GPUs.",
            "lasp doctor",
            "lasp doctor --json doctor.json") { json };
        command.SetAction(parsed =>
        {
            JsonReport.Check(parsed.GetValue(json));
            SystemReport system = SystemProbe.Run();
            IReadOnlyList<DoctorCheck> checks = DoctorChecks.Run(system);
            Print(system, checks, terminal);
            JsonReport.Write(Summary(system, checks), parsed.GetValue(json), terminal);
            if (checks.FirstOrDefault(c => c.Status == CheckStatus.Failed) is { } failed) throw new LaspException($"'{failed.Name}' failed: {failed.Detail}");
        });
        return command;
    }

    private static (string Name, LibraryReport Library)[] Libraries(SystemReport system) =>
        [("driver", system.Driver), ("NVRTC", system.Nvrtc), ("cuBLASLt", system.CublasLt), ("NCCL", system.Nccl)];

    /// <summary>What to do, and which file was looked for where a variable names one.</summary>
    private static string Missing(NativeLibraryStatus library) => library.Tried is [string named] ? $"{named} is not there or does not load; {library.Remedy}" : library.Remedy;

    private static void Print(SystemReport system, IReadOnlyList<DoctorCheck> checks, Terminal terminal)
    {
        Table table = new Table().Border(terminal.IsInteractive ? TableBorder.Rounded : TableBorder.None).HideHeaders().AddColumns("what", "state", "detail");
        void Row(string what, string state, string detail) => table.AddRow(new Text(what), new Text(state, StyleOf(state)), new Text(detail));
        Row(".NET", "found", $"{Environment.Version} on {RuntimeInformation.OSDescription} ({RuntimeInformation.ProcessArchitecture.ToString().ToLowerInvariant()})");
        Row("CPU", "found", $"{Environment.ProcessorCount} cores, {VectorBits}-bit vectors");
        foreach ((string name, LibraryReport library) in Libraries(system))
        {
            string release = name == "driver" && system.DriverRelease is { } driver ? $"release {driver}, CUDA " : "";
            if (library.Usable) Row(name, "found", $"{release}{library.Version ?? "version unknown"} in {library.Status.Path}");
            else Row(name, library.Status.Found ? "broken" : "missing", library.Status.Found ? library.Problem! : Missing(library.Status));
        }
        foreach (GpuReport gpu in system.Gpus)
            Row($"GPU {gpu.Index}", "found", $"{gpu.Name}, compute capability {gpu.ComputeCapability.Major}.{gpu.ComputeCapability.Minor}, {gpu.MemoryBytes / (double)(1L << 30):0.0} GiB, {gpu.MultiprocessorCount} multiprocessors");
        foreach (DoctorCheck check in checks) Row(check.Name, check.Status.ToString().ToLowerInvariant(), check.Detail);
        terminal.Console.Write(table);
        terminal.Note(SystemProbe.IsCudaUsable(out string reason) ? "CUDA can be used: --device auto computes on the GPU." : $"No usable GPU, so everything runs on the CPU: {reason}.");
    }

    private static Style StyleOf(string state) => state switch
    {
        "found" or "passed" => new Style(Color.Green),
        "failed" or "broken" => new Style(Color.Red),
        _ => new Style(Color.Yellow),
    };

    private static int VectorBits => Vector512.IsHardwareAccelerated ? 512 : Vector256.IsHardwareAccelerated ? 256 : 128;

    /// <summary>The findings for machines.</summary>
    private static object Summary(SystemReport system, IReadOnlyList<DoctorCheck> checks) => new
    {
        Dotnet = Environment.Version.ToString(),
        Os = RuntimeInformation.OSDescription,
        Architecture = RuntimeInformation.ProcessArchitecture.ToString().ToLowerInvariant(),
        Cores = Environment.ProcessorCount,
        VectorBits,
        CudaUsable = SystemProbe.IsCudaUsable(out string reason),
        CudaProblem = reason.Length == 0 ? null : reason,
        system.DriverRelease,
        Libraries = Libraries(system).ToDictionary(
            l => l.Name.ToLowerInvariant(),
            l => new { l.Library.Usable, l.Library.Version, l.Library.Status.Path, l.Library.Status.Tried, l.Library.Problem },
            StringComparer.Ordinal),
        Gpus = system.Gpus.Select(g => new { g.Index, g.Name, ComputeCapability = $"{g.ComputeCapability.Major}.{g.ComputeCapability.Minor}", g.MemoryBytes, g.MultiprocessorCount }),
        Checks = checks,
    };
}
