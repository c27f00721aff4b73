namespace LaspNative.Model;

/// <summary>
/// Whole sequences with their labels: shifted before any rank takes its chunk, so that a chunk's last label is the next chunk's first token.
/// </summary>
public sealed class SequenceBatch(int count, int length)
{
    private readonly int[] _tokens = new int[checked(count * length)];
    private readonly int[] _labels = new int[checked(count * length)];

    /// <summary>B: sequences.</summary>
    public int Count => count;

    /// <summary>N: tokens of each.</summary>
    public int Length => length;

    /// <summary>Token ids of all sequences, one after the other.</summary>
    public ReadOnlySpan<int> AllTokens => _tokens;

    /// <summary>Labels of all sequences, one after the other.</summary>
    public ReadOnlySpan<int> AllLabels => _labels;

    public Span<int> Tokens(int sequence) => _tokens.AsSpan(sequence * length, length);

    /// <summary>What the model is to say at each token (the token after it, or the masked one); negative where nothing counts.</summary>
    public Span<int> Labels(int sequence) => _labels.AsSpan(sequence * length, length);

    /// <summary>Labels that count. Their sum over all groups is what the loss is divided by.</summary>
    public long ValidLabels
    {
        get
        {
            long valid = 0;
            foreach (int label in _labels) valid += label >= 0 ? 1 : 0;
            return valid;
        }
    }
}
