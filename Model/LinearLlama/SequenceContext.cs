using LaspNative.Collectives;

namespace LaspNative.Model;

/// <summary>Where a forward pass runs: the ranks among which each sequence is divided, how, and by which strategy their states are exchanged.</summary>
/// <param name="Group">The sequence-parallel group, of this rank.</param>
/// <param name="Partition">Which tokens of a sequence each rank of the group holds.</param>
public sealed record SequenceContext(ICommunicator Group, SequenceParallel Strategy, SequencePartition Partition)
{
    /// <summary>Position of this rank's first token in the whole sequence.</summary>
    public long FirstPosition => Partition.Start(Group.Rank);
}
