using LaspNative.Runtime;
using Xunit;

namespace LaspNative.Tests.Backends;

/// <summary>Bounds and tokens that do not fit are refused before anything is written.</summary>
public class KeyRangesTests
{
    [Theory]
    [InlineData(new long[] { 0, 3, 8 }, 10, 0, "packed documents end at token 8 of a sequence of 10")]
    [InlineData(new long[] { 0 }, 10, 0, "the bounds of packed documents are I64 [documents + 1]")]
    [InlineData(new long[] { 0, 3, 10 }, 10, 7, "tokens [7, 11) do not lie in a sequence of 10")]
    [InlineData(new long[] { 0, 3, 10 }, 10, -1, "tokens [-1, 3) do not lie in a sequence of 10")]
    public void What_does_not_fit_is_refused(long[] bounds, long tokens, long first, string message)
    {
        using Device device = Device.Open("cpu:1");
        using Tensor starts = Tensor.FromSpan(bounds, [bounds.Length], device), ranges = Tensor.Zeros([4, 2], DType.I64, device);
        LaspException error = Assert.Throws<LaspException>(() => device.Backend.KeyRanges(starts, tokens, first, causal: true, ranges));
        Assert.Contains(message, error.Message, StringComparison.Ordinal);
        Assert.All(ranges.ToArray<long>(), x => Assert.Equal(0, x));
    }
}
