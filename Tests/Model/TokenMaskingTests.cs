using LaspNative.Model;
using Xunit;

namespace LaspNative.Tests.Model;

/// <summary>The task of a masked language model: how many positions are asked for, what they show, and that only seed, step and sequence decide.</summary>
public class TokenMaskingTests
{
    private const int Mask = 256;
    private const int Length = 100_000;

    private static (int[] Tokens, int[] Labels) Masked(ulong seed, long step, long sequence)
    {
        int[] tokens = Text(), labels = new int[Length];
        new TokenMasking(seed, Mask, vocabulary: 256).Apply(step, sequence, tokens, labels);
        return (tokens, labels);
    }

    private static int[] Text() => [.. Enumerable.Range(0, Length).Select(i => i * 7 % 256)];

    [Fact]
    public void Fifteen_percent_are_asked_for_and_most_of_them_are_hidden()
    {
        (int[] tokens, int[] labels) = Masked(1, 1, 0);
        int[] text = Text();
        int[] asked = [.. Enumerable.Range(0, Length).Where(i => labels[i] != TokenStream.IgnoredLabel)];
        Assert.InRange(asked.Length, 0.145 * Length, 0.155 * Length);
        Assert.All(asked, i => Assert.Equal(text[i], labels[i]));
        Assert.All(Enumerable.Range(0, Length).Except(asked), i => Assert.Equal(text[i], tokens[i]));
        double Share(Func<int, bool> kind) => asked.Count(kind) / (double)asked.Length;
        Assert.InRange(Share(i => tokens[i] == Mask), 0.785, 0.815);
        Assert.InRange(Share(i => tokens[i] == text[i]), 0.09, 0.11);
        int[] replaced = [.. asked.Where(i => tokens[i] != Mask && tokens[i] != text[i]).Select(i => tokens[i])];
        Assert.InRange(replaced.Length, 0.09 * asked.Length, 0.11 * asked.Length);
        Assert.True(replaced.Distinct().Count() > 240);
    }

    [Fact]
    public void Seed_step_and_sequence_decide()
    {
        Assert.Equal(Masked(1, 2, 3).Tokens, Masked(1, 2, 3).Tokens);
        Assert.Equal(4, new[] { Masked(1, 2, 3), Masked(2, 2, 3), Masked(1, 3, 3), Masked(1, 2, 4) }.Select(m => string.Join(',', m.Labels.Take(500))).Distinct().Count());
    }
}
