using System.Diagnostics;
using Xunit;

namespace LaspNative.Tests.Cli;

/// <summary>Ctrl-C in a real process: the running step ends, a checkpoint is written, the exit code is 130.</summary>
public sealed class InterruptionTests : IDisposable
{
    private readonly string _folder = Directory.CreateTempSubdirectory("lasp-interrupt-").FullName;

    public void Dispose() => Directory.Delete(_folder, recursive: true);

    [Fact]
    public async Task An_interrupted_run_leaves_a_checkpoint_that_resumes()
    {
        if (OperatingSystem.IsWindows()) Assert.Skip("signals are sent with kill");
        string text = Path.Combine(_folder, "text.txt");
        File.WriteAllText(text, string.Concat(Enumerable.Repeat("all work and no play makes a dull model. ", 60)));
        string[] args = ["train", "--data", text, "--preset", "linear-llama3-1b-test", "--device", "cpu", "--ranks", "2", "--steps", "5000", "--out", Path.Combine(_folder, "run")];
        using Process process = Lasp.Start(args);
        Task<string> output = process.StandardOutput.ReadToEndAsync(TestContext.Current.CancellationToken);
        var lines = new List<string>();
        while (await process.StandardError.ReadLineAsync(TestContext.Current.CancellationToken) is { } line)
        {
            lines.Add(line);
            if (line.StartsWith("step ", StringComparison.Ordinal) && lines.Count(l => l.StartsWith("step ", StringComparison.Ordinal)) == 2)
                Process.Start("kill", ["-INT", $"{process.Id}"]).WaitForExit();
        }
        await process.WaitForExitAsync(TestContext.Current.CancellationToken);
        Assert.Equal(130, process.ExitCode);
        Assert.Contains("\"interrupted\":true", await output, StringComparison.Ordinal);
        Assert.StartsWith("interrupted after step ", lines[^1], StringComparison.Ordinal);
        string checkpoint = Assert.Single(Directory.GetDirectories(Path.Combine(_folder, "run"), "checkpoint-*"));
        int step = int.Parse(Path.GetFileName(checkpoint)["checkpoint-".Length..]);

        LaspRun resumed = Lasp.Run([.. args, "--resume", "--stop-after", $"{step + 1}"]);
        Assert.True(resumed.ExitCode == 0, resumed.Error);
        Assert.Equal(step + 1, File.ReadLines(Path.Combine(_folder, "run", "metrics.jsonl")).Count());
    }
}
