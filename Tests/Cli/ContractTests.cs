using System.Text.Json;
using Xunit;

namespace LaspNative.Tests.Cli;

/// <summary>What scripts rely on: exit codes, one line on standard error, help with an example, results on standard output or in a file.</summary>
public sealed class ContractTests : IDisposable
{
    private readonly string _folder = Directory.CreateTempSubdirectory("lasp-contract-").FullName;

    public void Dispose() => Directory.Delete(_folder, recursive: true);

    private string PathOf(string name) => Path.Combine(_folder, name);

    [Theory]
    [InlineData("train")]
    [InlineData("attend")]
    [InlineData("launch")]
    [InlineData("doctor")]
    public void Every_command_explains_itself_with_an_example(string command)
    {
        LaspRun run = Lasp.Run(command, "--help");
        Assert.Equal((0, ""), (run.ExitCode, run.Error));
        Assert.Contains($"  lasp {command}", run.Output[run.Output.IndexOf("Example", StringComparison.Ordinal)..], StringComparison.Ordinal);
    }

    [Fact]
    public void The_program_lists_its_commands_and_its_version()
    {
        LaspRun help = Lasp.Run("--help");
        Assert.Equal(0, help.ExitCode);
        Assert.All(["train", "attend", "launch", "doctor"], command => Assert.Contains($"  {command} ", help.Output, StringComparison.Ordinal));
        Assert.Matches(@"^lasp \d+\.\d+\.\d+", Lasp.Run("--version").Output);
    }

    [Theory]
    [InlineData("", "Required command was not provided")]
    [InlineData("tarin", "unknown command or option 'tarin'")]
    [InlineData("train", "--data is missing")]
    [InlineData("train --data", "Required argument missing for option: '--data'")]
    [InlineData("train --data . --bogus", "unknown option '--bogus'")]
    [InlineData("train --data . --steps", "Required argument missing for option: '--steps'")]
    [InlineData("train --data . --steps 0", "--steps is '0'; give a whole number of 1 or more")]
    [InlineData("train --data . --steps 2.5", "--steps is '2.5'")]
    [InlineData("train --data . --ranks -1", "--ranks is '-1'")]
    [InlineData("train --data . --ranks 99999999999", "--ranks is '99999999999'")]
    [InlineData("train --data . --seed x", "--seed is 'x'")]
    [InlineData("train --data . --lr nan", "--lr is 'nan'")]
    [InlineData("train --data . --device gpu", "--device is 'gpu'; use auto, cpu, cuda")]
    [InlineData("train --data . --dtype fp16", "--dtype is 'fp16'; use bf16, fp32")]
    [InlineData("train --data . --strategy fastest", "--strategy is 'fastest'; use lasp1, lasp2, zeco, ring, ulysses")]
    [InlineData("train --data . --softmax-strategy fastest", "--softmax-strategy is 'fastest'; use allgather, allgather-balanced, ring, zigzag, ulysses")]
    [InlineData("train --data . --dp 0", "--dp is '0'")]
    [InlineData("train --data . --checkpointing all", "--checkpointing is 'all'; use none, selective, block, or block:k with k of 1 or more")]
    [InlineData("train --data . --checkpointing block:0", "--checkpointing is 'block:0'; use none")]
    [InlineData("train --data . --checkpointing block --checkpoint-memory much", "--checkpoint-memory is 'much'; give a size such as 16GiB or 500MB")]
    [InlineData("train --data . --mlp-chunk -1", "--mlp-chunk is '-1'; give a whole number of 0 or more")]
    [InlineData("train --data . --preset tiny --config x.json", "--preset and --config are both given")]
    [InlineData("attend --output x", "Option '--input' is required")]
    [InlineData("attend --input x", "Option '--output' is required")]
    [InlineData("attend --input x --output y --scale inf", "--scale is 'inf'; give a finite number")]
    [InlineData("attend --input x --output y --strategy serial", "--strategy is 'serial'")]
    [InlineData("attend --input x --output y --attention flash", "--attention is 'flash'; use linear, softmax")]
    [InlineData("train --data . --zero 4", "--zero is '4'; use 0, 1, 2, 3")]
    [InlineData("launch -- train --data .", "Option '--nproc' is required")]
    [InlineData("launch --nproc 2", "Required argument 'command' missing")]
    [InlineData("launch --nproc 2 -- launch --nproc 2 -- train", "launch cannot launch itself")]
    [InlineData("doctor now", "unknown command or option 'now'")]
    public void Wrong_usage_is_exit_code_2_and_one_line(string line, string expected) => AssertRefused(2, line, expected);

    [Theory]
    [InlineData("train --data /no/such/place", "data path '/no/such/place' does not exist")]
    [InlineData("train --data . --preset nope", "unknown preset 'nope'; use one of tiny,")]
    [InlineData("train --data . --config /no/such.json", "configuration /no/such.json: no such file; give the path of a config.json")]
    [InlineData("train --data . --tokenizer bpe.json", "tokenizer 'bpe.json' is not available; use bytes")]
    [InlineData("train --data . --dp 3", "a batch of 8 cannot be divided among 3 data-parallel groups; make --batch a multiple of --dp")]
    [InlineData("train --data . --checkpoint-memory 1GiB", "add --checkpointing block, or leave out --checkpoint-memory")]
    [InlineData("train --data . --checkpointing block --pinned-memory 1GiB", "add --checkpoint-memory, or leave out --pinned-memory")]
    [InlineData("train --data . --keep-states", "add --checkpointing block, or leave out --keep-states")]
    [InlineData("train --data . --layer-pattern LLX", "layer pattern 'LLX'")]
    [InlineData("train --data . --layer-pattern LLLLN", "names 5 layers but the model has 4")]
    [InlineData("train --data . --preset roberta-tiny --strategy lasp1", "strategy lasp1 is causal")]
    [InlineData("train --data . --trace t.json", "--trace is not available yet")]
    [InlineData("train --data . --json /no/such/place/report.json", "there is no folder /no/such/place")]
    [InlineData("attend --input /no/such/file --output y", "/no/such/file: no such file")]
    [InlineData("attend --input x --output y --dp 2", "--dp 2 shares a batch among groups, but attend runs one call")]
    public void What_cannot_be_done_is_exit_code_1_and_one_line(string line, string expected) => AssertRefused(1, line, expected);

    [Fact]
    public void Training_reports_on_standard_output_and_progress_on_standard_error()
    {
        File.WriteAllText(PathOf("text.txt"), string.Concat(Enumerable.Repeat("the quick brown fox jumps over the lazy dog. ", 40)));
        string[] args = ["train", "--data", PathOf("text.txt"), "--preset", "linear-llama3-1b-test", "--steps", "3", "--seq-len", "64", "--device", "cpu", "--out", PathOf("run")];
        LaspRun run = Lasp.Run(args);
        Assert.True(run.ExitCode == 0, run.Error);
        using JsonDocument report = JsonDocument.Parse(Assert.Single(run.Output.Split('\n', StringSplitOptions.RemoveEmptyEntries)));
        Assert.Equal(3, report.RootElement.GetProperty("last_step").GetInt64());
        Assert.Equal(3, run.ErrorLines.Count(l => l.StartsWith("step ", StringComparison.Ordinal)));
        double[] losses = [.. File.ReadLines(PathOf("run/metrics.jsonl")).Select(l => JsonDocument.Parse(l).RootElement.GetProperty("loss").GetDouble())];
        Assert.Equal(losses[^1], report.RootElement.GetProperty("last_loss").GetDouble());
        Assert.True(File.Exists(PathOf("run/checkpoint-3/model.safetensors")));

        LaspRun withFile = Lasp.Run([.. args, "--json", PathOf("report.json"), "--ranks", "2"]);
        Assert.Equal((0, ""), (withFile.ExitCode, withFile.Output));
        using JsonDocument second = JsonDocument.Parse(File.ReadAllText(PathOf("report.json")));
        Assert.Equal(losses[^1], second.RootElement.GetProperty("last_loss").GetDouble(), 2e-3);
        Assert.Equal(2, second.RootElement.GetProperty("ranks").GetInt32());
    }

    [Fact]
    public void Groups_of_ranks_train_a_hybrid_as_one_rank_does()
    {
        File.WriteAllText(PathOf("text.txt"), string.Concat(Enumerable.Repeat("the quick brown fox jumps over the lazy dog. ", 40)));
        string[] args = ["train", "--data", PathOf("text.txt"), "--preset", "linear-llama3-1b-test", "--layer-pattern", "LN", "--steps", "3", "--seq-len", "50", "--batch", "4", "--device", "cpu", "--out"];
        LaspRun one = Lasp.Run([.. args, PathOf("one")]), grid = Lasp.Run([.. args, PathOf("grid"), "--ranks", "2", "--dp", "2", "--strategy", "zeco", "--softmax-strategy", "zigzag"]);
        Assert.True(one.ExitCode == 0 && grid.ExitCode == 0, one.Error + grid.Error);
        JsonElement expected = JsonDocument.Parse(one.Output).RootElement, actual = JsonDocument.Parse(grid.Output).RootElement;
        Assert.Equal(expected.GetProperty("last_loss").GetDouble(), actual.GetProperty("last_loss").GetDouble(), 1e-4);
        Assert.Equal((2, 2), (actual.GetProperty("ranks").GetInt32(), actual.GetProperty("data_parallel").GetInt32()));
        Assert.Equal(("zeco", "zigzag"), (actual.GetProperty("strategy").GetString(), actual.GetProperty("softmax_strategy").GetString()));
        Assert.Contains("2 groups of 2 ranks, zeco and zigzag", grid.Error, StringComparison.Ordinal);
    }

    [Fact]
    public void Presets_are_listed_without_data()
    {
        LaspRun run = Lasp.Run("train", "--list-presets");
        Assert.Equal((0, ""), (run.ExitCode, run.Error));
        Assert.Contains("linear-llama3-1b                1.336 B parameters", run.Output, StringComparison.Ordinal);
    }

    private static void AssertRefused(int exitCode, string line, string expected)
    {
        LaspRun run = Lasp.Run(line.Split(' ', StringSplitOptions.RemoveEmptyEntries));
        Assert.Equal((exitCode, ""), (run.ExitCode, run.Output));
        Assert.Contains(expected, Assert.Single(run.ErrorLines), StringComparison.Ordinal);
    }
}
