namespace LaspNative.Model;

/// <summary>Linear warm-up from 0 to the peak, then half a cosine down to the floor, which the last step reaches.</summary>
public sealed class LearningRateSchedule(TrainingRecipe recipe)
{
    /// <summary>The rate of a step, counted from 1.</summary>
    public double this[long step]
    {
        get
        {
            if (step <= recipe.WarmupSteps) return recipe.LearningRate * step / recipe.WarmupSteps;
            double progress = Math.Min(1, (double)(step - recipe.WarmupSteps) / Math.Max(1, recipe.Steps - recipe.WarmupSteps));
            return recipe.MinLearningRate + (recipe.LearningRate - recipe.MinLearningRate) * 0.5 * (1 + Math.Cos(Math.PI * progress));
        }
    }
}
