using System.Text.Json;
using System.Text.Json.Serialization;
using LaspNative.Collectives;
using LaspNative.Runtime;

namespace LaspNative.Model;

/// <summary>
/// trainer_state.json: where a run stands and what made it. The next step is <see cref="Step"/> + 1; which data it sees follows from seed and step.
/// </summary>
internal sealed record TrainerState
{
    private static readonly JsonSerializerOptions s_json = new()
    {
        PropertyNamingPolicy = JsonNamingPolicy.SnakeCaseLower,
        WriteIndented = true,
        Converters = { new JsonStringEnumConverter() },
    };

    public required long Step { get; init; }

    /// <summary>When the checkpoint was written; the newest one is resumed.</summary>
    public required DateTimeOffset SavedAt { get; init; }

    public required long Seed { get; init; }

    public required string Tokenizer { get; init; }

    public required long CorpusTokens { get; init; }

    public required ulong CorpusFingerprint { get; init; }

    public required TrainingRecipe Recipe { get; init; }

    public required DType DType { get; init; }

    /// <summary>Of the blocks; null: fp32 (fp64).</summary>
    public DType? GradientDType { get; init; }

    public required string Device { get; init; }

    public required int Ranks { get; init; }

    /// <summary>Data-parallel groups.</summary>
    public int DataParallel { get; init; } = 1;

    /// <summary>ZeRO stage.</summary>
    public int Zero { get; init; }

    public required string Strategy { get; init; }

    public string SoftmaxStrategy { get; init; } = SoftmaxAllGather.Default.Name;

    /// <summary>In words (<see cref="Model.Recomputation"/>).</summary>
    public string Recomputation { get; init; } = Model.Recomputation.None.ToString();

    public string ToJson() => JsonSerializer.Serialize(this, s_json);

    public static TrainerState Parse(string json) => JsonSerializer.Deserialize<TrainerState>(json, s_json) ?? throw new JsonException("the file holds null");

    /// <summary>Throws a <see cref="LaspException"/> where this run cannot go on from <paramref name="saved"/>, since model or data would be others.</summary>
    public void RequireContinues(TrainerState saved, string folder)
    {
        Require("--seed", saved.Seed, Seed);
        Require("--tokenizer", saved.Tokenizer, Tokenizer);
        Require("--seq-len", saved.Recipe.SequenceLength, Recipe.SequenceLength);
        Require("--batch", saved.Recipe.Batch, Recipe.Batch);

        void Require<T>(string option, T before, T now)
        {
            if (!EqualityComparer<T>.Default.Equals(before, now))
                throw new LaspException($"{folder} was trained with {option} {before}, not {now}; give {option} {before}, or another --out to start anew");
        }
    }

    /// <summary>What differs from <paramref name="saved"/> in a way that a run may, one line each; then it does not continue bit by bit, unless only <see cref="Recomputation"/> differs and no chunks do.</summary>
    public IEnumerable<string> Differences(TrainerState saved)
    {
        if (saved.CorpusFingerprint != CorpusFingerprint) yield return $"the text has changed since the checkpoint ({saved.CorpusTokens} tokens then, {CorpusTokens} now)";
        if (saved.Recipe != Recipe) yield return "the training options differ from the checkpoint's; the new ones hold from here on";
        if (saved.DType != DType) yield return $"the checkpoint was trained in {saved.DType}, this run computes in {DType}";
        if (saved.GradientDType != GradientDType) yield return $"the checkpoint's gradients were collected in {saved.GradientDType ?? saved.DType.Accumulator()}, this run's in {GradientDType ?? DType.Accumulator()}";
        if (saved.Device != Device) yield return $"the checkpoint was trained on {saved.Device}, this run is on {Device}";
        if (saved.Ranks != Ranks) yield return $"the checkpoint was trained on {saved.Ranks} ranks, this run has {Ranks}";
        if (saved.DataParallel != DataParallel) yield return $"the checkpoint was trained by {saved.DataParallel} data-parallel groups, this run has {DataParallel}";
        if (saved.Zero != Zero) yield return $"the checkpoint was trained with --zero {saved.Zero}, this run uses --zero {Zero}";
        if (saved.Strategy != Strategy) yield return $"the checkpoint was trained with {saved.Strategy}, this run uses {Strategy}";
        if (saved.SoftmaxStrategy != SoftmaxStrategy) yield return $"the checkpoint's softmax layers were trained with {saved.SoftmaxStrategy}, this run uses {SoftmaxStrategy}";
        if (saved.Recomputation != Recomputation) yield return $"the checkpoint was trained with {saved.Recomputation}, this run with {Recomputation}";
    }
}
