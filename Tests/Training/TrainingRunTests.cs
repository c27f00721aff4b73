using System.Text.Json.Nodes;
using LaspNative.Collectives;
using LaspNative.Model;
using LaspNative.Runtime;
using LaspNative.Tests.Model;
using Xunit;

namespace LaspNative.Tests.Training;

/// <summary>Whole runs on the CPU: the loss falls, ranks do not matter, resuming is exact, and what is on disk is what was promised.</summary>
public class TrainingRunTests
{
    private static readonly string s_text = string.Concat(Enumerable.Range(0, 400).Select(i => $"{i} plus {i % 7} is {i + i % 7}.\n"));

    /// <summary>A small model on a small text; the output folder is NAME.</summary>
    private static TrainOptions Options(TemporaryFolder folder, string name, int ranks = 1)
    {
        string data = File.Exists(folder["data/text.txt"]) ? folder["data/text.txt"] : folder.Write("data/text.txt", s_text);
        Preset preset = Preset.Find("tnl-0.4b-test");
        return TrainOptions.For(preset, [data], folder[name]) with
        {
            Config = preset.Config with { NumHiddenLayers = 2 },
            Recipe = preset.Training with { SequenceLength = 70, Steps = 8, WarmupSteps = 2 },
            World = new WorldOptions(DeviceKind.Cpu, ranks),
        };
    }

    private static double[] Losses(TrainOptions options)
    {
        var listener = new RecordingListener();
        TrainingRun.Run(options, listener);
        return listener.Losses;
    }

    private static JsonNode[] Metrics(TrainOptions options) =>
        [.. File.ReadLines(Path.Combine(options.Output, "metrics.jsonl")).Select(l => JsonNode.Parse(l)!)];

    [Fact]
    public void The_loss_falls_and_every_step_is_recorded()
    {
        using var folder = new TemporaryFolder();
        TrainOptions options = Options(folder, "out");
        options = options with { Recipe = options.Recipe with { Steps = 25, LearningRate = 1e-2 } };
        var listener = new RecordingListener();
        TrainingResult result = TrainingRun.Run(options, listener)!;
        Assert.InRange(listener.Losses[0], 5.3, 5.8);
        Assert.True(listener.Losses[^1] < 0.75 * listener.Losses[0], $"the loss went from {listener.Losses[0]} to {listener.Losses[^1]}");
        Assert.Equal((listener.Losses[0], listener.Losses[^1], 25L, false), (result.FirstLoss, result.LastLoss, result.LastStep, result.Interrupted));
        Assert.Equal(Enumerable.Range(1, 25), Metrics(options).Select(m => (int)m["step"]!));
        Assert.Equal(listener.Losses, Metrics(options).Select(m => (double)m["loss"]!));
        Assert.All(listener.Steps, s => Assert.True(s is { GradientNorm: > 0, TokensPerSecond: > 0, ModelTeraFlops: > 0, PeakMemoryBytes: > 0, Seconds: > 0 }));
    }

    [Theory]
    [InlineData(2)]
    [InlineData(3)]
    [InlineData(4)]
    public void Ranks_do_not_change_the_losses(int ranks)
    {
        using var folder = new TemporaryFolder();
        double[] one = Losses(Options(folder, "one")), many = Losses(Options(folder, "many", ranks));
        Assert.All(one.Zip(many), pair => Assert.Equal(pair.First, pair.Second, 2e-4));
    }

    [Theory]
    [InlineData(4, DType.F32, 1e-5)]
    [InlineData(1, DType.BF16, 1e-2)]
    public void Rounding_does_not_grow_in_the_tiny_preset(int ranks, DType dtype, double tolerance)
    {
        using var folder = new TemporaryFolder();
        Preset preset = Preset.Find("tiny");
        TrainOptions options = TrainOptions.For(preset, [folder.Write("data/words.txt", Words(60000))], folder["exact"]) with { World = new WorldOptions(DeviceKind.Cpu, 1), StopAfter = 20 };
        double[] exact = Losses(options), rounded = Losses(options with { Output = folder["rounded"], World = new WorldOptions(DeviceKind.Cpu, ranks), DType = dtype });
        Assert.Equal(20, exact.Length);
        Assert.All(exact.Zip(rounded), pair => Assert.Equal(pair.First, pair.Second, tolerance));
        TestContext.Current.TestOutputHelper?.WriteLine($"largest difference {exact.Zip(rounded).Max(p => Math.Abs(p.First - p.Second)):g3}, last loss {exact[^1]:f3}");
    }

    /// <summary>Made-up words in no order: text whose loss falls as steeply as prose's, not as a repeated sentence's.</summary>
    private static string Words(int count)
    {
        var random = new Random(1);
        string[] vocabulary = [.. Enumerable.Range(0, 3000).Select(_ => string.Concat(Enumerable.Range(0, random.Next(1, 10)).Select(_ => (char)('a' + random.Next(26) * random.Next(27) / 26))))];
        return string.Join(' ', Enumerable.Range(0, count).Select(_ => vocabulary[(int)(vocabulary.Length * Math.Pow(random.NextDouble(), 3))]));
    }

    [Theory]
    [InlineData(1, DType.F32)]
    [InlineData(2, DType.F32)]
    [InlineData(1, DType.BF16)]
    public void Resuming_is_exact(int ranks, DType dtype)
    {
        using var folder = new TemporaryFolder();
        TrainOptions whole = Options(folder, "whole", ranks) with { DType = dtype }, parts = Options(folder, "parts", ranks) with { DType = dtype };
        double[] expected = Losses(whole);
        double[] first = Losses(parts with { StopAfter = 3 });
        double[] second = Losses(parts with { Resume = true });
        Assert.Equal(expected, first.Concat(second));
        Assert.Equal(expected, Metrics(parts).Select(m => (double)m["loss"]!));
        foreach (string file in (string[])["model.safetensors", "optimizer.safetensors", "config.json"])
            Assert.Equal(File.ReadAllBytes(folder["whole/checkpoint-8/" + file]), File.ReadAllBytes(folder["parts/checkpoint-8/" + file]));
        Assert.True(Directory.Exists(folder["parts/checkpoint-3"]));
    }

    [Fact]
    public void Resuming_drops_the_lines_of_steps_after_the_checkpoint()
    {
        using var folder = new TemporaryFolder();
        TrainOptions options = Options(folder, "out") with { CheckpointEvery = 3, StopAfter = 5 };
        Losses(options);
        Directory.Delete(folder["out/checkpoint-5"], recursive: true); // as after a crash in step 6
        File.AppendAllText(folder["out/metrics.jsonl"], "{\"step\": 6, \"lo");
        double[] resumed = Losses(options with { Resume = true, StopAfter = null });
        Assert.Equal(5, resumed.Length);
        Assert.Equal(Enumerable.Range(1, 8), Metrics(options).Select(m => (int)m["step"]!));
    }

    [Fact]
    public void A_new_run_in_an_old_folder_starts_anew_and_is_what_resume_finds()
    {
        using var folder = new TemporaryFolder();
        TrainOptions options = Options(folder, "out");
        Losses(options);
        Losses(options with { Seed = 5, StopAfter = 2 });
        Assert.Equal([1, 2], Metrics(options).Select(m => (int)m["step"]!));
        var listener = new RecordingListener();
        Assert.Equal(8, TrainingRun.Run(options with { Seed = 5, Resume = true }, listener)!.LastStep);
        Assert.Equal(3, listener.Steps[0].Step);
    }

    [Fact]
    public void An_unfinished_checkpoint_is_ignored()
    {
        using var folder = new TemporaryFolder();
        TrainOptions options = Options(folder, "out") with { StopAfter = 2 };
        Losses(options);
        Directory.CreateDirectory(folder["out/.unfinished-7"]);
        Directory.CreateDirectory(folder["out/checkpoint-9"]); // not ours: nothing in it
        var listener = new RecordingListener();
        TrainingRun.Run(options with { Resume = true, StopAfter = 3 }, listener);
        Assert.Equal(3, Assert.Single(listener.Steps).Step);
        Assert.Equal(["checkpoint-2", "checkpoint-3", "checkpoint-9"], Directory.GetDirectories(options.Output, "checkpoint-*").Select(Path.GetFileName).Order(StringComparer.Ordinal));
    }

    [Fact]
    public void Resuming_at_the_end_does_nothing()
    {
        using var folder = new TemporaryFolder();
        TrainOptions options = Options(folder, "out") with { StopAfter = 2 };
        Losses(options);
        var listener = new RecordingListener();
        TrainingResult result = TrainingRun.Run(options with { Resume = true }, listener)!;
        Assert.Empty(listener.Steps);
        Assert.Equal((2L, null, folder["out/checkpoint-2"]), (result.LastStep, result.LastLoss, result.Checkpoint));
        Assert.Contains(listener.Notes, n => n.StartsWith("nothing to do", StringComparison.Ordinal));
    }

    [Fact]
    public void What_does_not_fit_the_checkpoint_is_one_clear_line()
    {
        using var folder = new TemporaryFolder();
        TrainOptions options = Options(folder, "out");
        Assert.Contains("no checkpoint", Refused(options with { Resume = true }), StringComparison.Ordinal);
        Losses(options with { StopAfter = 1 });
        options = options with { Resume = true };
        Assert.Contains("--seed 0, not 1", Refused(options with { Seed = 1 }), StringComparison.Ordinal);
        Assert.Contains("--batch 2, not 3", Refused(options with { Recipe = options.Recipe with { Batch = 3 } }), StringComparison.Ordinal);
        Assert.Contains("--seq-len 70, not 71", Refused(options with { Recipe = options.Recipe with { SequenceLength = 71 } }), StringComparison.Ordinal);
        Assert.Contains("another model", Refused(options with { Config = options.Config with { OutputGate = false } }), StringComparison.Ordinal);
    }

    private static string Refused(TrainOptions options)
    {
        string message = Assert.Throws<LaspException>(() => TrainingRun.Run(options)).Message;
        Assert.DoesNotContain('\n', message);
        return message;
    }

    [Fact]
    public void Ranks_type_and_options_may_change_on_resume_with_a_note()
    {
        using var folder = new TemporaryFolder();
        TrainOptions options = Options(folder, "out");
        double[] straight = Losses(options with { Output = folder["straight"] });
        Losses(options with { StopAfter = 4 });
        var listener = new RecordingListener();
        TrainingRun.Run(options with { Resume = true, World = new WorldOptions(DeviceKind.Cpu, 2), DType = DType.BF16, Recipe = options.Recipe with { WeightDecay = 0 } }, listener);
        Assert.All(straight[4..].Zip(listener.Losses), pair => Assert.Equal(pair.First, pair.Second, 0.05));
        Assert.Contains(listener.Notes, n => n.Contains("on 1 ranks, this run has 2", StringComparison.Ordinal));
        Assert.Contains(listener.Notes, n => n.Contains("F32, this run computes in BF16", StringComparison.Ordinal));
        Assert.Contains(listener.Notes, n => n.Contains("options differ", StringComparison.Ordinal));
    }

    [Theory]
    [InlineData(1)]
    [InlineData(3)]
    public void Cancelling_ends_after_a_step_with_a_checkpoint(int ranks)
    {
        using var folder = new TemporaryFolder();
        using var source = new CancellationTokenSource();
        TrainOptions options = Options(folder, "out", ranks);
        var listener = new RecordingListener(s => { if (s.Step == 3) source.Cancel(); });
        TrainingResult result = TrainingRun.Run(options, listener, source.Token)!;
        Assert.True(result.Interrupted);
        Assert.InRange(result.LastStep, 3, 5);
        Assert.Equal(folder["out/checkpoint-" + result.LastStep], result.Checkpoint);
        Assert.Equal(result.LastStep, Metrics(options).Length);
        Assert.Equal(8 - result.LastStep, Losses(options with { Resume = true }).Length);
    }

    [Theory]
    [InlineData(1)]
    [InlineData(2)]
    public void Memory_is_flat_over_the_steps(int ranks)
    {
        using var folder = new TemporaryFolder();
        TrainOptions options = Options(folder, "out", ranks);
        TextCorpus corpus = TextCorpus.Read(options.Data, new ByteTokenizer());
        var bytes = new List<long>();
        var allocations = new List<long>();
        World.Run(options.World, rank =>
        {
            var listener = new RecordingListener(_ =>
            {
                rank.World.Barrier(); // the other rank has read what this one staged for it
                if (rank.Rank != 0) return;
                bytes.Add(rank.Device.Memory.Current);
                allocations.Add(rank.Device.Memory.LiveCount);
            });
            using var trainer = new Trainer(options, corpus.Tokens, rank, listener);
            trainer.Run();
        });
        Assert.Equal(8, bytes.Count);
        Assert.Single(bytes.Skip(1).Distinct());
        Assert.Single(allocations.Skip(1).Distinct());
    }

    [Fact]
    public void A_text_shorter_than_a_batch_is_repeated_with_a_note()
    {
        using var folder = new TemporaryFolder();
        TrainOptions options = Options(folder, "out") with { Data = [folder.Write("short.txt", "abc")], StopAfter = 1 };
        var listener = new RecordingListener();
        TrainingRun.Run(options, listener);
        Assert.Contains(listener.Notes, n => n.Contains("it is repeated", StringComparison.Ordinal));
        Assert.True(double.IsFinite(listener.Losses[0]));
    }

    [Fact]
    public void A_loss_that_is_no_number_ends_the_run_in_one_line_on_any_rank_count()
    {
        using var folder = new TemporaryFolder();
        TrainOptions options = Options(folder, "out", ranks: 2);
        options = options with { Recipe = options.Recipe with { LearningRate = 1e30, ClipNorm = 0 } };
        Assert.Contains("learning rate", Refused(options), StringComparison.Ordinal);
    }

    [Fact]
    public void Options_that_no_run_can_have_are_refused()
    {
        using var folder = new TemporaryFolder();
        TrainOptions options = Options(folder, "out");
        Assert.Contains("batch is 0", Refused(options with { Recipe = options.Recipe with { Batch = 0 } }), StringComparison.Ordinal);
        Assert.Contains("sequence length is 0", Refused(options with { Recipe = options.Recipe with { SequenceLength = 0 } }), StringComparison.Ordinal);
        Assert.Contains("tokens in a step is 4000000000", Refused(options with { Recipe = options.Recipe with { Batch = 2, SequenceLength = 2_000_000_000 } }), StringComparison.Ordinal);
        Assert.Contains("learning rate is -1", Refused(options with { Recipe = options.Recipe with { LearningRate = -1 } }), StringComparison.Ordinal);
        Assert.Contains("step 0", Refused(options with { StopAfter = 0 }), StringComparison.Ordinal);
        Assert.Contains("vocab_size is 100", Refused(options with { Config = options.Config with { VocabSize = 100 } }), StringComparison.Ordinal);
        Assert.Contains("tokenizer 'bpe'", Refused(options with { Tokenizer = "bpe" }), StringComparison.Ordinal);
        Assert.Contains("a batch of 2 cannot be divided among 3 data-parallel groups", Refused(options with { DataParallel = 3 }), StringComparison.Ordinal);
        Assert.Contains("the world has 3", Refused(options with { DataParallel = 2, World = new WorldOptions(DeviceKind.Cpu, 3) }), StringComparison.Ordinal);
        LinearLlamaConfig masked = Preset.Find("roberta-tiny").Config;
        Assert.Contains("give mask_token_id, such as 256", Refused(options with { Config = masked with { MaskTokenId = null } }), StringComparison.Ordinal);
        Assert.Contains("mask_token_id 65 is a token of 'bytes'", Refused(options with { Config = masked with { MaskTokenId = 65 } }), StringComparison.Ordinal);
        Assert.Contains("strategy lasp1 is causal", Refused(options with { Config = masked, Strategy = LaspNative.Collectives.SequenceParallel.Parse("lasp1") }), StringComparison.Ordinal);
    }

    [Theory]
    [InlineData(0)]
    [InlineData(1)]
    public void What_came_before_a_failure_is_recorded(int lag)
    {
        using var folder = new TemporaryFolder();
        TrainOptions options = Options(folder, "out");
        double[] losses = Losses(Options(folder, "whole"));
        var listener = new RecordingListener();
        TextCorpus corpus = TextCorpus.Read(options.Data, new ByteTokenizer());
        var failure = new LaspException("no memory for step 4");
        Assert.Same(failure, Assert.Throws<LaspException>(() => World.Run(options.World, rank =>
        {
            using var trainer = new Trainer(options, corpus.Tokens, rank, listener, new FailingProbe(4, failure), lag);
            trainer.Run();
        })));
        Assert.Equal([1, 2, 3], listener.Steps.Select(s => s.Step));
        Assert.Equal(losses[..3], listener.Losses);
        Assert.Equal([1, 2, 3], Metrics(options).Select(m => (int)m["step"]!));
    }

    [Theory]
    [InlineData(typeof(IOException))]
    [InlineData(typeof(FormatException))]
    public void A_failure_is_not_hidden_by_one_to_tell_what_came_before(Type hiding)
    {
        using var folder = new TemporaryFolder();
        TrainOptions options = Options(folder, "out");
        var listener = new RecordingListener(record => { if (record.Step == 3) throw (Exception)Activator.CreateInstance(hiding)!; });
        TextCorpus corpus = TextCorpus.Read(options.Data, new ByteTokenizer());
        var failure = new LaspException("no memory for step 4");
        Assert.Same(failure, Assert.ThrowsAny<Exception>(() => World.Run(options.World, rank =>
        {
            using var trainer = new Trainer(options, corpus.Tokens, rank, listener, new FailingProbe(4, failure), lag: 1);
            trainer.Run();
        })));
        Assert.Equal([1, 2, 3], listener.Steps.Select(s => s.Step));
    }

    private sealed class FailingProbe(long at, Exception failure) : IStepProbe
    {
        public void Before(long step)
        {
            if (step == at) throw failure;
        }
    }
}
