using System.Diagnostics;
using System.Text;
using LaspNative.Collectives;
using LaspNative.Runtime;
using Xunit;

namespace LaspNative.Tests.Collectives;

/// <summary>Starting ranks as processes: a shell stands for the program.</summary>
public sealed class ProcessLauncherTests
{
    private static (int Code, string Output, string[] Errors) Launch(LaunchOptions options, string script)
    {
        if (OperatingSystem.IsWindows()) Assert.Skip("needs /bin/sh");
        using var output = new MemoryStream();
        var errors = new StringWriter();
        int code = ProcessLauncher.Run(options, "/bin/sh", ["-c", script], output, errors);
        return (code, Encoding.UTF8.GetString(output.ToArray()), [.. errors.ToString().Split('\n', StringSplitOptions.RemoveEmptyEntries).Order(StringComparer.Ordinal)]);
    }

    [Fact]
    public void Ranks_get_their_environment_and_their_lines_get_a_prefix()
    {
        (int code, string output, string[] errors) = Launch(
            new LaunchOptions(2, Nodes: 2, NodeRank: 0, "10.1.2.3", 4000),
            "echo $RANK of $WORLD_SIZE, $LOCAL_RANK of $LOCAL_WORLD_SIZE at $MASTER_ADDR:$MASTER_PORT; echo warning >&2");
        Assert.Equal(0, code);
        Assert.Equal("0 of 4, 0 of 2 at 10.1.2.3:4000\n", output);
        Assert.Equal(["[0] warning", "[1] 1 of 4, 1 of 2 at 10.1.2.3:4000", "[1] warning"], errors);
    }

    [Fact]
    public void Later_nodes_count_on_and_own_no_standard_output()
    {
        (int code, string output, string[] errors) = Launch(new LaunchOptions(2, Nodes: 2, NodeRank: 1, "10.1.2.3", 4000), "echo $RANK $LOCAL_RANK");
        Assert.Equal(0, code);
        Assert.Equal("", output);
        Assert.Equal(["[2] 2 0", "[3] 3 1"], errors);
    }

    [Fact]
    public void The_first_failure_ends_the_others_and_gives_the_exit_code()
    {
        long start = Stopwatch.GetTimestamp();
        (int code, _, string[] errors) = Launch(new LaunchOptions(3), "if [ $RANK = 1 ]; then exit 7; fi; sleep 60");
        Assert.Equal(7, code);
        Assert.Contains("launch: rank 1 ended with exit code 7; ending the other ranks", errors);
        Assert.True(Stopwatch.GetElapsedTime(start) < TimeSpan.FromSeconds(30));
    }

    [Fact]
    public void Processes_meet_at_the_port_that_was_chosen_for_them()
    {
        (_, string output, string[] errors) = Launch(new LaunchOptions(2), "echo $MASTER_ADDR:$MASTER_PORT");
        Assert.StartsWith("127.0.0.1:", output, StringComparison.Ordinal);
        Assert.Equal([$"[1] {output.TrimEnd()}"], errors);
    }

    [Theory]
    [InlineData(0, 1, 0, 0, "at least 1 process")]
    [InlineData(1, 2, 2, 4000, "node 2 does not belong to a run of 2 nodes")]
    [InlineData(1, 2, 0, 0, "give --master-port")]
    [InlineData(1, 1, 0, 70000, "70000 is no port")]
    public void Impossible_launches_are_refused(int processes, int nodes, int node, int port, string expected)
    {
        LaspException error = Assert.Throws<LaspException>(() => Launch(new LaunchOptions(processes, nodes, node, "127.0.0.1", port), "true"));
        Assert.Contains(expected, error.Message, StringComparison.Ordinal);
    }

    [Fact]
    public void A_program_that_cannot_start_is_named()
    {
        LaspException error = Assert.Throws<LaspException>(() => ProcessLauncher.Run(new LaunchOptions(2), "/no/such/program", [], Stream.Null, TextWriter.Null));
        Assert.Contains("rank 0 could not be started: /no/such/program", error.Message, StringComparison.Ordinal);
    }
}
