using LaspNative.Collectives;
using LaspNative.Runtime;

namespace LaspNative.Model;

/// <summary>Everything that defines a training run.</summary>
public sealed record TrainOptions
{
    /// <summary>Text files and folders.</summary>
    public required IReadOnlyList<string> Data { get; init; }

    public required LinearLlamaConfig Config { get; init; }

    public required TrainingRecipe Recipe { get; init; }

    /// <summary>Where metrics and checkpoints go.</summary>
    public required string Output { get; init; }

    public string Tokenizer { get; init; } = "bytes";

    public WorldOptions World { get; init; } = new(DeviceKind.Cpu);

    /// <summary>Groups among which the batch is divided; each divides its sequences among world size / DataParallel ranks.</summary>
    public int DataParallel { get; init; } = 1;

    /// <summary>What the ranks divide among themselves.</summary>
    public ZeroStage Zero { get; init; }

    /// <summary>Bytes of gradients that one message sums.</summary>
    public long BucketBytes { get; init; } = DefaultBucketBytes;

    internal const long DefaultBucketBytes = 32L << 20;

    /// <summary>Of the linear layers.</summary>
    public SequenceParallel Strategy { get; init; } = Lasp2.Default;

    /// <summary>Of the softmax layers.</summary>
    public SoftmaxParallel SoftmaxStrategy { get; init; } = SoftmaxAllGather.Default;

    /// <summary>What is computed again in backward instead of kept.</summary>
    public Recomputation Recomputation { get; init; } = Recomputation.None;

    /// <summary>Type of parameters and activations; optimizer states are fp32 (fp64) in any case.</summary>
    public DType DType { get; init; } = DType.F32;

    /// <summary>The type that the gradients of the blocks are summed in, over tokens and over ranks; null: fp32 (fp64), as those of embeddings, last norm and last projection are in any case.</summary>
    public DType? GradientDType { get; init; }

    public long Seed { get; init; }

    /// <summary>Whether to go on from the newest checkpoint in <see cref="Output"/>.</summary>
    public bool Resume { get; init; }

    /// <summary>The step after which to end early with a checkpoint; the schedule still spans all steps.</summary>
    public int? StopAfter { get; init; }

    /// <summary>Steps between checkpoints; 0: only one at the end.</summary>
    public int CheckpointEvery { get; init; }

    /// <summary>Whether neither metrics nor a checkpoint are written: for measurements.</summary>
    internal bool LeavesNothing { get; init; }

    /// <summary>Options for a preset, with its own recipe.</summary>
    public static TrainOptions For(Preset preset, IReadOnlyList<string> data, string output) =>
        new() { Data = data, Config = preset.Config, Recipe = preset.Training, Output = output };

    /// <summary>The step that ends the run.</summary>
    internal long LastStep => Math.Min(Recipe.Steps, StopAfter ?? Recipe.Steps);

    /// <summary>Throws a <see cref="LaspException"/> that names the first value no run can have.</summary>
    public void Validate()
    {
        Recipe.Validate();
        Config.Validate();
        Recomputation.Validate();
        if (!DType.IsFloat()) throw new LaspException($"a model cannot compute in {DType}; use fp32 or bf16");
        if (GradientDType is { } gradient && gradient != DType && gradient != DType.Accumulator())
            throw new LaspException($"gradients of a model in {DType} cannot be collected in {gradient}; leave out --gradient-dtype, or train in {gradient} too (--dtype)");
        if (StopAfter < 1) throw new LaspException($"the run is to stop after step {StopAfter}; steps count from 1");
        if (CheckpointEvery < 0) throw new LaspException($"a checkpoint every {CheckpointEvery} steps is not possible; use 0 for one at the end only");
        if (DataParallel < 1) throw new LaspException($"{DataParallel} data-parallel groups cannot be; use 1 or more");
        if (Recipe.Batch % DataParallel != 0) throw new LaspException($"a batch of {Recipe.Batch} cannot be divided among {DataParallel} data-parallel groups; make --batch a multiple of --dp");
        if (!Enum.IsDefined(Zero)) throw new LaspException($"there is no ZeRO stage {(int)Zero}; use 0, 1, 2 or 3");
        if (BucketBytes < 1) throw new LaspException($"a gradient bucket of {BucketBytes} bytes holds nothing; use 1 or more");
        int vocabulary = LaspNative.Model.Tokenizer.Parse(Tokenizer).VocabularySize;
        if (vocabulary > Config.VocabSize) throw new LaspException($"tokenizer '{Tokenizer}' has {vocabulary} tokens but the model's vocab_size is {Config.VocabSize}; use a config with vocab_size {vocabulary} or more");
        if (!Config.IsDecoder) ValidateMasking(vocabulary);
    }

    private void ValidateMasking(int vocabulary)
    {
        if (Config.MaskTokenId is not { } mask) throw new LaspException($"is_decoder is false, so the model learns to fill in masked tokens; give mask_token_id, such as {vocabulary}");
        if (mask < vocabulary) throw new LaspException($"mask_token_id {mask} is a token of '{Tokenizer}'; use {vocabulary} or more, and a vocab_size above it");
        if (Strategy is not (Lasp2 or Serial) && Config.HasLayersOf(LayerType.LinearAttention))
            throw new LaspException($"strategy {Strategy.Name} is causal, but the model's is_decoder is false; use lasp2");
    }
}
