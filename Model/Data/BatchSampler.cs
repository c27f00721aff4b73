using LaspNative.Collectives;
using LaspNative.Runtime;

namespace LaspNative.Model;

/// <summary>
/// Draws each step's sequences from the seed and the step's number alone, so that every rank, for any number of ranks and after any resume, sees the same global batch
/// and takes its own part of it.
/// </summary>
public sealed class BatchSampler(TokenStream stream, ulong seed, int batch, long sequenceLength)
{
    /// <summary>Whether the stream is shorter than one batch, so that a batch repeats it.</summary>
    public bool Repeats => stream.Count < batch * (sequenceLength + 1);

    /// <summary>The global batch of a step (counted from 1).</summary>
    public SequenceBatch Sample(long step)
    {
        var random = new CounterRandom(CounterRandom.Mix(seed) ^ (ulong)step);
        int n = checked((int)sequenceLength);
        var tokens = new int[batch][];
        var labels = new int[batch][];
        for (int b = 0; b < batch; b++)
        {
            tokens[b] = new int[n];
            labels[b] = new int[n];
            stream.Read((long)(random.Uniform((ulong)b) * stream.Count), tokens[b], labels[b]);
        }
        return new SequenceBatch(tokens, labels);
    }
}

/// <summary>Whole sequences with their labels: shifted here, before any rank takes its chunk, so that a chunk's last label is the next chunk's first token.</summary>
public sealed class SequenceBatch(int[][] tokens, int[][] labels)
{
    public IReadOnlyList<int[]> Tokens => tokens;

    public IReadOnlyList<int[]> Labels => labels;

    /// <summary>Labels that count, in the whole batch over all ranks: what the loss is divided by.</summary>
    public long ValidLabels { get; } = labels.Sum(l => l.LongCount(label => label >= 0));

    /// <summary>This rank's part: token ids [B, C] and labels [B*C].</summary>
    public (Tensor Ids, Tensor Labels) Shard(SequencePartition partition, int rank, Device device)
    {
        int start = checked((int)partition.Start(rank)), length = checked((int)partition.Length(rank));
        return (Upload(tokens, [tokens.Length, length]), Upload(labels, [(long)tokens.Length * length]));

        Tensor Upload(int[][] rows, Shape shape) =>
            Tensor.FromSpan([.. rows.SelectMany(row => row.AsSpan(start, length).ToArray())], shape, device);
    }
}
