namespace LaspNative.Runtime;

/// <summary>How the operands of <see cref="IBackend.RunDecay"/> are laid out: [Batch, Columns] factors from a decay of [Columns], [Batch, Tokens, Columns] or none; a column is a head, or a head's channel.</summary>
internal readonly record struct RunDecayShape(long Batch, long Tokens, long Columns, bool PerToken)
{
    public static RunDecayShape Of(Tensor? decay, long tokens, Tensor factor)
    {
        Shape f = factor.Shape;
        bool perToken = decay is { Shape.Rank: > 1 };
        bool fits = f.Rank == (decay is { Shape.Rank: 4 } ? 3 : 2) && tokens >= 0 && (decay is null || (perToken
            ? decay.Shape[0] == f[0] && decay.Shape[1] == tokens && decay.Count == tokens * factor.Count
            : decay.Shape == [f[1]]));
        if (!fits) throw new LaspException($"a decay of shape {decay?.Shape.ToString() ?? "none"} over {tokens} tokens does not fit a factor of shape {f}");
        return new RunDecayShape(f[0], tokens, f[0] == 0 ? 0 : factor.Count / f[0], perToken);
    }
}
