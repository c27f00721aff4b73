using System.Runtime.CompilerServices;
using Xunit;

namespace LaspNative.Tests.Readme;

public class EmbeddingExampleTests
{
    [Fact]
    public void Example_runs_and_every_rank_sees_the_same_decay_gradient()
    {
        using var console = new StringWriter();
        EmbeddingExample.Run(TextWriter.Synchronized(console));
        string[] lines = console.ToString().Split('\n', StringSplitOptions.RemoveEmptyEntries);
        Assert.Equal(4, lines.Length);
        Assert.Single(lines.Select(l => l[l.IndexOf("dDecay", StringComparison.Ordinal)..]).Distinct());
        // Two gathers of one state [1, 2, 64, 64] fp32 to 3 peers, then the all-reduce of two floats: 2 (W-1)/W of 8 bytes.
        Assert.All(lines, l => Assert.Contains($"bytes sent {(2 * 3 * 2 * 64 * 64 * 4) + 12},", l));
    }

    [Fact]
    public void Readme_shows_the_example_as_it_is()
    {
        string folder = Path.GetDirectoryName(SourceFile())!;
        string readme = Path.Combine(folder, "..", "..", "README.md");
        if (!File.Exists(readme)) Assert.Skip("the sources are not beside this executable");
        string[] source = File.ReadAllLines(Path.Combine(folder, "EmbeddingExample.cs"));
        int from = Array.FindIndex(source, l => l.Contains("// <example>")) + 1;
        int to = Array.FindIndex(source, l => l.Contains("// </example>"));
        string example = string.Join('\n', source[from..to].Select(l => l.Length >= 8 ? l[8..] : l));
        Assert.Contains(example, File.ReadAllText(readme).Replace("\r\n", "\n"));
    }

    private static string SourceFile([CallerFilePath] string path = "") => path;
}
