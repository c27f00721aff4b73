using LaspNative.Collectives;
using LaspNative.Model;
using LaspNative.Runtime;
using LaspNative.Runtime.Cuda;
using LaspNative.Tests.Model;
using Xunit;

namespace LaspNative.Tests.Training;

/// <summary>What a training step costs the host of a GPU: memory, garbage, waits. Alone in the process, because collections are counted for all of it.</summary>
[Collection(nameof(RunsAlone))]
[Trait("Category", "Gpu")]
public class StepGpuTests
{
    private const int Warm = 20;

    /// <summary>What stands on a rank's books whenever a step begins.</summary>
    private readonly record struct Sample(long ManagedBytes, long HostWaits, long Bytes, long Allocations, long Reserved, long Launches, int FullCollections);

    private sealed class Sampler(CudaDevice device, int steps) : IStepProbe
    {
        private readonly List<Sample> _samples = new(steps);

        public IReadOnlyList<Sample> Samples => _samples;

        public void Before(long step) => _samples.Add(new Sample(
            GC.GetAllocatedBytesForCurrentThread(), device.HostWaits, device.Memory.Current, device.Memory.LiveCount, device.ReservedBytes, device.Kernels.LaunchCount, GC.CollectionCount(2)));

        /// <summary>What one warm step after the other adds.</summary>
        public IEnumerable<long> PerStep(Func<Sample, long> of) => _samples.Skip(Warm).Zip(_samples.Skip(Warm + 1), (a, b) => of(b) - of(a));
    }

    private static TrainOptions Options(TemporaryFolder folder, string name, int steps, WorldOptions? world = null)
    {
        var random = new Random(5);
        string text = string.Concat(Enumerable.Range(0, 20_000).Select(_ => (char)('a' + (random.Next(26) * random.Next(27) / 26))));
        Preset tiny = Preset.Find("tiny");
        return TrainOptions.For(tiny, [folder.Write("text.txt", text)], folder[name]) with
        {
            World = world ?? new WorldOptions(DeviceKind.Cuda, 1),
            DType = DType.BF16,
            Recipe = tiny.Training with { Steps = steps, WarmupSteps = 10 },
        };
    }

    private static (RecordingListener Listener, Sampler Sampler) Train(TrainOptions options)
    {
        TextCorpus corpus = TextCorpus.Read(options.Data, new ByteTokenizer());
        var listener = new RecordingListener();
        Sampler? sampler = null;
        World.Run(options.World, rank =>
        {
            var own = new Sampler((CudaDevice)rank.Device, options.Recipe.Steps);
            using var trainer = new Trainer(options, corpus.Tokens, rank, rank.Rank == 0 ? listener : null, own);
            trainer.Run();
            if (rank.Rank == 0) sampler = own;
        });
        return (listener, sampler!);
    }

    [Fact]
    public void A_thousand_steps_leave_no_trace_and_repeat_bit_for_bit()
    {
        Gpu.Require();
        using var folder = new TemporaryFolder();
        TrainOptions options = Options(folder, "out", steps: 1000);
        (RecordingListener listener, Sampler sampler) = Train(options);
        double[] losses = listener.Losses, seconds = [.. listener.Steps.Skip(Warm).Select(s => s.Seconds).Order()];
        Assert.Equal(1000, losses.Length);
        Assert.InRange(losses[^1], 0, losses[0] - 1);
        Assert.InRange(seconds[0], seconds[seconds.Length / 2] / 5, 1); // also of the last step, whose numbers are read right after those of the one before
        Assert.InRange(sampler.PerStep(s => s.ManagedBytes).Max(), 1, 256 << 10);
        Assert.All(sampler.PerStep(s => s.HostWaits), waits => Assert.Equal(1, waits)); // for the numbers of the step before
        Assert.All(sampler.PerStep(s => s.FullCollections), collections => Assert.Equal(0, collections));
        Assert.Single(sampler.PerStep(s => s.Launches).Distinct());
        Assert.Single(sampler.Samples.Skip(Warm).Select(s => (s.Bytes, s.Allocations, s.Reserved)).Distinct());
        Assert.Equal(losses, Train(options with { LeavesNothing = true }).Listener.Losses);
    }

    [Fact]
    public void Ranks_that_share_a_gpu_wait_for_it_once_a_step()
    {
        Gpu.Require();
        using var folder = new TemporaryFolder();
        TrainOptions options = Options(folder, "out", steps: 40, new WorldOptions(DeviceKind.Cuda, 2, VirtualRanks: true)) with { LeavesNothing = true };
        Assert.All(Train(options).Sampler.PerStep(s => s.HostWaits), waits => Assert.Equal(1, waits));
        Assert.All(Train(options with { DataParallel = 2, Zero = ZeroStage.Gradients }).Sampler.PerStep(s => s.HostWaits), waits => Assert.Equal(1, waits));
    }

    [Theory]
    [InlineData(1)]
    [InlineData(2)]
    public void A_run_in_parts_is_the_whole_run(int ranks)
    {
        Gpu.Require();
        using var folder = new TemporaryFolder();
        TrainOptions whole = Options(folder, "whole", steps: 12, new WorldOptions(DeviceKind.Cuda, ranks, VirtualRanks: ranks > 1)), parts = whole with { Output = folder["parts"] };
        var all = new RecordingListener();
        TrainingRun.Run(whole, all);
        using var source = new CancellationTokenSource();
        var first = new RecordingListener(s => { if (s.Step == 4) source.Cancel(); });
        TrainingResult interrupted = TrainingRun.Run(parts with { CheckpointEvery = 3 }, first, source.Token)!;
        Assert.True(interrupted.Interrupted);
        Assert.InRange(interrupted.LastStep, 5, 8); // the step that was queued already, and those that pass until all ranks know
        Assert.Equal(interrupted.LastStep, first.Steps.Count);
        var second = new RecordingListener();
        TrainingRun.Run(parts with { Resume = true }, second);
        Assert.Equal(all.Losses, first.Losses.Concat(second.Losses));
        Assert.Equal(Enumerable.Range(1, 12), first.Steps.Concat(second.Steps).Select(s => (int)s.Step));
        foreach (string file in (string[])["model.safetensors", "optimizer.safetensors"])
            Assert.Equal(File.ReadAllBytes(folder["whole/checkpoint-12/" + file]), File.ReadAllBytes(folder["parts/checkpoint-12/" + file]));
    }

    private sealed class Glutton(Device device, long at) : IStepProbe
    {
        public void Before(long step)
        {
            if (step == at) Tensor.Empty([1L << 48], DType.F32, device).Dispose();
        }
    }

    [Fact]
    public void The_step_before_one_that_finds_no_memory_is_recorded()
    {
        Gpu.Require();
        using var folder = new TemporaryFolder();
        TrainOptions options = Options(folder, "out", steps: 12) with { LeavesNothing = true };
        TextCorpus corpus = TextCorpus.Read(options.Data, new ByteTokenizer());
        var listener = new RecordingListener();
        Assert.ThrowsAny<Exception>(() => World.Run(options.World, rank =>
        {
            using var trainer = new Trainer(options, corpus.Tokens, rank, listener, new Glutton(rank.Device, 6));
            trainer.Run();
        }));
        Assert.Equal([1, 2, 3, 4, 5], listener.Steps.Select(s => s.Step));
    }

    [Theory]
    [InlineData(1)]
    [InlineData(2)]
    public void A_loss_that_is_no_number_ends_the_run_before_a_checkpoint_sees_it(int ranks)
    {
        Gpu.Require();
        using var folder = new TemporaryFolder();
        TrainOptions options = Options(folder, "out", steps: 40, new WorldOptions(DeviceKind.Cuda, ranks, VirtualRanks: ranks > 1)) with { CheckpointEvery = 1 };
        options = options with { Recipe = options.Recipe with { LearningRate = 1e30, WarmupSteps = 0, ClipNorm = 0 } };
        var listener = new RecordingListener();
        string message = Assert.Throws<LaspException>(() => TrainingRun.Run(options, listener)).Message;
        Assert.Contains($"at step {listener.Steps.Count + 1}; lower the learning rate", message, StringComparison.Ordinal);
        Assert.All(listener.Losses, loss => Assert.True(double.IsFinite(loss)));
        Assert.Equal(listener.Steps.Count, Directory.GetDirectories(options.Output, "checkpoint-*").Length);
    }
}

/// <summary>Tests that count what belongs to the whole process.</summary>
[CollectionDefinition(nameof(RunsAlone), DisableParallelization = true)]
public sealed class RunsAlone;
