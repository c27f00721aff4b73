using LaspNative.Autograd;
using LaspNative.Collectives;

namespace LaspNative.Model;

/// <summary>Where a forward pass runs: the ranks among which each sequence is divided, how, and by which strategies its layers exchange what they must.</summary>
/// <param name="Group">The sequence-parallel group, of this rank.</param>
/// <param name="Strategy">Of the linear layers.</param>
/// <param name="SoftmaxStrategy">Of the softmax layers.</param>
/// <param name="Partition">Which tokens of a sequence each rank of the group holds.</param>
public sealed record SequenceContext(ICommunicator Group, SequenceParallel Strategy, SoftmaxParallel SoftmaxStrategy, SequencePartition Partition)
{
    /// <summary>The documents that the one sequence of the batch is packed from: none sees another, and each counts its positions from 0. Null: every sequence is one document.</summary>
    public PackedDocuments? Documents { get; init; }

    /// <summary>What this pass leaves to be computed again in backward.</summary>
    public Recomputation Recomputation { get; init; } = Recomputation.None;

    /// <summary>Where the inputs of blocks that are computed again wait for backward; null: on the device.</summary>
    public InputStash? Inputs { get; init; }

    /// <summary>Where the attention layer of the block at hand keeps its state; null: nowhere.</summary>
    internal StateCache? States { get; init; }

    /// <summary>Which run of a block this is, where blocks run twice.</summary>
    internal RegionRun Run { get; init; }

    /// <summary>Positions of this rank's tokens, each in its document.</summary>
    public IReadOnlyList<PositionRun> Positions
    {
        get
        {
            (long start, long length) = (Partition.Start(Group.Rank), Partition.Length(Group.Rank));
            return Documents is null
                ? [new PositionRun(length, start)]
                : [.. Documents.Pieces(start, length).Select(piece => new PositionRun(piece.Length, start + piece.Start - Documents.Start(piece.Document)))];
        }
    }

    /// <summary>What an attention layer of this model says about its calls.</summary>
    internal AttentionOptions Attention(LinearLlamaConfig config) => new() { QueryHeads = config.NumAttentionHeads, Partition = Partition, Causal = config.IsDecoder, Documents = Documents, States = States };
}
