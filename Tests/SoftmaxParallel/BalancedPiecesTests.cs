using LaspNative.Collectives;
using LaspNative.Runtime;
using LaspNative.Tests.Oracles;
using Xunit;

namespace LaspNative.Tests.SoftmaxParallel;

/// <summary>The zigzag assignment: which tokens a rank computes, how even that makes causal work, and that pieces arrive where they belong.</summary>
public class BalancedPiecesTests
{
    [Theory]
    [InlineData(2, 64)]
    [InlineData(4, 64)]
    [InlineData(8, 256)]
    public void Every_rank_computes_the_same_number_of_causal_pairs(int w, int n) => WithPieces(w, n, batch: 1, (call, pieces) =>
    {
        static long Pairs(IEnumerable<TokenSpan> spans) => spans.Sum(s => (s.Start + 1 + s.End) * s.Length / 2);
        long all = Pairs([call.Sequence]);
        Assert.Equal(all / w, Pairs(pieces.ComputedBy(call.Group.Rank)));
        if (call.Group.Rank == w - 1) Assert.Equal(2.0 - 1.0 / w, (double)Pairs([call.Chunk(w - 1)]) * w / all, 0.05);
    });

    [Theory]
    [InlineData(2, 1)]
    [InlineData(3, 7)]
    [InlineData(4, 61)]
    [InlineData(5, 5)]
    [InlineData(8, 3)]
    public void Every_token_is_computed_once(int w, int n) => WithPieces(w, n, batch: 1, (_, pieces) =>
    {
        IEnumerable<long> computed = Enumerable.Range(0, w).SelectMany(pieces.ComputedBy).SelectMany(s => Enumerable.Range(0, (int)s.Length).Select(i => s.Start + i));
        Assert.Equal(Enumerable.Range(0, n).Select(i => (long)i), computed.Order());
    });

    [Theory]
    [InlineData(2, 5, 1)]
    [InlineData(3, 31, 2)]
    [InlineData(4, 61, 2)]
    [InlineData(8, 3, 2)]
    [InlineData(8, 50, 1)]
    public void Pieces_arrive_in_order_and_come_back_to_their_tokens(int w, int n, int batch) => WithPieces(w, n, batch, (call, pieces) =>
    {
        using Tensor chunk = Tokens(call, call.Chunk(call.Group.Rank)), expected = Tokens(call, pieces.ComputedBy(call.Group.Rank));
        using TokenMessage sent = pieces.Send(chunk);
        using Tensor computed = sent.Take();
        Assert.Equal(expected.ToDoubles(), computed.ToDoubles());
        using Tensor returned = pieces.TakeReturned(pieces.Return(computed));
        Assert.Equal(chunk.ToDoubles(), returned.ToDoubles());
    });

    private static void WithPieces(int w, int n, int batch, Action<SoftmaxCall, BalancedPieces> test) => World.Run(new WorldOptions(DeviceKind.Cpu, w), rank =>
    {
        var options = new AttentionOptions { Partition = new SequencePartition(n, w) };
        using Tensor k = Tensor.Zeros([batch, options.Partition.Length(rank.Rank), 1, 1], DType.F32, rank.Device);
        var call = new SoftmaxCall(k, k, rank.World, options);
        test(call, new BalancedPieces(call));
    });

    /// <summary>[B, tokens, 1, 1] that say which token of which batch row they are.</summary>
    private static Tensor Tokens(SoftmaxCall call, params TokenSpan[] spans)
    {
        double[] row = [.. spans.SelectMany(s => Enumerable.Range(0, (int)s.Length).Select(i => (double)(s.Start + i)))];
        double[] values = [.. Enumerable.Range(0, (int)call.Batch).SelectMany(b => row.Select(x => 1000 * b + x))];
        return TestData.Tensor(values, [call.Batch, row.Length, 1, 1], DType.F32, call.Device);
    }
}
