using LaspNative.Collectives;
using LaspNative.Runtime;
using Xunit;

namespace LaspNative.Tests.SoftmaxParallel;

/// <summary>What queries see, and what it costs the host to say so.</summary>
public class QueryRangesTests
{
    private const int Tokens = 32768;

    [Fact]
    public void Long_sequences_make_no_garbage_of_their_length()
    {
        using Device device = Device.Open("cpu:1");
        using ICommunicator group = new LocalGroup(1).Communicator(0, device);
        using Tensor k = Tensor.Zeros([1, Tokens, 1, 1], DType.F32, device), v = Tensor.Zeros([1, Tokens, 1, 1], DType.F32, device);
        var call = new SoftmaxCall(k, v, group, AttentionOptions.Default);
        new QueryRanges(call, [call.Sequence]).Dispose();
        long before = GC.GetAllocatedBytesForCurrentThread();
        using var ranges = new QueryRanges(call, [call.Sequence]);
        Assert.InRange(GC.GetAllocatedBytesForCurrentThread() - before, 1, 1024);
        long[] values = ranges.Values.ToArray<long>();
        Assert.Equal([Tokens, 2L], [ranges.Values.Shape[0], ranges.Values.Shape[1]]);
        Assert.All(Enumerable.Range(0, Tokens), token => Assert.Equal((0L, (long)token), (values[2 * token], values[(2 * token) + 1])));
    }
}
