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

/// <summary>One softmax-attention call as a strategy sees it.</summary>
public sealed class SoftmaxCall : SequenceCall
{
    internal SoftmaxCall(Tensor k, Tensor v, ICommunicator group, AttentionOptions options) : base(k, v, group, options) { }

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
