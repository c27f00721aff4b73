using System.ComponentModel;
using System.Diagnostics;
using System.Globalization;
using System.Net;
using System.Net.Sockets;
using System.Reflection;
using System.Runtime.InteropServices;
using LaspNative.Runtime;
using Microsoft.Win32.SafeHandles;

namespace LaspNative.Collectives;

/// <summary>How many processes to start, here and elsewhere, and where rank 0 listens.</summary>
/// <param name="MasterPort">0: a free port, for a run on one node.</param>
public sealed record LaunchOptions(int ProcessesPerNode, int Nodes = 1, int NodeRank = 0, string MasterAddress = "127.0.0.1", int MasterPort = 0);

/// <summary>
/// Starts this program once per local rank under the environment names of <see cref="LaunchedRank"/>. Rank 0's standard output passes through untouched;
/// every other line of every rank goes to standard error with its rank in front. When one process fails, the rest are ended.
/// </summary>
public static class ProcessLauncher
{
    /// <summary>Time that processes have to close their files after Ctrl-C.</summary>
    private static readonly TimeSpan s_grace = TimeSpan.FromSeconds(30);

    /// <summary>Runs this program with <paramref name="command"/> as its arguments. Returns 0, or the exit code of the process that failed first.</summary>
    public static int Run(LaunchOptions options, string[] command)
    {
        ArgumentNullException.ThrowIfNull(command);
        string program = Environment.ProcessPath ?? throw new LaspException("the path of this program is unknown, so it cannot be started again; start the ranks with torchrun --no-python");
        bool hosted = Path.GetFileNameWithoutExtension(program) == "dotnet";
        string[] entry = hosted ? [Assembly.GetEntryAssembly()!.Location] : [];
        using Stream output = Console.OpenStandardOutput();
        return Run(options, program, [.. entry, .. command], output, Console.Error);
    }

    internal static int Run(LaunchOptions options, string program, string[] arguments, Stream output, TextWriter errors)
    {
        ArgumentNullException.ThrowIfNull(options);
        Check(options);
        int port = options.MasterPort == 0 ? FreePort() : options.MasterPort;
        using var ranks = new RankProcesses(output, errors);
        for (int local = 0; local < options.ProcessesPerNode; local++)
        {
            int rank = options.NodeRank * options.ProcessesPerNode + local;
            ranks.Start(rank, Describe(options, program, arguments, rank, local, port));
        }
        return ranks.Wait(s_grace);
    }

    private static void Check(LaunchOptions options)
    {
        if (options.ProcessesPerNode < 1) throw new LaspException($"a node runs at least 1 process, got {options.ProcessesPerNode} (--nproc)");
        if (options.Nodes < 1) throw new LaspException($"a run has at least 1 node, got {options.Nodes} (--nnodes)");
        if (options.NodeRank < 0 || options.NodeRank >= options.Nodes) throw new LaspException($"node {options.NodeRank} does not belong to a run of {options.Nodes} nodes; nodes count from 0 (--node-rank)");
        if (options.MasterPort is < 0 or > 65535) throw new LaspException($"{options.MasterPort} is no port; choose one from 1 to 65535 (--master-port)");
        if (options.Nodes > 1 && options.MasterPort == 0) throw new LaspException("a run on several nodes needs one port that all of them know; give --master-port and --master-addr");
    }

    private static ProcessStartInfo Describe(LaunchOptions options, string program, string[] arguments, int rank, int local, int port)
    {
        var start = new ProcessStartInfo(program, arguments) { UseShellExecute = false, RedirectStandardOutput = true, RedirectStandardError = true };
        void Set(string name, int value) => start.Environment[name] = value.ToString(CultureInfo.InvariantCulture);
        Set("RANK", rank);
        Set("WORLD_SIZE", options.ProcessesPerNode * options.Nodes);
        Set("LOCAL_RANK", local);
        Set("LOCAL_WORLD_SIZE", options.ProcessesPerNode);
        Set("GROUP_RANK", options.NodeRank);
        Set("MASTER_PORT", port);
        start.Environment["MASTER_ADDR"] = options.MasterAddress;
        start.Environment.Remove("TORCHELASTIC_USE_AGENT_STORE");
        return start;
    }

    private static int FreePort()
    {
        using var probe = new TcpListener(IPAddress.Loopback, 0);
        probe.Start();
        return ((IPEndPoint)probe.LocalEndpoint).Port;
    }
}

/// <summary>The running processes of one node.</summary>
internal sealed class RankProcesses(Stream output, TextWriter errors) : IDisposable
{
    /// <summary>What a process that ended by Ctrl-C returns, and what its neighbours are about to.</summary>
    private const int InterruptedExitCode = 130;

    /// <summary>A mistake that ended one rank often ends all: time for the others to say theirs.</summary>
    private static readonly TimeSpan s_lastWords = TimeSpan.FromSeconds(1);

    private readonly List<(int Rank, Process Process, Task Output)> _processes = [];
    private readonly Lock _printing = new();

    public void Start(int rank, ProcessStartInfo start)
    {
        try
        {
            Process process = Process.Start(start)!;
            Task standard = rank == 0 ? process.StandardOutput.BaseStream.CopyToAsync(output) : Prefix(rank, process.StandardOutput);
            _processes.Add((rank, process, Task.WhenAll(standard, Prefix(rank, process.StandardError))));
        }
        catch (Win32Exception error)
        {
            throw new LaspException($"rank {rank} could not be started: {start.FileName}: {error.Message}", error);
        }
    }

    /// <summary>Blocks until all have ended. The first failure, and a signal whose <paramref name="grace"/> has passed, end the others.</summary>
    public int Wait(TimeSpan grace)
    {
        using var interrupted = new CancellationTokenSource();
        using PosixSignalRegistration interrupt = PosixSignalRegistration.Create(PosixSignal.SIGINT, c => Forward(c, Signals.Interrupt));
        using PosixSignalRegistration terminate = PosixSignalRegistration.Create(PosixSignal.SIGTERM, c => Forward(c, Signals.Terminate));
        void Forward(PosixSignalContext context, int signal)
        {
            context.Cancel = true;
            // A terminal's Ctrl-C has reached the children already: a second one would read as impatience.
            if (signal != Signals.Interrupt || !Signals.ComeFromTerminal())
                foreach ((_, Process process, _) in _processes) Signals.Send(process, signal);
            interrupted.CancelAfter(grace);
        }
        using CancellationTokenRegistration impatience = interrupted.Token.Register(Kill);
        return WaitForAll(interrupted, grace).GetAwaiter().GetResult();
    }

    public void Dispose()
    {
        Kill();
        foreach ((_, Process process, _) in _processes) process.Dispose();
    }

    private async Task<int> WaitForAll(CancellationTokenSource interrupted, TimeSpan grace)
    {
        int code = 0;
        List<Task<(int Rank, int Code)>> running = [.. _processes.Select(p => End(p.Rank, p.Process))];
        while (running.Count > 0)
        {
            Task<(int, int)> ended = await Task.WhenAny(running).ConfigureAwait(false);
            running.Remove(ended);
            (int rank, int exit) = await ended.ConfigureAwait(false);
            if (exit == 0 || code != 0) continue;
            code = exit;
            if (running.Count > 0) Print($"launch: rank {rank} ended with exit code {exit}; ending the other ranks");
            interrupted.CancelAfter(exit == InterruptedExitCode ? grace : s_lastWords);
        }
        await Task.WhenAll(_processes.Select(p => p.Output)).ConfigureAwait(false);
        await output.FlushAsync().ConfigureAwait(false);
        return code;
    }

    private static async Task<(int Rank, int Code)> End(int rank, Process process)
    {
        await process.WaitForExitAsync().ConfigureAwait(false);
        return (rank, process.ExitCode);
    }

    private async Task Prefix(int rank, StreamReader lines)
    {
        while (await lines.ReadLineAsync().ConfigureAwait(false) is { } line) Print($"[{rank}] {line}");
    }

    private void Print(string line)
    {
        lock (_printing) errors.WriteLine(line);
    }

    private void Kill()
    {
        foreach ((_, Process process, _) in _processes)
        {
            try
            {
                process.Kill(entireProcessTree: true);
            }
            catch (Exception error) when (error is InvalidOperationException or Win32Exception)
            {
                // It has ended by itself.
            }
        }
    }
}

/// <summary>What .NET does not offer: signals to other processes. Elsewhere than on Unix nothing is sent.</summary>
internal static partial class Signals
{
    public const int Interrupt = 2;
    public const int Terminate = 15;

    public static void Send(Process process, int signal)
    {
        if (!OperatingSystem.IsWindows() && !process.HasExited) _ = Kill(process.Id, signal);
    }

    /// <summary>Whether this process is in the foreground of a terminal, whose keys then signal its children too.</summary>
    public static bool ComeFromTerminal()
    {
        if (OperatingSystem.IsWindows()) return true;
        try
        {
            using SafeFileHandle terminal = File.OpenHandle("/dev/tty", FileMode.Open, FileAccess.ReadWrite);
            return ForegroundGroup((int)terminal.DangerousGetHandle()) == OwnGroup();
        }
        catch (Exception error) when (error is IOException or UnauthorizedAccessException or NotSupportedException)
        {
            return false; // There is no terminal.
        }
    }

    [LibraryImport("libc", EntryPoint = "kill")]
    private static partial int Kill(int process, int signal);

    [LibraryImport("libc", EntryPoint = "tcgetpgrp")]
    private static partial int ForegroundGroup(int terminal);

    [LibraryImport("libc", EntryPoint = "getpgrp")]
    private static partial int OwnGroup();
}
