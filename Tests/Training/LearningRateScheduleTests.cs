using LaspNative.Model;
using Xunit;

namespace LaspNative.Tests.Training;

public class LearningRateScheduleTests
{
    private static readonly TrainingRecipe s_recipe = Preset.Find("tiny").Training with { Steps = 110, WarmupSteps = 10, LearningRate = 2, MinLearningRate = 0.5 };

    [Theory]
    [InlineData(1, 0.2)]
    [InlineData(5, 1.0)]
    [InlineData(10, 2.0)]
    [InlineData(60, 1.25)]
    [InlineData(110, 0.5)]
    [InlineData(200, 0.5)]
    public void Warms_up_linearly_and_falls_like_a_cosine(long step, double rate) => Assert.Equal(rate, new LearningRateSchedule(s_recipe)[step], 12);

    [Fact]
    public void Without_warm_up_it_starts_near_the_peak() =>
        Assert.Equal(2, new LearningRateSchedule(s_recipe with { WarmupSteps = 0 })[1], 0.01);

    [Fact]
    public void A_warm_up_longer_than_the_run_never_falls() =>
        Assert.Equal(2 * 110 / 1000.0, new LearningRateSchedule(s_recipe with { WarmupSteps = 1000 })[110], 12);
}
