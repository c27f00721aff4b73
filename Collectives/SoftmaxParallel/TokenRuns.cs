using LaspNative.Runtime;

namespace LaspNative.Collectives;

/// <summary>
/// Runs of tokens within tensors [B, tokens, heads, width]. A run is contiguous only where B = 1, and in the order [tokens, B, heads, width], which is how runs travel;
/// with B = 1 both orders are the same memory and nothing is copied.
/// </summary>
internal static class TokenRuns
{
    /// <summary>[B, tokens, ..] as [tokens, B, ..], and back. The caller owns the result.</summary>
    public static Tensor SwapBatchAndTokens(Tensor x)
    {
        Shape swapped = [x.Shape[1], x.Shape[0], x.Shape[2], x.Shape[3]];
        if (x.Shape[0] == 1 || x.Shape[1] == 1) return x.View(swapped);
        Tensor y = Tensor.Empty(swapped, x.DType, x.Device, MemoryCategory.Communication);
        x.Device.Backend.Permute(x, [1, 0, 2, 3], y);
        return y;
    }

    /// <summary>Tokens [start, start + length) of x [B, tokens, ..]. The caller owns the result.</summary>
    public static Tensor Cut(Tensor x, long start, long length)
    {
        using Tensor tokensFirst = SwapBatchAndTokens(x);
        using Tensor run = tokensFirst.Slice(start, length);
        return SwapBatchAndTokens(run);
    }

    /// <summary>The tokens of a, then those of b; both [B, tokens, ..]. The caller owns the result.</summary>
    public static Tensor Join(Tensor a, Tensor b)
    {
        if (a.Shape[1] == 0) return b.Share();
        if (b.Shape[1] == 0) return a.Share();
        using Tensor first = SwapBatchAndTokens(a), second = SwapBatchAndTokens(b);
        using Tensor both = Tensor.Empty([first.Shape[0] + second.Shape[0], first.Shape[1], first.Shape[2], first.Shape[3]], a.DType, a.Device, MemoryCategory.Communication);
        using Tensor head = both.Slice(0, first.Shape[0]), tail = both.Slice(first.Shape[0], second.Shape[0]);
        a.Device.Backend.Cast(first, head);
        a.Device.Backend.Cast(second, tail);
        return SwapBatchAndTokens(both);
    }
}
