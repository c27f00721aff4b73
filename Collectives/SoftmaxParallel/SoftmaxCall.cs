using LaspNative.Runtime;

namespace LaspNative.Collectives;

/// <summary>A run of tokens of the whole sequence.</summary>
/// <param name="Start">Global index of the first.</param>
/// <param name="Length">How many, 0 or more.</param>
internal readonly record struct TokenSpan(long Start, long Length)
{
    /// <summary>The index after the last.</summary>
    public long End => Start + Length;
}

/// <summary>One softmax-attention call as a strategy sees it: sizes, scale, mask and group, checked once.</summary>
public sealed class SoftmaxCall
{
    internal SoftmaxCall(Tensor k, Tensor v, ICommunicator group, AttentionOptions options)
    {
        if (k.Shape.Rank != 4 || v.Shape.Rank != 4 || k.Shape[0] != v.Shape[0] || k.Shape[1] != v.Shape[1] || k.Shape[2] != v.Shape[2])
            throw new LaspException($"k {k.Shape} and v {v.Shape} do not fit; they are [B, N, Hk, D] and [B, N, Hk, E]");
        if (k.DType != v.DType) throw new LaspException($"k is {k.DType} and v is {v.DType}; they share one dtype");
        Group = group;
        (Batch, Tokens, KeyHeads, KeyDim, ValueDim) = (k.Shape[0], k.Shape[1], k.Shape[2], k.Shape[3], v.Shape[3]);
        Heads = options.QueryHeads ?? KeyHeads;
        if (KeyHeads == 0 || Heads % KeyHeads != 0) throw new LaspException($"{Heads} query heads cannot share {KeyHeads} key/value heads; the second must divide the first");
        DType = k.DType;
        Scale = options.Scale ?? 1 / Math.Sqrt(KeyDim);
        Causal = options.Causal;
        Partition = options.Partition ?? new SequencePartition(Tokens * group.Size, group.Size);
        if (Partition.Ranks != group.Size || Partition.Length(group.Rank) != Tokens)
            throw new LaspException($"rank {group.Rank} holds {Tokens} tokens, but the partition of {Partition.Tokens} tokens over {Partition.Ranks} ranks gives it {(group.Rank < Partition.Ranks ? Partition.Length(group.Rank) : 0)}");
        Documents = options.Documents;
        if (Documents is null) return;
        if (Batch != 1) throw new LaspException($"packed documents take a batch of 1, got {Batch}; put the rows one after another");
        if (Documents.Tokens != Partition.Tokens) throw new LaspException($"cu_seqlens ends at {Documents.Tokens}, but the sequence has {Partition.Tokens} tokens");
    }

    public ICommunicator Group { get; }

    public Device Device => Group.Device;

    /// <summary>B.</summary>
    public long Batch { get; }

    /// <summary>C: tokens of this rank.</summary>
    public long Tokens { get; }

    /// <summary>H.</summary>
    public long Heads { get; }

    /// <summary>Hk.</summary>
    public long KeyHeads { get; }

    /// <summary>D.</summary>
    public long KeyDim { get; }

    /// <summary>E.</summary>
    public long ValueDim { get; }

    public DType DType { get; }

    public double Scale { get; }

    public bool Causal { get; }

    public SequencePartition Partition { get; }

    /// <summary>Packed documents; null: each batch row is one.</summary>
    public PackedDocuments? Documents { get; }

    /// <summary>The tokens of all ranks.</summary>
    internal TokenSpan Sequence => new(0, Partition.Tokens);

    /// <summary>The tokens of one rank.</summary>
    internal TokenSpan Chunk(int rank) => new(Partition.Start(rank), Partition.Length(rank));

    /// <summary>Bytes of this many tokens' queries, of the call's dtype.</summary>
    internal long QueryBytes(long tokens) => tokens * Batch * Heads * KeyDim * DType.Size();

    /// <summary>Bytes of this many tokens' outputs, of the call's dtype.</summary>
    internal long OutputBytes(long tokens) => tokens * Batch * Heads * ValueDim * DType.Size();

    /// <summary>Bytes of this many tokens' keys and values, of the call's dtype.</summary>
    internal long KeyValueBytes(long tokens) => tokens * Batch * KeyHeads * (KeyDim + ValueDim) * DType.Size();

    /// <summary>Bytes of the gradients of this many tokens' keys and values, in fp32 (fp64): they are sums over ranks.</summary>
    internal long KeyValueGradientBytes(long tokens) => tokens * Batch * KeyHeads * (KeyDim + ValueDim) * DType.Accumulator().Size();

    internal void CheckQuery(Tensor q)
    {
        if (q.Shape != [Batch, Tokens, Heads, KeyDim]) throw new LaspException($"q has shape {q.Shape}; beside k and v it is [{Batch}, {Tokens}, {Heads}, {KeyDim}] (set AttentionOptions.QueryHeads for grouped heads)");
        if (q.DType != DType) throw new LaspException($"q is {q.DType} and k is {DType}; they share one dtype");
    }

    /// <summary>A finished sum in the call's dtype, rounded here and nowhere else. Uses the sum up.</summary>
    internal Tensor Round(Tensor sum)
    {
        if (sum.DType == DType) return sum;
        using (sum)
        {
            Tensor rounded = Tensor.Empty(sum.Shape, DType, Device);
            Device.Backend.Cast(sum, rounded);
            return rounded;
        }
    }
}
