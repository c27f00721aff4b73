using LaspNative.Runtime;

namespace LaspNative.Collectives;

/// <summary>One attention call over a sequence whose chunks lie on the ranks of a group, of any kind of attention: sizes, scale, mask, documents and group, checked once.</summary>
public abstract class SequenceCall
{
    private protected SequenceCall(Tensor k, Tensor v, ICommunicator group, AttentionOptions options)
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
        Documents = CheckDocuments(options.Documents);
    }

    /// <summary>The same call with the whole sequence and one rank's share of the heads, as one rank computes it alone.</summary>
    private protected SequenceCall(SequenceCall call, int shards)
    {
        Group = call.Group;
        (Batch, Tokens, KeyDim, ValueDim) = (call.Batch, call.Partition.Tokens, call.KeyDim, call.ValueDim);
        (Heads, KeyHeads) = (call.Heads / shards, call.KeyHeads / shards);
        (DType, Scale, Causal, Documents) = (call.DType, call.Scale, call.Causal, call.Documents);
        Partition = new SequencePartition(Tokens, 1);
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

    /// <summary>[B, C, H, E].</summary>
    public Shape OutputShape => [Batch, Tokens, Heads, ValueDim];

    internal void CheckQuery(Tensor q)
    {
        if (q.Shape != [Batch, Tokens, Heads, KeyDim]) throw new LaspException($"q has shape {q.Shape}; beside k and v it is [{Batch}, {Tokens}, {Heads}, {KeyDim}] (set AttentionOptions.QueryHeads for grouped heads)");
        if (q.DType != DType) throw new LaspException($"q is {q.DType} and k is {DType}; they share one dtype");
    }

    private PackedDocuments? CheckDocuments(PackedDocuments? documents)
    {
        if (documents is null) return null;
        if (Batch != 1) throw new LaspException($"packed documents take a batch of 1, got {Batch}; put the rows one after another");
        if (documents.Tokens != Partition.Tokens) throw new LaspException($"cu_seqlens ends at {documents.Tokens}, but the sequence has {Partition.Tokens} tokens");
        return documents;
    }
}
