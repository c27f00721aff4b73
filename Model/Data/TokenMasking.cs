namespace LaspNative.Model;

/// <summary>
/// The task of a masked language model (BERT, RoBERTa): 15% of the positions are asked for; of these 80% show the mask token, 10% a random token and 10% the token itself.
/// The label of an asked position is its token, all others are ignored. Which positions follows from seed, step, sequence and position alone, so that every rank, for any number
/// of ranks and after any resume, sees the same masks; they differ from step to step.
/// </summary>
/// <param name="seed">Of the run.</param>
/// <param name="maskToken">The id that stands for "asked".</param>
/// <param name="vocabulary">Random tokens are drawn from [0, vocabulary).</param>
public sealed class TokenMasking(ulong seed, int maskToken, int vocabulary)
{
    private const double AskedShare = 0.15;
    private const double MaskedShare = 0.8;
    private const double RandomShare = 0.1;

    /// <summary>Masks one sequence of a step's global batch in place and writes its labels.</summary>
    public void Apply(long step, long sequence, Span<int> tokens, Span<int> labels)
    {
        var random = new CounterRandom(CounterRandom.Mix(CounterRandom.Mix(seed) ^ (ulong)step) + (ulong)sequence);
        for (int i = 0; i < tokens.Length; i++)
        {
            double draw = random.Uniform(2 * (ulong)i) / AskedShare;
            labels[i] = draw < 1 ? tokens[i] : TokenStream.IgnoredLabel;
            if (draw < MaskedShare) tokens[i] = maskToken;
            else if (draw < MaskedShare + RandomShare) tokens[i] = (int)(random.Uniform(2 * (ulong)i + 1) * vocabulary);
        }
    }
}
