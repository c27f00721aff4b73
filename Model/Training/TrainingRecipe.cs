using LaspNative.Runtime;

namespace LaspNative.Model;

/// <summary>The numbers of a training run.</summary>
/// <param name="SequenceLength">N: tokens of one sequence over all ranks.</param>
/// <param name="Batch">Sequences per step.</param>
/// <param name="Steps">Optimizer updates that the learning-rate schedule spans.</param>
/// <param name="LearningRate">The schedule's peak, reached after <paramref name="WarmupSteps"/>.</param>
/// <param name="MinLearningRate">The schedule's last value.</param>
/// <param name="ClipNorm">Largest global gradient norm; 0: no clipping.</param>
public sealed record TrainingRecipe(
    long SequenceLength, int Batch, int Steps, double LearningRate, double MinLearningRate, int WarmupSteps, double WeightDecay, double Beta1, double Beta2, double ClipNorm)
{
    /// <summary>Throws a <see cref="LaspException"/> that names the first value no run can have.</summary>
    public void Validate()
    {
        Require(SequenceLength >= 1, "sequence length", SequenceLength, "at least 1");
        Require(Batch >= 1, "batch", Batch, "at least 1");
        Require(SequenceLength <= Array.MaxLength / Batch, "number of tokens in a step", (Int128)Batch * SequenceLength, $"at most {Array.MaxLength}");
        Require(Steps >= 1, "number of steps", Steps, "at least 1");
        Require(LearningRate > 0 && double.IsFinite(LearningRate), "learning rate", LearningRate, "greater than 0");
        Require(MinLearningRate >= 0 && MinLearningRate <= LearningRate, "last learning rate", MinLearningRate, $"between 0 and the peak, {LearningRate}");
        Require(WarmupSteps >= 0, "number of warm-up steps", WarmupSteps, "0 or more");
        Require(WeightDecay >= 0 && double.IsFinite(WeightDecay), "weight decay", WeightDecay, "0 or more");
        Require(Beta1 is >= 0 and < 1, "first beta", Beta1, "between 0 and 1");
        Require(Beta2 is >= 0 and < 1, "second beta", Beta2, "between 0 and 1");
        Require(ClipNorm >= 0, "clipping norm", ClipNorm, "0 (no clipping) or more");
    }

    private static void Require(bool valid, string name, object value, string range)
    {
        if (!valid) throw new LaspException($"the {name} is {value}; it must be {range}");
    }
}
