using LaspNative.Collectives;
using LaspNative.Model;
using LaspNative.Runtime;
using LaspNative.Tests.Model;
using Xunit;

namespace LaspNative.Tests.Training;

/// <summary>Whole runs on grids of CPU ranks: the same losses for any DP x SP and any strategy, of hybrids and of masked language models too.</summary>
public class ParallelTrainingTests
{
    private static readonly string s_text = string.Concat(Enumerable.Range(0, 400).Select(i => $"{i} plus {i % 7} is {i + i % 7}.\n"));

    private static TrainOptions Options(TemporaryFolder folder, string preset, int dp, int sp, string? name = null)
    {
        string data = File.Exists(folder["data/text.txt"]) ? folder["data/text.txt"] : folder.Write("data/text.txt", s_text);
        Preset model = Preset.Find(preset);
        return TrainOptions.For(model, [data], folder[name ?? $"{dp}x{sp}"]) with
        {
            Recipe = model.Training with { SequenceLength = 70, Batch = 4, Steps = 6, WarmupSteps = 2 },
            World = new WorldOptions(DeviceKind.Cpu, dp * sp),
            DataParallel = dp,
        };
    }

    private static double[] Losses(TrainOptions options)
    {
        var listener = new RecordingListener();
        TrainingRun.Run(options, listener);
        return listener.Losses;
    }

    private static void AssertSame(double[] expected, double[] actual) => Assert.All(expected.Zip(actual, (e, a) => Math.Abs(e - a)), difference => Assert.InRange(difference, 0, 2e-4));

    [Theory]
    [InlineData("linear-llama3-1b-hybrid4-test", 1, 4)]
    [InlineData("linear-llama3-1b-hybrid4-test", 2, 2)]
    [InlineData("linear-llama3-1b-hybrid4-test", 4, 1)]
    [InlineData("tnl-0.4b-test", 2, 2)]
    [InlineData("roberta-tiny", 1, 3)]
    [InlineData("roberta-tiny", 2, 2)]
    public void Any_grid_of_ranks_trains_as_one_rank_does(string preset, int dp, int sp)
    {
        using var folder = new TemporaryFolder();
        AssertSame(Losses(Options(folder, preset, 1, 1)), Losses(Options(folder, preset, dp, sp)));
    }

    [Theory]
    [InlineData("lasp1", "ring")]
    [InlineData("zeco", "allgather-balanced")]
    [InlineData("ring", "zigzag")]
    [InlineData("ulysses", "ulysses")]
    public void Every_strategy_trains_the_same(string strategy, string softmax)
    {
        using var folder = new TemporaryFolder();
        TrainOptions options = Options(folder, "linear-llama3-1b-hybrid4-test", 1, 2) with { Strategy = LaspNative.Collectives.SequenceParallel.Parse(strategy), SoftmaxStrategy = LaspNative.Collectives.SoftmaxParallel.Parse(softmax) };
        AssertSame(Losses(Options(folder, "linear-llama3-1b-hybrid4-test", 1, 1)), Losses(options));
    }

    [Fact]
    public void A_masked_language_model_learns()
    {
        using var folder = new TemporaryFolder();
        TrainOptions options = Options(folder, "roberta-tiny", 1, 2);
        double[] losses = Losses(options with { Recipe = options.Recipe with { Steps = 40 } });
        Assert.InRange(losses[0], 4.8, 5.8);
        Assert.True(losses[^5..].Average() < 0.75 * losses[0], $"the loss went from {losses[0]} to {losses[^1]}");
    }

    [Fact]
    public void Resuming_a_grid_is_exact_and_another_grid_goes_on_with_a_note()
    {
        using var folder = new TemporaryFolder();
        TrainOptions whole = Options(folder, "roberta-tiny", 2, 2, "whole"), parts = whole with { Output = folder["parts"] };
        double[] expected = Losses(whole);
        Assert.Equal(expected[..3], Losses(parts with { StopAfter = 3 }));
        Assert.Equal(expected[3..5], Losses(parts with { Resume = true, StopAfter = 5 }));
        var listener = new RecordingListener();
        TrainingRun.Run(parts with { Resume = true, DataParallel = 4 }, listener);
        Assert.Equal(expected[5], listener.Losses[0], 2e-4);
        Assert.Contains(listener.Notes, n => n.Contains("by 2 data-parallel groups, this run has 4", StringComparison.Ordinal));
    }
}
