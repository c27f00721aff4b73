using System.Text.Json;
using Xunit;

namespace LaspNative.Tests.Cli;

/// <summary>lasp launch on the CPU: real processes that speak TCP.</summary>
public sealed class LaunchTests : IDisposable
{
    private readonly string _folder = Directory.CreateTempSubdirectory("lasp-launch-").FullName;

    public void Dispose() => Directory.Delete(_folder, recursive: true);

    [Fact]
    public void Launched_processes_train_as_one_rank_does()
    {
        string text = Path.Combine(_folder, "text.txt");
        File.WriteAllText(text, string.Concat(Enumerable.Range(0, 400).Select(i => $"{i} bottles of beer on the wall. ")));
        string[] Train(string run) => ["train", "--data", text, "--preset", "linear-llama3-1b-test", "--device", "cpu", "--steps", "4", "--seq-len", "66", "--out", Path.Combine(_folder, run)];

        LaspRun alone = Lasp.Run(Train("alone"));
        LaspRun launched = Lasp.RunProcess(["launch", "--nproc", "2", "--", .. Train("launched")]);

        Assert.True(alone.ExitCode == 0, alone.Error);
        Assert.True(launched.ExitCode == 0, launched.Error);
        double[] expected = Losses("alone"), actual = Losses("launched");
        Assert.Equal(4, expected.Length);
        Assert.Equal(4, actual.Length);
        Assert.All(expected.Zip(actual), pair => Assert.Equal(pair.First, pair.Second, 2e-5 * pair.First));
    }

    private double[] Losses(string run) =>
        [.. File.ReadLines(Path.Combine(_folder, run, "metrics.jsonl")).Select(line => JsonDocument.Parse(line).RootElement.GetProperty("loss").GetDouble())];
}
