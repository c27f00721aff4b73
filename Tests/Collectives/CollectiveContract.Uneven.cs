using LaspNative.Collectives;
using LaspNative.Runtime;
using Xunit;

namespace LaspNative.Tests.Collectives;

// Blocks that differ in size from rank to rank, some of them empty.
public abstract partial class CollectiveContract
{
    private static readonly Func<int, long>[] s_blockSizes =
    [
        rank => 3 + (5 * rank) % 7,
        rank => rank % 2 == 0 ? 0 : 1000 + rank,
        rank => rank == 1 ? 4099 : 0,
        _ => 6,
        _ => 0,
    ];

    /// <summary>Runs the ranks once and the body for several lists of counts, counters at zero each time.</summary>
    private void RunBlocks(int ranks, DType dtype, Action<RankContext, long[]> body) => Run(ranks, dtype, r =>
    {
        foreach (Func<int, long> size in s_blockSizes)
        {
            r.World.Counters.Reset();
            body(r, [.. Enumerable.Range(0, ranks).Select(size)]);
        }
    });

    private static (int Rank, long Index) Owner(long[] counts, long element)
    {
        int rank = 0;
        for (; element >= counts[rank]; rank++) element -= counts[rank];
        return (rank, element);
    }

    private static double ValueOfOwner(long[] counts, long element)
    {
        (int rank, long index) = Owner(counts, element);
        return Value(rank, index);
    }

    [Theory, MemberData(nameof(Cases))]
    public void AllGather_concatenates_blocks_of_any_size(int ranks, DType dtype) => RunBlocks(ranks, dtype, (r, counts) =>
    {
        using Tensor source = Filled(r, dtype, counts[r.Rank], i => Value(r.Rank, i));
        using Tensor destination = Poisoned(r, dtype, counts.Sum());
        r.World.AllGather(source, destination, counts).Wait();
        Equal(counts.Sum(), i => ValueOfOwner(counts, i), destination);
        Counted(r, CollectiveKind.AllGather, (ranks - 1) * source.Bytes);
    });

    [Theory, MemberData(nameof(Cases))]
    public void ReduceScatter_sums_blocks_of_any_size(int ranks, DType dtype) => RunBlocks(ranks, dtype, (r, counts) =>
    {
        long first = counts.AsSpan(0, r.Rank).ToArray().Sum();
        using Tensor source = Filled(r, dtype, counts.Sum(), i => Value(r.Rank, i));
        using Tensor destination = Poisoned(r, dtype, counts[r.Rank]);
        r.World.ReduceScatter(source, destination, counts).Wait();
        Equal(counts[r.Rank], i => Enumerable.Range(0, ranks).Sum(p => Value(p, first + i)), destination);
        Counted(r, CollectiveKind.ReduceScatter, source.Bytes - destination.Bytes);
    });

    /// <summary>Every pair of ranks has its own count; rank a sends rank b a block whose values name both.</summary>
    [Theory, MemberData(nameof(Cases))]
    public void AllToAll_exchanges_blocks_of_any_size(int ranks, DType dtype) => RunBlocks(ranks, dtype, (r, counts) =>
    {
        long Size(int from, int to) => (from + 2 * to) % 3 == 0 ? 0 : counts[(from + to) % ranks] + to;
        static double Sent(int from, int to, long i) => Value(from + 3 * to, i);
        long[] send = [.. Enumerable.Range(0, ranks).Select(to => Size(r.Rank, to))];
        long[] receive = [.. Enumerable.Range(0, ranks).Select(from => Size(from, r.Rank))];
        using Tensor source = Filled(r, dtype, send.Sum(), i => Sent(r.Rank, Owner(send, i).Rank, Owner(send, i).Index));
        using Tensor destination = Poisoned(r, dtype, receive.Sum());
        r.World.AllToAll(source, send, destination, receive).Wait();
        Equal(receive.Sum(), i => Sent(Owner(receive, i).Rank, r.Rank, Owner(receive, i).Index), destination);
        Counted(r, CollectiveKind.AllToAll, (send.Sum() - send[r.Rank]) * dtype.Size());
    });

    /// <summary>Token ids travel too: messages and broadcasts move any type.</summary>
    [Theory, InlineData(1), InlineData(3)]
    public void Integers_are_sent_and_broadcast(int ranks) => Run(ranks, DType.F32, r =>
    {
        using Tensor ids = Tensor.FromSpan(r.Rank == 0 ? (int[])[7, -1, int.MaxValue] : new int[3], [3], r.Device);
        r.World.Broadcast(ids, 0).Wait();
        Assert.Equal([7, -1, int.MaxValue], ids.ToArray<int>());
        using Tensor marks = Tensor.FromSpan(r.Rank == 0 ? (long[])[1L << 40, -5] : new long[2], [2], r.Device);
        if (r.Rank > 0) r.World.Receive(marks, r.Rank - 1).Wait();
        if (r.Rank < ranks - 1) r.World.Send(marks, r.Rank + 1).Wait();
        Assert.Equal([1L << 40, -5], marks.ToArray<long>());
    });

    [Fact]
    public void Counts_that_do_not_fit_are_refused_in_one_line() => Run(2, DType.F32, r =>
    {
        using Tensor five = Filled(r, DType.F32, 5, i => i);
        using Tensor six = Filled(r, DType.F32, 6, i => i);
        Refused($"AllGather on rank {r.Rank}: 3 counts for 2 ranks; give one per rank", () => r.World.AllGather(five, six, [1, 2, 3]));
        Refused($"AllGather on rank {r.Rank}: the destination [6] has 6 elements, 10 are needed (the sum of the 2 counts)", () => r.World.AllGather(five, six, [5, 5]));
        Refused($"ReduceScatter on rank {r.Rank}: a count is -1; counts are numbers of elements, 0 or more", () => r.World.ReduceScatter(six, five, [-1, 7]));
        Refused($"ReduceScatter on rank {r.Rank}: the destination [5] has 5 elements, 3 are needed (the count of rank {r.Rank})", () => r.World.ReduceScatter(six, five, [3, 3]));
        Refused($"AllToAll on rank {r.Rank}: it sends itself {2 + r.Rank} elements but expects {3 - r.Rank}; both need one count", () => r.World.AllToAll(five, [2, 3], five, [3, 2]));
        Assert.Equal(0, r.World.Counters.BytesSent);
    });
}
