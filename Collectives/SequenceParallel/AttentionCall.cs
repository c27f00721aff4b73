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

    /// <summary>The documents that the sequence is packed from (batch 1), the same on every rank; default: one sequence per batch row.</summary>
    public PackedDocuments? Documents { get; init; }

    /// <summary>False: every token sees every token (bidirectional).</summary>
    public bool Causal { get; init; } = true;
}

/// <summary>One linear-attention call as a strategy sees it: sizes, scale, documents and group, checked once.</summary>
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
        Causal = options.Causal;
        Partition = options.Partition ?? new SequencePartition(Tokens * group.Size, group.Size);
        if (Partition.Ranks != group.Size || Partition.Length(group.Rank) != Tokens)
            throw new LaspException($"rank {group.Rank} holds {Tokens} tokens, but the partition of {Partition.Tokens} tokens over {Partition.Ranks} ranks gives it {(group.Rank < Partition.Ranks ? Partition.Length(group.Rank) : 0)}");
        Documents = CheckDocuments(options.Documents);
        CheckState(initialState, "initial_state");
        CheckDecay(decay);
        if (!Causal && (decay is not null || initialState is not null || Documents is not null))
            throw new LaspException($"bidirectional linear attention takes no {(decay is not null ? "log decay" : initialState is not null ? "initial_state" : "packed documents")}; leave it out, or make the call causal");
    }

    /// <summary>The same call with the whole sequence and this rank's share of the heads, as one rank computes it alone.</summary>
    private AttentionCall(AttentionCall call, int shards)
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

    /// <summary>Shape of one running state, [B, H, D, E].</summary>
    public Shape StateShape => [Batch, Heads, KeyDim, ValueDim];

    /// <summary>Shape of initial and final states: one per batch row, or per packed document, [B or n, H, D, E].</summary>
    public Shape DocumentStateShape => [Documents?.Count ?? Batch, Heads, KeyDim, ValueDim];

    /// <summary>[B, C, H, E].</summary>
    public Shape OutputShape => [Batch, Tokens, Heads, ValueDim];

    /// <summary>Bytes of one state: S elements of fp32 (fp64).</summary>
    public long StateBytes => StateShape.Count * DType.Accumulator().Size();

    /// <summary>The chunk of a rank as pieces of documents; where nothing is packed, the batch rows are one document of N tokens.</summary>
    internal IReadOnlyList<DocumentPiece> PiecesOf(int rank) =>
        Partition.Tokens == 0 ? [] : (Documents ?? new PackedDocuments([0, Partition.Tokens])).Pieces(Partition.Start(rank), Partition.Length(rank));

    /// <summary>The pieces that are computed here: this rank's chunk, or the whole sequence of a head shard.</summary>
    internal IReadOnlyList<DocumentPiece> OwnPieces => PiecesOf(Partition.Ranks == 1 ? 0 : Group.Rank);

    internal AttentionCall OfHeadShard() => new(this, Group.Size);

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

    private void CheckState(Tensor? state, string name)
    {
        if (state is null) return;
        if (state.Shape != DocumentStateShape || state.DType != DType.Accumulator())
            throw new LaspException($"{name} is {state.DType} {state.Shape}; here it is {DType.Accumulator()} {DocumentStateShape}");
    }

    private void CheckDecay(Tensor? decay)
    {
        if (decay is null) return;
        Shape shape = decay.Shape;
        if (shape != [Heads] && shape != [Batch, Tokens, Heads] && shape != [Batch, Tokens, Heads, KeyDim])
            throw new LaspException($"the log decay has shape {shape}; it is [{Heads}] per head, [{Batch}, {Tokens}, {Heads}] per token or [{Batch}, {Tokens}, {Heads}, {KeyDim}] per channel");
        if (decay.DType != DType.Accumulator()) throw new LaspException($"the log decay is {decay.DType}; beside {DType} tensors it is {DType.Accumulator()}");
    }

    internal Tensor EmptyState() => Tensor.Empty(StateShape, DType.Accumulator(), Device, MemoryCategory.States);

    /// <summary>The row of a document in initial or final states.</summary>
    internal Tensor OfDocument(Tensor states, DocumentPiece piece) => Documents is null ? states.Share() : states.Slice(piece.Document, 1);

    /// <summary>The weights of tokens towards a run's edge, [B, tokens, H], or [B, tokens, H, D] where the decay or the factors are per channel.</summary>
    internal Tensor DecayWeights(Tensor? decay, long tokens, bool toEnd, Tensor? between)
    {
        bool perChannel = decay is { Shape.Rank: 4 } || between is { Shape.Rank: 3 };
        Tensor weights = Tensor.Empty(perChannel ? [Batch, tokens, Heads, KeyDim] : [Batch, tokens, Heads], DType.Accumulator(), Device);
        Device.Backend.DecayWeights(decay, toEnd, between, weights);
        return weights;
    }

    /// <summary>Shape of one run's A: a factor per head, [B, H], or per channel, [B, H, D].</summary>
    internal Shape FactorShape(Tensor? decay) => decay is { Shape.Rank: 4 } ? [Batch, Heads, KeyDim] : [Batch, Heads];

    /// <summary>A of a rank's chunk: 0 when a document starts in it. Of another rank's chunk it is known only while the decay is none or per head.</summary>
    internal void RankDecay(int rank, Tensor? decay, Tensor factor)
    {
        if (PiecesOf(rank).Any(p => p.IsFirst)) Device.Backend.Fill(0, factor);
        else Device.Backend.RunDecay(decay, Partition.Length(rank), factor);
    }
}
