using LaspNative.Runtime;

namespace LaspNative.Collectives;

/// <summary>What a caller may say about one attention call; everything has the usual default.</summary>
public sealed record AttentionOptions
{
    public static AttentionOptions Default { get; } = new();

    /// <summary>Multiplies q.k; default 1/sqrt(D).</summary>
    public double? Scale { get; init; }

    /// <summary>Query heads H when they are more than the key/value heads Hk; default Hk. Needed before q is there, because states are per query head.</summary>
    public int? QueryHeads { get; init; }

    /// <summary>
    /// How the sequence is divided among the ranks; default: every rank holds as many tokens as this one. Must be given, the same on every rank, when chunks differ in length.
    /// </summary>
    public SequencePartition? Partition { get; init; }
}

/// <summary>One attention call as a strategy sees it: sizes, scale and group, checked once.</summary>
public sealed class AttentionCall
{
    internal AttentionCall(Tensor k, Tensor v, Tensor? decay, Tensor? initialState, ICommunicator group, AttentionOptions options)
    {
        if (k.Shape.Rank != 4 || v.Shape.Rank != 4 || k.Shape[0] != v.Shape[0] || k.Shape[1] != v.Shape[1] || k.Shape[2] != v.Shape[2])
            throw new LaspException($"k {k.Shape} and v {v.Shape} do not fit; they are [B, N, Hk, D] and [B, N, Hk, E]");
        Group = group;
        (Batch, Tokens, KeyHeads, KeyDim, ValueDim) = (k.Shape[0], k.Shape[1], k.Shape[2], k.Shape[3], v.Shape[3]);
        Heads = options.QueryHeads ?? KeyHeads;
        if (KeyHeads == 0 || Heads % KeyHeads != 0) throw new LaspException($"{Heads} query heads cannot share {KeyHeads} key/value heads; the second must divide the first");
        DType = k.DType;
        Scale = options.Scale ?? 1 / Math.Sqrt(KeyDim);
        Partition = options.Partition ?? new SequencePartition(Tokens * group.Size, group.Size);
        if (Partition.Ranks != group.Size || Partition.Length(group.Rank) != Tokens)
            throw new LaspException($"rank {group.Rank} holds {Tokens} tokens, but the partition of {Partition.Tokens} tokens over {Partition.Ranks} ranks gives it {(group.Rank < Partition.Ranks ? Partition.Length(group.Rank) : 0)}");
        CheckState(initialState, "initial_state");
        if (decay is not null && decay.Shape != [Heads])
            throw new LaspException($"a log decay of shape {decay.Shape} is not available; give one value per query head, [{Heads}], or none");
        if (decay is not null && decay.DType != DType.Accumulator()) throw new LaspException($"the log decay is {decay.DType}; beside {DType} tensors it is {DType.Accumulator()}");
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

    public SequencePartition Partition { get; }

    /// <summary>[B, H, D, E].</summary>
    public Shape StateShape => [Batch, Heads, KeyDim, ValueDim];

    /// <summary>[B, C, H, E].</summary>
    public Shape OutputShape => [Batch, Tokens, Heads, ValueDim];

    /// <summary>Bytes of one state: S elements of fp32 (fp64).</summary>
    public long StateBytes => StateShape.Count * DType.Accumulator().Size();

    internal void CheckQuery(Tensor q)
    {
        if (q.Shape != [Batch, Tokens, Heads, KeyDim]) throw new LaspException($"q has shape {q.Shape}; beside k and v it is [{Batch}, {Tokens}, {Heads}, {KeyDim}] (set AttentionOptions.QueryHeads for grouped heads)");
        if (q.DType != DType) throw new LaspException($"q is {q.DType} and k is {DType}; they share one dtype");
    }

    internal void CheckState(Tensor? state, string name)
    {
        if (state is null) return;
        if (state.Shape != StateShape || state.DType != DType.Accumulator())
            throw new LaspException($"{name} is {state.DType} {state.Shape}; here it is {DType.Accumulator()} {StateShape}");
    }

    internal Tensor EmptyState() => Tensor.Empty(StateShape, DType.Accumulator(), Device, MemoryCategory.States);

    /// <summary>The A of every rank, [W, B, H], known on each rank without a message: lengths are known and the decay is per head.</summary>
    internal Tensor RankDecays(Tensor? decay)
    {
        Tensor factors = Tensor.Empty([Group.Size, Batch, Heads], DType.Accumulator(), Device, MemoryCategory.States);
        for (int rank = 0; rank < Group.Size; rank++)
        {
            using Tensor own = factors.Slice(rank, 1);
            using Tensor factor = own.View([Batch, Heads]);
            Device.Backend.RunDecay(decay, Partition.Length(rank), factor);
        }
        return factors;
    }
}
