namespace LaspNative.Runtime;

/// <summary>The checks of <see cref="IBackend.KeyRanges"/>, the same on every device.</summary>
internal static class KeyRangesExtents
{
    /// <summary>How many tokens are asked for. Throws when the tensors do not fit.</summary>
    public static long Require(Tensor? bounds, long tokens, long firstToken, Tensor ranges)
    {
        if (bounds is not null && (bounds.DType != DType.I64 || bounds.Shape.Rank != 1 || bounds.Count < 2))
            throw new LaspException($"the bounds of packed documents are I64 [documents + 1], got {bounds}");
        if (ranges.DType != DType.I64 || ranges.Shape.Rank != 2 || ranges.Shape[1] != 2) throw new LaspException($"ranges are I64 [tokens, 2], got {ranges}");
        long count = ranges.Shape[0];
        if (firstToken < 0 || firstToken > tokens - count) throw new LaspException($"tokens [{firstToken}, {firstToken + count}) do not lie in a sequence of {tokens}");
        return count;
    }
}
