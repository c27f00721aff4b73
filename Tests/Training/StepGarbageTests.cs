using LaspNative.Collectives;
using LaspNative.Model;
using LaspNative.Runtime;
using LaspNative.Tests.Model;
using Xunit;

namespace LaspNative.Tests.Training;

/// <summary>
/// The managed bytes of a training step depend on the number of layers and parameters, not on their widths: models of Linear-Llama3-1B's sixteen layers, narrow, stay within what the whole model may take.
/// </summary>
public class StepGarbageTests
{
    private const int Steps = 60;
    private const int Warm = 30;

    /// <summary>Most managed bytes per step and rank.</summary>
    private const long Bound = 256 << 10;

    private sealed class Sampler : IStepProbe
    {
        private readonly List<long> _bytes = new(Steps);

        public void Before(long step) => _bytes.Add(GC.GetAllocatedBytesForCurrentThread());

        public long MostInOneStep => _bytes.Skip(Warm).Zip(_bytes.Skip(Warm + 1), (a, b) => b - a).Max();
    }

    /// <summary>On the CPU the closures of the kernels' loops are counted as well.</summary>
    [Theory]
    [InlineData("linear-llama3-1b", 1)]
    [InlineData("linear-llama3-1b", 2)]
    [InlineData("linear-llama3-1b-hybrid4", 1)]
    [InlineData("linear-llama3-1b-hybrid4", 2)]
    public void Sixteen_layers_stay_within_the_bound(string preset, int ranks) => Check(preset, new WorldOptions(DeviceKind.Cpu, ranks), sequence: 32 * ranks);

    /// <summary>Buckets so small that each matrix has one to itself, as the whole model's have. What a message between CPU ranks takes is the same in all stages.</summary>
    [Theory]
    [InlineData(ZeroStage.OptimizerStates)]
    [InlineData(ZeroStage.Gradients)]
    [InlineData(ZeroStage.Parameters)]
    public void Dividing_states_takes_little_more(ZeroStage stage)
    {
        long undivided = MostInOneStep(ZeroStage.None);
        Assert.InRange(MostInOneStep(stage), undivided / 2, undivided + (96 << 10));

        static long MostInOneStep(ZeroStage stage) =>
            StepGarbageTests.MostInOneStep("linear-llama3-1b", new WorldOptions(DeviceKind.Cpu, 2), sequence: 64, o => o with { Zero = stage, BucketBytes = 1 << 10 });
    }

    /// <summary>Long enough for runs that are cut into segments.</summary>
    [Theory]
    [Trait("Category", "Gpu")]
    [InlineData("linear-llama3-1b", 1)]
    [InlineData("linear-llama3-1b", 2)]
    [InlineData("linear-llama3-1b-hybrid4", 1)]
    [InlineData("linear-llama3-1b-hybrid4", 2)]
    public void Sixteen_layers_stay_within_the_bound_on_a_gpu(string preset, int ranks)
    {
        Gpu.Require();
        Check(preset, new WorldOptions(DeviceKind.Cuda, ranks, VirtualRanks: ranks > 1), sequence: 8192 * ranks);
    }

    private static void Check(string preset, WorldOptions world, int sequence) => Assert.InRange(MostInOneStep(preset, world, sequence, o => o), 1, Bound);

    private static long MostInOneStep(string preset, WorldOptions world, int sequence, Func<TrainOptions, TrainOptions> change)
    {
        using var folder = new TemporaryFolder();
        TrainOptions options = change(Options(folder, Preset.Find(preset), world, sequence));
        TextCorpus corpus = TextCorpus.Read(options.Data, new ByteTokenizer());
        var samplers = new Sampler[world.Ranks!.Value];
        World.Run(world, rank =>
        {
            Sampler own = samplers[rank.Rank] = new Sampler();
            using var trainer = new Trainer(options, corpus.Tokens, rank, listener: null, own);
            trainer.Run();
        });
        return samplers.Max(s => s.MostInOneStep);
    }

    private static TrainOptions Options(TemporaryFolder folder, Preset preset, WorldOptions world, int sequence)
    {
        bool isGpu = world.Device == DeviceKind.Cuda;
        LinearLlamaConfig config = preset.Config with
        {
            VocabSize = 256,
            HiddenSize = isGpu ? 128 : 16,
            NumAttentionHeads = isGpu ? 2 : 1,
            NumKeyValueHeads = 1,
            HeadDim = isGpu ? 64 : 16,
            IntermediateSize = isGpu ? 256 : 32,
        };
        Assert.Equal(16, config.NumHiddenLayers);
        return TrainOptions.For(preset, [folder.Write("text.txt", new string([.. Enumerable.Range(0, 40_000).Select(i => (char)('a' + (i * 7 % 26)))]))], folder["out"]) with
        {
            Config = config,
            World = world,
            DType = DType.BF16,
            LeavesNothing = true,
            Recipe = preset.Training with { Steps = Steps, WarmupSteps = 10, SequenceLength = sequence, Batch = 1 },
        };
    }
}
