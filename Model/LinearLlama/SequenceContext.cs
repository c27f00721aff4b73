using LaspNative.Collectives;

namespace LaspNative.Model;

/// <summary>Where a forward pass runs: the ranks among which each sequence is divided, how, and by which strategies its layers exchange what they must.</summary>
/// <param name="Group">The sequence-parallel group, of this rank.</param>
/// <param name="Strategy">Of the linear layers.</param>
/// <param name="SoftmaxStrategy">Of the softmax layers.</param>
/// <param name="Partition">Which tokens of a sequence each rank of the group holds.</param>
public sealed record SequenceContext(ICommunicator Group, SequenceParallel Strategy, SoftmaxParallel SoftmaxStrategy, SequencePartition Partition)
{
    /// <summary>Position of this rank's first token in the whole sequence.</summary>
    public long FirstPosition => Partition.Start(Group.Rank);

    /// <summary>What an attention layer of this model says about its calls.</summary>
    internal AttentionOptions Attention(LinearLlamaConfig config) => new() { QueryHeads = config.NumAttentionHeads, Partition = Partition, Causal = config.IsDecoder };
}
