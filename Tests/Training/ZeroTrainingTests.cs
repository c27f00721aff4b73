using LaspNative.Collectives;
using LaspNative.Model;
using LaspNative.Runtime;
using LaspNative.Tests.Model;
using Xunit;

namespace LaspNative.Tests.Training;

/// <summary>Whole runs with every ZeRO stage on grids of CPU ranks: the losses of plain data parallelism and of one rank, and checkpoints that do not tell the stages apart.</summary>
public class ZeroTrainingTests
{
    private static readonly string s_text = string.Concat(Enumerable.Range(0, 400).Select(i => $"{i} plus {i % 7} is {i + i % 7}.\n"));

    private const string Hybrid = "linear-llama3-1b-hybrid4-test";

    internal static TrainOptions Options(TemporaryFolder folder, int dp, int sp, ZeroStage zero, double clip, int steps = 30, string preset = Hybrid)
    {
        string data = File.Exists(folder["data/text.txt"]) ? folder["data/text.txt"] : folder.Write("data/text.txt", s_text);
        Preset model = Preset.Find(preset);
        return TrainOptions.For(model, [data], folder[$"{dp}x{sp}-{zero}"]) with
        {
            Recipe = model.Training with { SequenceLength = 70, Batch = 4, Steps = steps, WarmupSteps = 2, ClipNorm = clip },
            World = new WorldOptions(DeviceKind.Cpu, dp * sp),
            DataParallel = dp,
            Zero = zero,
            BucketBytes = 64 << 10,
        };
    }

    internal static StepRecord[] Steps(TrainOptions options)
    {
        var listener = new RecordingListener();
        TrainingRun.Run(options, listener);
        return [.. listener.Steps];
    }

    internal static double LargestDifference(StepRecord[] expected, StepRecord[] actual)
    {
        Assert.Equal(expected.Length, actual.Length);
        return expected.Zip(actual, (e, a) => Math.Abs(e.Loss - a.Loss)).Max();
    }

    [Theory]
    [InlineData(1, 4)]
    [InlineData(2, 2)]
    [InlineData(4, 1)]
    public void Thirty_steps_of_every_stage_are_those_of_one_rank_and_of_plain_data_parallelism(int dp, int sp)
    {
        using var folder = new TemporaryFolder();
        const double Clip = 0.5;
        StepRecord[] one = Steps(Options(folder, 1, 1, ZeroStage.None, Clip));
        Assert.True(one.Count(s => s.GradientNorm > Clip) > 10, "clipping has little to do");
        Assert.True(one[^1].Loss < 0.9 * one[0].Loss, $"the loss went from {one[0].Loss} to {one[^1].Loss}");
        StepRecord[] plain = Steps(Options(folder, dp, sp, ZeroStage.None, Clip));
        var differences = new List<string>();
        foreach (ZeroStage zero in Enum.GetValues<ZeroStage>())
        {
            StepRecord[] steps = zero == ZeroStage.None ? plain : Steps(Options(folder, dp, sp, zero, Clip));
            double toOne = LargestDifference(one, steps), toPlain = LargestDifference(plain, steps);
            differences.Add($"{zero}: {toOne:g2} from one rank, {toPlain:g2} from stage 0");
            Assert.InRange(toOne, 0, 2e-6);
            Assert.InRange(toPlain, 0, 2e-6); // the norm is summed in another order, so the factor of clipping differs in its last bits
        }
        TestContext.Current.TestOutputHelper?.WriteLine(string.Join("; ", differences));
    }

    [Theory]
    [InlineData(Hybrid, 2, 2, DType.F32)]
    [InlineData(Hybrid, 4, 1, DType.F32)]
    [InlineData(Hybrid, 2, 2, DType.BF16)]
    [InlineData(Hybrid, 2, 2, DType.BF16, DType.BF16)]
    [InlineData("tnl-0.4b-test", 1, 3, DType.F32)]
    [InlineData("roberta-tiny", 2, 1, DType.F32)]
    public void Without_clipping_every_stage_gives_the_same_bits_in_losses_and_checkpoints(string preset, int dp, int sp, DType dtype, DType? gradient = null)
    {
        using var folder = new TemporaryFolder();
        TrainOptions plain = Options(folder, dp, sp, ZeroStage.None, clip: 0, steps: 6, preset) with { DType = dtype, GradientDType = gradient };
        double[] expected = [.. Steps(plain).Select(s => s.Loss)];
        foreach (ZeroStage zero in (ZeroStage[])[ZeroStage.OptimizerStates, ZeroStage.Gradients, ZeroStage.Parameters])
        {
            TrainOptions options = plain with { Zero = zero, Output = folder[zero.ToString()] };
            Assert.Equal(expected, Steps(options).Select(s => s.Loss));
            foreach (string file in (string[])["model.safetensors", "optimizer.safetensors"])
                Assert.Equal(File.ReadAllBytes(Path.Combine(plain.Output, "checkpoint-6", file)), File.ReadAllBytes(Path.Combine(options.Output, "checkpoint-6", file)));
        }
    }

    [Fact]
    public void Gradients_in_bf16_train_as_those_in_fp32_do()
    {
        using var folder = new TemporaryFolder();
        TrainOptions options = Options(folder, 2, 1, ZeroStage.None, clip: 0.5, steps: 12) with { DType = DType.BF16 };
        StepRecord[] exact = Steps(options), rounded = Steps(options with { GradientDType = DType.BF16, Output = folder["bf16"] });
        Assert.InRange(LargestDifference(exact, rounded), 1e-9, 0.02);
        Assert.True(rounded[^1].Loss < 0.95 * rounded[0].Loss, $"the loss went from {rounded[0].Loss} to {rounded[^1].Loss}");
        Assert.Contains("gradients of a model in F32 cannot be collected in BF16; leave out --gradient-dtype, or train in BF16 too", Assert.Throws<LaspException>(() => (options with { DType = DType.F32, GradientDType = DType.BF16 }).Validate()).Message, StringComparison.Ordinal);
    }

    [Fact]
    public void Blocks_that_are_computed_twice_and_in_chunks_find_their_parameters_in_every_stage()
    {
        using var folder = new TemporaryFolder();
        TrainOptions plain = Options(folder, 2, 2, ZeroStage.None, clip: 0, steps: 4) with { Recomputation = new Recomputation { EveryBlock = 2, KeepStates = true, MlpChunk = 8 } };
        double[] expected = [.. Steps(plain).Select(s => s.Loss)];
        foreach (ZeroStage zero in (ZeroStage[])[ZeroStage.OptimizerStates, ZeroStage.Gradients, ZeroStage.Parameters])
            Assert.Equal(expected, Steps(plain with { Zero = zero, Output = folder[zero.ToString()] }).Select(s => s.Loss));
        double[] kept = [.. Steps(plain with { Recomputation = Recomputation.None, Output = folder["kept"] }).Select(s => s.Loss)];
        Assert.All(expected.Zip(kept, (e, k) => Math.Abs(e - k)), difference => Assert.InRange(difference, 0, 2e-6));
    }

    [Theory]
    [InlineData(DType.F32)]
    [InlineData(DType.BF16)]
    public void A_run_goes_on_bit_by_bit_in_another_stage_and_within_rounding_on_another_grid(DType dtype)
    {
        using var folder = new TemporaryFolder();
        TrainOptions options = Options(folder, 2, 2, ZeroStage.None, clip: 0, steps: 10) with { DType = dtype };
        double[] expected = [.. Steps(options).Select(s => s.Loss)];
        options = options with { Output = folder["parts"], Resume = true };
        Assert.Equal(expected[..2], Steps(options with { Zero = ZeroStage.Parameters, StopAfter = 2, Resume = false }).Select(s => s.Loss));
        Assert.Equal(expected[2..4], Steps(options with { Zero = ZeroStage.OptimizerStates, StopAfter = 4 }).Select(s => s.Loss));
        Assert.Equal(expected[4..6], Steps(options with { Zero = ZeroStage.Parameters, StopAfter = 6 }).Select(s => s.Loss));
        var listener = new RecordingListener();
        TrainingRun.Run(options with { Zero = ZeroStage.Gradients, StopAfter = 8 }, listener);
        Assert.Equal(expected[6..8], listener.Losses);
        Assert.Contains("the checkpoint was trained with --zero 3, this run uses --zero 2", listener.Notes);
        StepRecord[] elsewhere = Steps(options with { Zero = ZeroStage.Parameters, DataParallel = 1, World = new WorldOptions(DeviceKind.Cpu, 3), StopAfter = 9 });
        Assert.Equal(expected[8], elsewhere[0].Loss, dtype == DType.F32 ? 1e-5 : 2e-2);
        Assert.Equal(expected[9], Steps(options with { World = new WorldOptions(DeviceKind.Cpu, 1), DataParallel = 1 })[0].Loss, dtype == DType.F32 ? 1e-5 : 2e-2);
    }

    [Fact]
    public void A_stage_that_does_not_exist_is_refused()
    {
        using var folder = new TemporaryFolder();
        TrainOptions options = Options(folder, 1, 1, (ZeroStage)4, 1);
        Assert.Equal("there is no ZeRO stage 4; use 0, 1, 2 or 3", Assert.Throws<LaspException>(() => TrainingRun.Run(options)).Message);
        Assert.Contains("a gradient bucket of 0 bytes", Assert.Throws<LaspException>(() => TrainingRun.Run(options with { Zero = ZeroStage.None, BucketBytes = 0 })).Message, StringComparison.Ordinal);
    }
}
