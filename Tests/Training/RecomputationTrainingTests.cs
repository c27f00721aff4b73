using LaspNative.Autograd;
using LaspNative.Collectives;
using LaspNative.Model;
using LaspNative.Runtime;
using LaspNative.Tests.Model;
using Xunit;

namespace LaspNative.Tests.Training;

/// <summary>Whole runs that compute blocks again: the same losses digit by digit, also when a run is resumed with another choice.</summary>
public class RecomputationTrainingTests
{
    private static readonly string s_text = string.Concat(Enumerable.Range(0, 400).Select(i => $"{i} plus {i % 7} is {i + i % 7}.\n"));

    private static TrainOptions Options(TemporaryFolder folder, string name, Recomputation recomputation, int dp = 1, int sp = 1)
    {
        string data = File.Exists(folder["data/text.txt"]) ? folder["data/text.txt"] : folder.Write("data/text.txt", s_text);
        Preset preset = Preset.Find("linear-llama3-1b-hybrid4-test");
        return TrainOptions.For(preset, [data], folder[name]) with
        {
            Recipe = preset.Training with { SequenceLength = 70, Batch = 4, Steps = 6, WarmupSteps = 2 },
            World = new WorldOptions(DeviceKind.Cpu, dp * sp),
            DataParallel = dp,
            Recomputation = recomputation,
        };
    }

    private static RecordingListener Train(TrainOptions options)
    {
        var listener = new RecordingListener();
        TrainingRun.Run(options, listener);
        return listener;
    }

    [Theory]
    [InlineData(1, 1)]
    [InlineData(1, 2)]
    [InlineData(2, 2)]
    public void Losses_and_norms_are_the_same_bits(int dp, int sp)
    {
        using var folder = new TemporaryFolder();
        RecordingListener none = Train(Options(folder, "none", Recomputation.None, dp, sp)), block = Train(Options(folder, "block", new Recomputation { EveryBlock = 1, KeepStates = true, DeviceBytes = 10000 }, dp, sp));
        Assert.Equal(none.Losses, block.Losses);
        Assert.Equal(none.Steps.Select(s => s.GradientNorm), block.Steps.Select(s => s.GradientNorm));
    }

    /// <summary>On a GPU, where inputs leave for pinned memory and come back while it works: none kept there, some, and as many as a limit leaves, which one line tells.</summary>
    [Theory]
    [InlineData(1)]
    [InlineData(2)]
    [Trait("Category", "Gpu")]
    public void On_a_GPU_losses_and_norms_are_the_same_bits_wherever_inputs_wait(int ranks)
    {
        Gpu.Require();
        using var folder = new TemporaryFolder();
        long input = 4 * 70 * 64 * sizeof(float) / ranks; // of a rank
        RecordingListener Run(string name, Recomputation recomputation) =>
            Train(Options(folder, name, recomputation) with { World = new WorldOptions(DeviceKind.Cuda, ranks, VirtualRanks: ranks > 1) });
        RecordingListener none = Run("none", Recomputation.None), device = Run("device", new Recomputation { EveryBlock = 1 });
        RecordingListener away = Run("away", new Recomputation { EveryBlock = 1, DeviceBytes = 0 }), some = Run("some", new Recomputation { EveryBlock = 1, DeviceBytes = 2 * input });
        RecordingListener few = Run("few", new Recomputation { EveryBlock = 1, DeviceBytes = 0, HostBytes = 2 * CudaHostMemory.DefaultChunkBytes });
        foreach (RecordingListener other in new[] { device, away, some, few })
        {
            Assert.Equal(none.Losses, other.Losses);
            Assert.Equal(none.Steps.Select(s => s.GradientNorm), other.Steps.Select(s => s.GradientNorm));
        }
        Assert.Contains(few.Notes, n => n.Contains("as --pinned-memory allows no more: 1 of the blocks' inputs stay on the GPU", StringComparison.Ordinal));
        Assert.DoesNotContain(away.Notes.Concat(some.Notes), n => n.Contains("pinned", StringComparison.Ordinal));
    }

    [Fact]
    public void Another_choice_on_resume_goes_on_digit_by_digit_with_a_note()
    {
        using var folder = new TemporaryFolder();
        double[] straight = Train(Options(folder, "straight", Recomputation.None)).Losses;
        TrainOptions parts = Options(folder, "parts", Recomputation.None);
        Train(parts with { StopAfter = 3 });
        RecordingListener resumed = Train(parts with { Resume = true, Recomputation = new Recomputation { EveryBlock = 2 } });
        Assert.Equal(straight[3..], resumed.Losses);
        Assert.Contains("the checkpoint was trained with checkpointing none, this run with checkpointing block:2", resumed.Notes);
    }

    [Fact]
    public void Feed_forward_chunks_change_losses_by_rounding_only()
    {
        using var folder = new TemporaryFolder();
        double[] whole = Train(Options(folder, "whole", Recomputation.None)).Losses;
        double[] chunked = Train(Options(folder, "chunked", new Recomputation { EveryBlock = 1, MlpChunk = 33 }, sp: 2)).Losses;
        Assert.All(whole.Zip(chunked), pair => Assert.Equal(pair.First, pair.Second, 2e-4));
    }

    [Fact]
    public void Choices_that_cannot_be_are_refused()
    {
        Assert.Contains("add --checkpointing block", Refused(new Recomputation { KeepStates = true }), StringComparison.Ordinal);
        Assert.Contains("every -1th block", Refused(new Recomputation { EveryBlock = -1 }), StringComparison.Ordinal);
        Assert.Contains("-1 bytes of block inputs", Refused(new Recomputation { EveryBlock = 1, DeviceBytes = -1 }), StringComparison.Ordinal);
        Assert.Contains("chunk of -5 tokens", Refused(new Recomputation { MlpChunk = -5 }), StringComparison.Ordinal);
    }

    private static string Refused(Recomputation recomputation)
    {
        using var folder = new TemporaryFolder();
        string message = Assert.Throws<LaspException>(() => TrainingRun.Run(Options(folder, "out", recomputation))).Message;
        Assert.DoesNotContain('\n', message);
        return message;
    }

    [Theory]
    [InlineData("none", 0)]
    [InlineData("selective", 0)]
    [InlineData("block", 1)]
    [InlineData("block:1", 1)]
    [InlineData("block:12", 12)]
    [InlineData("block:0", null)]
    [InlineData("block:-2", null)]
    [InlineData("block:", null)]
    [InlineData("Block", null)]
    [InlineData("", null)]
    public void The_command_line_s_words_are_read(string text, int? every)
    {
        Assert.Equal(every, Recomputation.Parse(text)?.EveryBlock);
        if (every is { } k) Assert.Equal(text == "block:1" ? "block" : text, (Recomputation.Parse(text)! with { EveryBlock = k }).Kind);
    }
}
