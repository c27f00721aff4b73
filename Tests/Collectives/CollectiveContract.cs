using LaspNative.Collectives;
using LaspNative.Runtime;
using Xunit;

namespace LaspNative.Tests.Collectives;

/// <summary>
/// What every communicator must do, against plain concatenation and summation of the ranks' values. Each transport runs all of it.
/// Values are small integers, so that sums are exact in every type and every order.
/// </summary>
public abstract partial class CollectiveContract
{
    private static readonly TimeSpan s_limit = TimeSpan.FromSeconds(60);

    public static TheoryData<int, DType> Cases
    {
        get
        {
            var cases = new TheoryData<int, DType>();
            foreach (int ranks in (int[])[1, 2, 3, 4, 8])
                foreach (DType dtype in (DType[])[DType.F32, DType.F64, DType.BF16]) cases.Add(ranks, dtype);
            return cases;
        }
    }

    /// <summary>What runs the ranks; skips when this machine cannot.</summary>
    private protected abstract Action Start(int ranks, DType dtype, Action<RankContext> body);

    /// <summary>Bytes that each of the world's ranks holds for messages as long as the world lives.</summary>
    private protected virtual long SetAside(int ranks) => 0;

    /// <summary>Runs the ranks; a hang is a failure, not a stop.</summary>
    protected void Run(int ranks, DType dtype, Action<RankContext> body)
    {
        Task run = Task.Factory.StartNew(Start(ranks, dtype, body), TaskCreationOptions.LongRunning);
        Assert.True(((IAsyncResult)run).AsyncWaitHandle.WaitOne(s_limit), "the ranks hang");
        run.GetAwaiter().GetResult();
    }

    /// <summary>Runs the ranks once and the body for several sizes, counters at zero each time.</summary>
    private void RunSizes(int ranks, DType dtype, Action<RankContext, long> body) => Run(ranks, dtype, r =>
    {
        foreach (long count in (long[])[1, 7, 1000, 4099])
        {
            r.World.Counters.Reset();
            body(r, count);
        }
    });

    /// <summary>Element i of rank r's tensor: different for every rank and element, small.</summary>
    private protected static double Value(int rank, long i) => ((i * 7 + rank * 5 + i / 13) % 31) - 15;

    private protected static Tensor Filled(RankContext rank, DType dtype, long count, Func<long, double> value)
    {
        var values = new double[count];
        for (long i = 0; i < count; i++) values[i] = value(i);
        return dtype switch
        {
            DType.F64 => Tensor.FromSpan(values, [count], rank.Device),
            DType.F32 => Tensor.FromSpan(Array.ConvertAll(values, x => (float)x), [count], rank.Device),
            _ => Tensor.FromSpan(Array.ConvertAll(values, x => (BF16)(float)x), [count], rank.Device),
        };
    }

    private protected static Tensor Poisoned(RankContext rank, DType dtype, long count) => Filled(rank, dtype, count, _ => double.NaN);

    /// <summary>More gathers than fit at once, of sizes that change, each read while the next is under way; at the end more are held than there is room for.</summary>
    [Theory]
    [MemberData(nameof(Cases))]
    public void Gather_shows_the_blocks_of_all_ranks_where_they_arrive(int ranks, DType dtype) => RunSizes(ranks, dtype, (r, count) =>
    {
        const int Rounds = 11;
        var held = new Queue<(BlockGather Gather, Tensor Source, int Round)>();
        for (int round = 0; round < Rounds; round++)
        {
            Tensor source = Filled(r, dtype, count + round, i => Value(r.Rank + round, i));
            held.Enqueue((r.World.Gather(source), source, round));
            if (round < 6) Check();
        }
        while (held.Count > 0) Check();
        Assert.Equal((r.Size - 1) * dtype.Size() * Enumerable.Range(0, Rounds).Sum(round => count + round), r.World.Counters.BytesSent);

        void Check()
        {
            (BlockGather gather, Tensor source, int round) = held.Dequeue();
            using (source)
            using (gather)
            {
                gather.Wait(0, r.Size);
                Equal(r.Size * (count + round), i => Value((int)(i / (count + round)) + round, i % (count + round)), gather.Blocks);
            }
        }
    });

    /// <summary>Long enough for several pieces, and for more than may be under way at once.</summary>
    [Theory]
    [InlineData(2)]
    [InlineData(3)]
    public void A_group_in_the_background_sums_what_the_group_sums(int ranks) => Run(ranks, DType.F32, r =>
    {
        using ICommunicator background = r.World.Background();
        Assert.Equal((r.World.Rank, r.World.Size), (background.Rank, background.Size));
        foreach (long count in (long[])[1, 1 << 18, (1 << 18) + 4099])
        {
            using Tensor tensor = Filled(r, DType.F32, count, i => Value(r.Rank, i));
            background.AllReduce(tensor).Wait();
            Equal(count, i => Enumerable.Range(0, ranks).Sum(rank => Value(rank, i)), tensor);
        }
    });

    private protected static void Equal(long count, Func<long, double> expected, Tensor actual)
    {
        var values = new double[count];
        for (long i = 0; i < count; i++) values[i] = expected(i);
        Assert.Equal(values, actual.ToDoubles());
    }

    [Theory, MemberData(nameof(Cases))]
    public void AllGather_concatenates_in_rank_order(int ranks, DType dtype) => RunSizes(ranks, dtype, (r, count) =>
    {
        using Tensor source = Filled(r, dtype, count, i => Value(r.Rank, i));
        using Tensor destination = Poisoned(r, dtype, ranks * count);
        r.World.AllGather(source, destination).Wait();
        Equal(ranks * count, i => Value((int)(i / count), i % count), destination);
        Counted(r, CollectiveKind.AllGather, (ranks - 1) * source.Bytes);
    });

    [Theory, MemberData(nameof(Cases))]
    public void AllReduce_sums(int ranks, DType dtype) => RunSizes(ranks, dtype, (r, count) =>
    {
        using Tensor tensor = Filled(r, dtype, count, i => Value(r.Rank, i));
        r.World.AllReduce(tensor).Wait();
        Equal(count, i => Enumerable.Range(0, ranks).Sum(p => Value(p, i)), tensor);
        Counted(r, CollectiveKind.AllReduce, 2 * (ranks - 1) * tensor.Bytes / ranks);
    });

    [Theory, MemberData(nameof(Cases))]
    public void ReduceScatter_sums_each_ranks_part(int ranks, DType dtype) => RunSizes(ranks, dtype, (r, count) =>
    {
        using Tensor source = Filled(r, dtype, ranks * count, i => Value(r.Rank, i));
        using Tensor destination = Poisoned(r, dtype, count);
        r.World.ReduceScatter(source, destination).Wait();
        Equal(count, i => Enumerable.Range(0, ranks).Sum(p => Value(p, r.Rank * count + i)), destination);
        Counted(r, CollectiveKind.ReduceScatter, (ranks - 1) * destination.Bytes);
    });

    [Theory, MemberData(nameof(Cases))]
    public void A_gather_and_a_reduce_scatter_may_use_the_ranks_own_block_in_place(int ranks, DType dtype) => RunSizes(ranks, dtype, (r, count) =>
    {
        using Tensor all = Filled(r, dtype, ranks * count, i => Value(r.Rank, i));
        using Tensor own = all.Slice(r.Rank * count, count);
        r.World.ReduceScatter(all, own).Wait();
        Equal(count, i => Enumerable.Range(0, ranks).Sum(p => Value(p, r.Rank * count + i)), own);
        r.World.AllGather(own, all).Wait();
        Equal(ranks * count, i => Enumerable.Range(0, ranks).Sum(p => Value(p, i)), all);
    });

    [Theory, MemberData(nameof(Cases))]
    public void Broadcast_copies_from_every_root(int ranks, DType dtype) => RunSizes(ranks, dtype, (r, count) =>
    {
        for (int root = 0; root < ranks; root++)
        {
            using Tensor tensor = r.Rank == root ? Filled(r, dtype, count, i => Value(root, i)) : Poisoned(r, dtype, count);
            r.World.Broadcast(tensor, root).Wait();
            Equal(count, i => Value(root, i), tensor);
        }
        Counted(r, CollectiveKind.Broadcast, (ranks - 1) * count * dtype.Size());
    });

    [Theory, MemberData(nameof(Cases))]
    public void AllToAll_transposes_blocks(int ranks, DType dtype) => RunSizes(ranks, dtype, (r, count) =>
    {
        using Tensor source = Filled(r, dtype, ranks * count, i => Value(r.Rank, i));
        using Tensor destination = Poisoned(r, dtype, ranks * count);
        r.World.AllToAll(source, destination).Wait();
        Equal(ranks * count, i => Value((int)(i / count), r.Rank * count + (i % count)), destination);
        Counted(r, CollectiveKind.AllToAll, (ranks - 1) * source.Bytes / ranks);
    });

    [Theory, MemberData(nameof(Cases))]
    public void SendReceive_turns_a_ring(int ranks, DType dtype) => RunSizes(ranks, dtype, (r, count) =>
    {
        int next = (r.Rank + 1) % ranks, previous = (r.Rank + ranks - 1) % ranks;
        using Tensor source = Filled(r, dtype, count, i => Value(r.Rank, i));
        using Tensor destination = Poisoned(r, dtype, count);
        r.World.SendReceive(source, next, destination, previous).Wait();
        Equal(count, i => Value(previous, i), destination);
        Counted(r, CollectiveKind.SendReceive, ranks == 1 ? 0 : source.Bytes);
    });

    [Theory, MemberData(nameof(Cases))]
    public void Send_and_receive_pass_down_a_chain(int ranks, DType dtype) => RunSizes(ranks, dtype, (r, count) =>
    {
        using Tensor tensor = r.Rank == 0 ? Filled(r, dtype, count, i => Value(0, i)) : Poisoned(r, dtype, count);
        if (r.Rank > 0) r.World.Receive(tensor, r.Rank - 1).Wait();
        if (r.Rank < ranks - 1) r.World.Send(tensor, r.Rank + 1).Wait();
        Equal(count, i => Value(0, i), tensor);
        Counted(r, CollectiveKind.SendReceive, r.Rank == ranks - 1 ? 0 : tensor.Bytes);
    });

    /// <summary>Several operations in flight, waited for after other work and in another order.</summary>
    [Theory, InlineData(2), InlineData(3), InlineData(4), InlineData(8)]
    public void Operations_overlap(int ranks) => Run(ranks, DType.F32, r =>
    {
        const int Count = 513, Flights = 6;
        var sources = new Tensor[Flights];
        var destinations = new Tensor[Flights];
        var works = new CommunicationWork[Flights];
        for (int f = 0; f < Flights; f++)
        {
            int flight = f;
            sources[f] = Filled(r, DType.F32, Count, i => Value(r.Rank + flight, i));
            destinations[f] = Poisoned(r, DType.F32, ranks * Count);
            works[f] = f % 2 == 0 ? r.World.AllGather(sources[f], destinations[f]) : r.World.AllReduce(sources[f]);
        }
        Thread.Sleep(20 * r.Rank);
        for (int f = Flights - 1; f >= 0; f--)
        {
            int flight = f;
            works[f].Wait();
            if (f % 2 == 0) Equal(ranks * Count, i => Value((int)(i / Count) + flight, i % Count), destinations[f]);
            else Equal(Count, i => Enumerable.Range(0, ranks).Sum(p => Value(p + flight, i)), sources[f]);
        }
        foreach (Tensor tensor in (Tensor[])[.. sources, .. destinations]) tensor.Dispose();
    });

    [Theory, InlineData(2), InlineData(4)]
    public void Many_rounds_leave_no_memory(int ranks) => Run(ranks, DType.F32, r =>
    {
        for (int round = 0; round < 50; round++)
        {
            using Tensor tensor = Filled(r, DType.F32, 100 + round, i => Value(r.Rank, i));
            using Tensor all = Poisoned(r, DType.F32, ranks * tensor.Count);
            CommunicationWork gather = r.World.AllGather(tensor, all);
            gather.Wait();
            r.World.AllReduce(tensor).Wait();
        }
        r.World.Barrier();
        r.World.Barrier();
        Assert.Equal(SetAside(ranks), r.Device.Memory.CurrentOf(MemoryCategory.Communication));
        Assert.Equal(0, r.Device.Memory.CurrentOf(MemoryCategory.Activations));
    });

    [Theory, InlineData(2, DType.F32), InlineData(3, DType.F32), InlineData(4, DType.BF16), InlineData(8, DType.BF16)]
    public void Every_rank_gets_the_same_bits(int ranks, DType dtype)
    {
        var sums = new double[ranks][];
        Run(ranks, dtype, r =>
        {
            var random = new Random(17 + r.Rank);
            using Tensor tensor = Filled(r, dtype, 3001, _ => random.NextDouble() - 0.5);
            r.World.AllReduce(tensor).Wait();
            sums[r.Rank] = tensor.ToDoubles();
        });
        Assert.All(sums, s => Assert.Equal(sums[0], s));
    }

    [Theory, InlineData(2), InlineData(4)]
    public void A_failing_rank_ends_the_others_and_its_error_is_thrown(int ranks)
    {
        LaspException error = Assert.Throws<LaspException>(() => Run(ranks, DType.F32, r =>
        {
            using Tensor tensor = Filled(r, DType.F32, 10, i => i);
            r.World.AllReduce(tensor).Wait();
            if (r.Rank == 1) throw new LaspException("the disk is full");
            for (int i = 0; i < 3; i++) r.World.AllReduce(tensor).Wait();
            r.World.Barrier();
        }));
        Assert.Equal("the disk is full", error.Message);
    }

    [Fact]
    public void Operands_that_do_not_fit_are_refused_in_one_line() => Run(2, DType.F32, r =>
    {
        using Tensor five = Filled(r, DType.F32, 5, i => i);
        using Tensor six = Filled(r, DType.F32, 6, i => i);
        using Tensor half = Filled(r, DType.BF16, 10, i => i);
        using Tensor whole = Tensor.FromSpan([1, 2, 3], [3], r.Device);
        Refused($"AllGather on rank {r.Rank}: the destination [6] has 6 elements, 10 are needed (2 ranks x [5])", () => r.World.AllGather(five, six));
        Refused($"AllGather on rank {r.Rank}: the source is F32, the destination BF16; both need one type", () => r.World.AllGather(five, half));
        Refused($"AllReduce on rank {r.Rank} sums floating-point tensors only, got I32 [3]; cast it first", () => r.World.AllReduce(whole));
        Refused($"AllToAll on rank {r.Rank}: 5 elements do not divide among 2 ranks", () => r.World.AllToAll(five, five));
        Refused($"Broadcast on rank {r.Rank}: rank 2 is not in this group of 2", () => r.World.Broadcast(five, 2));
        Refused($"Send on rank {r.Rank}: a rank cannot be its own peer here; copy the tensor, or send to and receive from itself with one SendReceive", () => r.World.Send(five, r.Rank));
        Assert.Equal(0, r.World.Counters.BytesSent);
    });

    private static void Refused(string message, Func<CommunicationWork> operation) => Assert.Equal(message, Assert.Throws<LaspException>(operation).Message);

    private static void Counted(RankContext rank, CollectiveKind kind, long bytes)
    {
        Assert.Equal(bytes, rank.World.Counters.BytesSentBy(kind));
        Assert.Equal(bytes, rank.World.Counters.BytesSent);
        Assert.Equal(bytes == 0 ? 0 : 1, rank.World.Counters.Messages);
    }
}
