using LaspNative.Collectives;
using LaspNative.Runtime;
using Xunit;

namespace LaspNative.Tests.SoftmaxParallel;

/// <summary>Bytes sent per rank and layer: what the communicator counts is each strategy's formula, on every rank, chunks of any length.</summary>
public class SoftmaxBytesTests
{
    private static readonly WorldOptions s_cpu = new(DeviceKind.Cpu);

    [Theory]
    [InlineData(1, 9)]
    [InlineData(2, 1)]
    [InlineData(2, 37)]
    [InlineData(3, 38)]
    [InlineData(4, 3)]
    [InlineData(4, 45)]
    [InlineData(8, 61)]
    public void Counters_hold_the_prediction(int w, int n)
    {
        foreach (string strategy in SoftmaxMatrixTests.Names)
        {
            foreach (int batch in new[] { 1, 2 })
            {
                var @case = new SoftmaxCase(strategy, w, n, DType.BF16) { B = batch };
                @case.Errors(s_cpu, (rank, sent) => Assert.True((sent.Forward, sent.Backward) == sent.Predicted, $"{@case} on rank {rank}: {sent}"));
            }
        }
    }

    /// <summary>Even chunks, where the formulas are short: C = 8 of N = 32 tokens on 4 ranks, 6 query and 3 key/value heads (Ulysses: 8 and 4), D = 8, E = 12, bf16.</summary>
    [Theory]
    [InlineData("allgather", 3 * 8 * 60 * 2, 3 * 8 * 60 * 2 + 24 * 60 * 4)]
    [InlineData("ring", 3 * 8 * 60 * 2, 3 * 8 * 60 * 2 + 32 * 60 * 4)]
    [InlineData("ulysses", (8 * (64 + 80) * 3 + 24 * 96) / 4 * 2, (8 * 96 * 3 + 24 * (64 + 80)) / 4 * 2)]
    public void Even_chunks_send_what_the_table_of_strategies_says(string strategy, long forward, long backward) =>
        new SoftmaxCase(strategy, 4, 32, DType.BF16).Errors(s_cpu, (_, sent) => Assert.Equal((forward, backward), (sent.Forward, sent.Backward)));

    /// <summary>On 4 ranks the middle ranks' halves all move, and of the first and the last rank one each: rank 0 keeps piece 0, rank 2 piece 5 for itself.</summary>
    [Fact]
    public void Balanced_queries_add_the_pieces_that_move()
    {
        const int queryBytes = 6 * 8 * 2, outputBytes = 6 * 12 * 2, gather = 3 * 8 * 60 * 2, reduce = 24 * 60 * 4;
        long[] moving = [4, 8, 4, 8];
        new SoftmaxCase("allgather-balanced", 4, 32, DType.BF16).Errors(s_cpu, (rank, sent) =>
        {
            Assert.Equal(gather + moving[rank] * (queryBytes + outputBytes), sent.Forward);
            Assert.Equal(gather + reduce + moving[rank] * (queryBytes + outputBytes), sent.Backward);
        });
    }

    [Fact]
    public void A_gather_that_is_kept_is_not_sent_again() =>
        new SoftmaxCase("allgather", 4, 32, DType.BF16) { KeepsKeysAndValues = true }.Errors(s_cpu, (_, sent) =>
        {
            Assert.Equal(24 * 60 * 4, sent.Backward);
            Assert.Equal((sent.Forward, sent.Backward), sent.Predicted);
        });
}
