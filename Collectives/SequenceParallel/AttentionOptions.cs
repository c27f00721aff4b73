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

    /// <summary>Of linear attention: where the call leaves the states that it was told, or, once they are there, takes them from instead of asking again. Null: neither.</summary>
    public StateCache? States { get; init; }

    /// <summary>False: every token sees every token (bidirectional).</summary>
    public bool Causal { get; init; } = true;
}
