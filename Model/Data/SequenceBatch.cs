using System.Runtime.InteropServices;
using LaspNative.Collectives;
using LaspNative.Runtime;

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

    public Span<int> Tokens(int sequence) => _tokens.AsSpan(sequence * length, length);

    /// <summary>The token after each token; negative where none counts.</summary>
    public Span<int> Labels(int sequence) => _labels.AsSpan(sequence * length, length);

    /// <summary>Labels that count, in the whole batch over all ranks: what the loss is divided by.</summary>
    public long ValidLabels
    {
        get
        {
            long valid = 0;
            foreach (int label in _labels) valid += label >= 0 ? 1 : 0;
            return valid;
        }
    }

    /// <summary>A rank's part on its device: token ids [B, C] and labels [B*C]. The caller's.</summary>
    public (Tensor Ids, Tensor Labels) Shard(SequencePartition partition, int rank, Device device)
    {
        int start = checked((int)partition.Start(rank)), chunk = checked((int)partition.Length(rank));
        return (Upload(_tokens, [count, chunk], start, chunk, device), Upload(_labels, [(long)count * chunk], start, chunk, device));
    }

    private Tensor Upload(int[] values, Shape shape, int start, int chunk, Device device)
    {
        Tensor tensor = Tensor.Empty(shape, DType.I32, device);
        for (int b = 0; b < count; b++)
            device.CopyFromHost(MemoryMarshal.AsBytes(values.AsSpan(b * length + start, chunk)), tensor.Pointer + (nint)b * chunk * sizeof(int));
        return tensor;
    }
}
