using System.Buffers;
using LaspNative.Runtime;

namespace LaspNative.Collectives;

/// <summary>
/// Distribution of a batch from its source (LASP, Algorithm 1): rank 0 of a sequence-parallel group holds whole sequences, and rank t receives chunk t of each.
/// Labels are shifted before: a chunk's last label is the next chunk's first token.
/// </summary>
public static class SequenceScatter
{
    public const int Source = 0;

    /// <summary>Returns this rank's chunks of all sequences, [count, C] of I32 on the group's device; the caller disposes them.</summary>
    /// <param name="partition">How the group's ranks divide a sequence.</param>
    /// <param name="count">Sequences of the batch, known to every rank.</param>
    /// <param name="sequences">On the source [count, N] tokens or labels, one sequence after the other; not read elsewhere.</param>
    public static Tensor Scatter(ICommunicator group, SequencePartition partition, int count, ReadOnlySpan<int> sequences)
    {
        ArgumentNullException.ThrowIfNull(group);
        ArgumentNullException.ThrowIfNull(partition);
        if (partition.Ranks != group.Size) throw new LaspException($"sequences divided among {partition.Ranks} ranks cannot be scattered to a group of {group.Size}; divide them among its ranks");
        return group.Rank == Source ? Send(group, partition, count, sequences) : Receive(group, partition, count);
    }

    private static Tensor Send(ICommunicator group, SequencePartition partition, int count, ReadOnlySpan<int> sequences)
    {
        if (sequences.Length != count * partition.Tokens)
            throw new LaspException($"the source of a scatter holds {sequences.Length} tokens; {count} sequences of {partition.Tokens} need {count * partition.Tokens}");
        for (int rank = 0; rank < group.Size; rank++)
        {
            if (rank == Source || count * partition.Length(rank) == 0) continue;
            using Tensor chunk = Chunk(group, partition, count, sequences, rank);
            group.Send(chunk, rank).Wait();
        }
        return Chunk(group, partition, count, sequences, Source);
    }

    private static Tensor Receive(ICommunicator group, SequencePartition partition, int count)
    {
        Tensor chunk = Tensor.Empty([count, partition.Length(group.Rank)], DType.I32, group.Device);
        if (chunk.Count > 0) group.Receive(chunk, Source).Wait();
        return chunk;
    }

    private static Tensor Chunk(ICommunicator group, SequencePartition partition, int count, ReadOnlySpan<int> sequences, int rank)
    {
        int all = (int)partition.Tokens, start = (int)partition.Start(rank), length = (int)partition.Length(rank);
        if (length == all) return Tensor.FromSpan(sequences, [count, all], group.Device);
        int[] rented = ArrayPool<int>.Shared.Rent(count * length); // a step's tokens are large enough to call for full collections if they were garbage
        Span<int> chunk = rented.AsSpan(0, count * length);
        for (int sequence = 0; sequence < count; sequence++) sequences.Slice(sequence * all + start, length).CopyTo(chunk[(sequence * length)..]);
        Tensor tensor = Tensor.FromSpan<int>(chunk, [count, length], group.Device);
        ArrayPool<int>.Shared.Return(rented);
        return tensor;
    }
}
