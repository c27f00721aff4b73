using LaspNative.Runtime;

namespace LaspNative.Collectives;

/// <summary>One linear-attention call as a strategy sees it: also the decay, the states and the pieces of documents.</summary>
public sealed class AttentionCall : SequenceCall
{
    internal AttentionCall(Tensor k, Tensor v, Tensor? decay, Tensor? initialState, ICommunicator group, AttentionOptions options) : base(k, v, group, options)
    {
        States = options.States;
        CheckState(initialState, "initial_state");
        CheckDecay(decay);
        if (!Causal && (decay is not null || initialState is not null || Documents is not null))
            throw new LaspException($"bidirectional linear attention takes no {(decay is not null ? "log decay" : initialState is not null ? "initial_state" : "packed documents")}; leave it out, or make the call causal");
    }

    private AttentionCall(AttentionCall call, int shards) : base(call, shards) { }

    /// <summary>Where states from other ranks are kept for the same call made again; null: nowhere.</summary>
    internal StateCache? States { get; }

    /// <summary>Shape of one running state, [B, H, D, E].</summary>
    public Shape StateShape => [Batch, Heads, KeyDim, ValueDim];

    /// <summary>Shape of initial and final states: one per batch row, or per packed document, [B or n, H, D, E].</summary>
    public Shape DocumentStateShape => [Documents?.Count ?? Batch, Heads, KeyDim, ValueDim];

    /// <summary>Bytes of one state: S elements of fp32 (fp64).</summary>
    public long StateBytes => StateShape.Count * DType.Accumulator().Size();

    /// <summary>The chunk of a rank as pieces of documents; where nothing is packed, the batch rows are one document of N tokens.</summary>
    internal IReadOnlyList<DocumentPiece> PiecesOf(int rank)
    {
        (long start, long length) = (Partition.Start(rank), Partition.Length(rank));
        if (length == 0) return [];
        return Documents?.Pieces(start, length) ?? [new DocumentPiece(0, 0, length, IsFirst: start == 0, IsLast: start + length == Partition.Tokens)];
    }

    /// <summary>The pieces that are computed here: this rank's chunk, or the whole sequence of a head shard.</summary>
    internal IReadOnlyList<DocumentPiece> OwnPieces => PiecesOf(Partition.Ranks == 1 ? 0 : Group.Rank);

    internal AttentionCall OfHeadShard() => new(this, Group.Size);

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

    /// <summary>The state that enters where no rank comes before: nobody reads it, since a document begins there, but a cache keeps zeros rather than whatever lies there.</summary>
    internal void NothingEnters(Tensor entering)
    {
        if (States is not null) Device.Backend.Fill(0, entering);
    }

    /// <summary>The rows of a piece's documents in initial or final states.</summary>
    internal Tensor OfDocument(Tensor states, DocumentPiece piece) => Documents is null ? states.Share() : states.Slice(piece.Document, piece.Count);

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
