using LaspNative.Collectives;

namespace LaspNative.Model;

/// <summary>Who wants to know how a run proceeds. Called by rank 0 only, on its thread.</summary>
public interface ITrainingListener
{
    /// <summary>Something worth a line that is not an error.</summary>
    void Note(string line);

    void Step(StepRecord record);
}

/// <summary>How a run ended.</summary>
/// <param name="FirstLoss">Loss of the first step of this run; null when there was none to do.</param>
/// <param name="LastLoss">Loss of the last step of this run.</param>
/// <param name="LastStep">The last step done, by this run or before it.</param>
/// <param name="Interrupted">Whether it was cancelled before its last step.</param>
/// <param name="Checkpoint">Folder of the checkpoint at <paramref name="LastStep"/>.</param>
public sealed record TrainingResult(double? FirstLoss, double? LastLoss, long LastStep, bool Interrupted, string Checkpoint);

/// <summary>A whole training run: text, ranks, steps, checkpoint.</summary>
public static class TrainingRun
{
    /// <summary>
    /// Trains on all ranks and returns when a checkpoint of the last step is on disk. Cancelling finishes the running step, writes a checkpoint and returns with
    /// <see cref="TrainingResult.Interrupted"/>. Null in a process that does not hold rank 0.
    /// </summary>
    public static TrainingResult? Run(TrainOptions options, ITrainingListener? listener = null, CancellationToken cancellation = default)
    {
        ArgumentNullException.ThrowIfNull(options);
        options.Validate();
        TextCorpus corpus = TextCorpus.Read(options.Data, Tokenizer.Parse(options.Tokenizer), options.Output);
        TrainingResult? result = null;
        World.Run(options.World, rank =>
        {
            if (rank.Rank == 0) Describe(options, corpus, listener);
            using var trainer = new Trainer(options, corpus.Tokens, rank, rank.Rank == 0 ? listener : null);
            TrainingResult own = trainer.Run();
            if (rank.Rank == 0) result = own;
        }, cancellation);
        return result;
    }

    private static void Describe(TrainOptions options, TextCorpus corpus, ITrainingListener? listener)
    {
        if (listener is null) return;
        TrainingRecipe recipe = options.Recipe;
        string skipped = corpus.BinaryFiles > 0 ? $", {corpus.BinaryFiles} binary files skipped" : "";
        listener.Note($"{corpus.Documents} text files, {corpus.Tokens.Count} tokens{skipped}");
        long needed = recipe.Batch * (recipe.SequenceLength + 1);
        if (corpus.Tokens.Count < needed) listener.Note($"the text has {corpus.Tokens.Count} tokens and one batch takes {needed}: it is repeated");
    }
}
