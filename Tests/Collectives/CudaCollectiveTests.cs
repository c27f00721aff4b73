using LaspNative.Collectives;
using LaspNative.Runtime;
using LaspNative.Runtime.Cuda;
using Xunit;

namespace LaspNative.Tests.Collectives;

/// <summary>Virtual ranks: threads that share one GPU.</summary>
[Trait("Category", "Gpu")]
public sealed class VirtualRankTests : CollectiveContract
{
    private protected override Action Start(int ranks, DType dtype, Action<RankContext> body)
    {
        Gpu.Require();
        if (dtype == DType.F64) Assert.Skip("skipped: F64 tensors live on the CPU only");
        return () => World.Run(new WorldOptions(DeviceKind.Cuda, ranks, VirtualRanks: true), body);
    }

    [Fact]
    public void Different_operations_fail_on_every_rank()
    {
        var errors = new Exception?[3];
        Run(3, DType.F32, r => errors[r.Rank] = Record.Exception(() =>
        {
            using Tensor tensor = Filled(r, DType.F32, 4, i => i);
            using Tensor all = Poisoned(r, DType.F32, 12);
            (r.Rank == 2 ? r.World.AllGather(tensor, all) : r.World.AllReduce(tensor)).Wait();
        }));
        Assert.All(errors, e => Assert.Contains("called AllGather of 4 F32 elements", Assert.IsType<GroupFailedException>(e).Message, StringComparison.Ordinal));
    }

    /// <summary>After Wait the source of a message may be freed and its memory written again, however late the communication stream is.</summary>
    [Fact]
    public void Memory_of_a_sent_message_is_free_only_when_it_has_been_read() => Run(2, DType.F32, r =>
    {
        const int Count = 1 << 16;
        var device = (CudaDevice)r.Device;
        using Tensor big = Tensor.Zeros([1 << 28], DType.F32, device);
        using Tensor copy = Tensor.Zeros([1 << 28], DType.F32, device);
        r.World.Barrier();
        for (int round = 1; round <= 4; round++)
        {
            if (r.Rank == 0)
            {
                for (int i = 0; i < 4; i++) device.CommunicationStream.CopyAsync(big.Pointer, copy.Pointer, big.Bytes);
                using (Tensor message = Filled(r, DType.F32, Count, _ => round)) r.World.Send(message, 1).Wait();
                using Tensor next = Filled(r, DType.F32, Count, _ => -1);
            }
            else
            {
                using Tensor message = Poisoned(r, DType.F32, Count);
                r.World.Receive(message, 0).Wait();
                Assert.All(message.ToDoubles(), v => Assert.Equal(round, v));
            }
        }
    });

    /// <summary>A message does not wait for compute work that was queued after it, and compute work queued after its Wait sees it.</summary>
    [Fact]
    public void Messages_and_compute_work_are_ordered_both_ways() => Run(4, DType.F32, r =>
    {
        const int Count = 1 << 18;
        using Tensor source = Filled(r, DType.F32, Count, i => 0);
        using Tensor destination = Poisoned(r, DType.F32, 4 * Count);
        for (int round = 1; round <= 20; round++)
        {
            r.Device.Backend.Fill(round * 10 + r.Rank, source);
            r.Device.Backend.Fill(double.NaN, destination);
            r.World.AllGather(source, destination).Wait();
            r.Device.Backend.Fill(-1, source);
            double[] values = destination.ToDoubles();
            for (int rank = 0; rank < 4; rank++) Assert.All(values[(rank * Count)..(rank * Count + 64)], v => Assert.Equal(round * 10 + rank, v));

            r.Device.Backend.Fill(r.Rank == 3 ? round : double.NaN, destination);
            r.World.Broadcast(destination, 3).Wait();
            Assert.All(destination.ToDoubles()[^64..], v => Assert.Equal(round, v));
        }
    });
}

/// <summary>One GPU per rank, through NCCL, ranks as threads.</summary>
[Trait("Category", "TwoGpus")]
[Collection(nameof(OverNccl))]
public sealed class NcclTests : CollectiveContract
{
    private protected override Action Start(int ranks, DType dtype, Action<RankContext> body)
    {
        Gpu.Require(ranks);
        if (dtype == DType.F64) Assert.Skip("skipped: F64 tensors live on the CPU only");
        return () => World.Run(new WorldOptions(DeviceKind.Cuda, ranks), body);
    }

    /// <summary>Four messages of up to 4 MiB from each rank on their way; two flags for each, one for each of 16 pieces, and a table of 4096 numbers.</summary>
    private protected override long SetAside(int ranks) => LaspOptions.Current.PeerCopies && Gpu.ReachOneAnother(ranks) ? (4L * ranks << 22) + (sizeof(uint) * ((4 * ((2 * ranks) + 16)) + 4096)) : 0;

    /// <summary>What others' copy engines write into, on the ledger: 6 pieces to be summed and 2 to be kept on their way from every other rank, each of 64 MiB over all ranks. Off it when the world has ended, or failed.</summary>
    [Theory]
    [InlineData(2, false)]
    [InlineData(2, true)]
    [InlineData(3, false)]
    public void Memory_for_copy_engines_is_communication_memory(int ranks, bool fails)
    {
        var ledgers = new MemoryLedger[ranks];
        var held = new long[ranks];
        Exception? error = Record.Exception(() => Run(ranks, DType.F32, r =>
        {
            ledgers[r.Rank] = r.Device.Memory;
            using ICommunicator background = r.World.Background();
            Assert.Equal(LaspOptions.Current.PeerSums && Gpu.ReachOneAnother(ranks), background.LeavesComputeAlone);
            held[r.Rank] = r.Device.Memory.CurrentOf(MemoryCategory.Communication);
            if (fails && r.Rank == 0) throw new LaspException("the disk is full");
            r.World.Barrier();
        }));
        Assert.Equal(fails ? "the disk is full" : null, error?.Message);
        long sums = LaspOptions.Current.PeerSums && Gpu.ReachOneAnother(ranks) ? ((6 + 2) * (ranks - 1) * ((64L << 20) / ranks / 256 * 256)) + (sizeof(uint) * 2 * ((2 * ranks) + 4096)) : 0;
        Assert.All(held, bytes => Assert.Equal(SetAside(ranks) + sums, bytes));
        Assert.All(ledgers, ledger => Assert.Equal(0, ledger.CurrentOf(MemoryCategory.Communication)));
    }

    [Fact]
    public void More_ranks_than_gpus_are_refused_with_the_way_out()
    {
        Gpu.Require();
        LaspException error = Assert.Throws<LaspException>(() => World.Run(new WorldOptions(DeviceKind.Cuda, 1000), _ => { }));
        Assert.Contains("GPUs for 1000 ranks; use --virtual-ranks to share one", error.Message, StringComparison.Ordinal);
    }

    [Theory]
    [InlineData(2, DType.F32)]
    [InlineData(2, DType.BF16)]
    [InlineData(3, DType.F32)]
    [InlineData(4, DType.BF16)]
    public void Copy_engines_sum_and_gather_long_tensors(int ranks, DType dtype)
    {
        Gpu.RequirePeers(ranks);
        Run(ranks, dtype, r => PeerShardsCheck.Run(r, dtype));
    }

    /// <summary>What a rank keeps goes with the rest, also where there is nothing else: behind the work that makes it, before the work that reads it or writes its source anew.</summary>
    [Theory]
    [InlineData(true)]
    [InlineData(false)]
    public void AllToAll_of_what_a_rank_keeps_is_ordered_with_compute_work(bool alone) => Run(2, DType.F32, r =>
    {
        const int Kept = 1 << 26, Sent = 1000;
        long[] send = [Sent, Sent], receive = [Sent, Sent];
        if (alone) (send[1 - r.Rank], receive[1 - r.Rank]) = (0, 0);
        send[r.Rank] = receive[r.Rank] = Kept;
        using Tensor source = Poisoned(r, DType.F32, send.Sum());
        using Tensor destination = Poisoned(r, DType.F32, receive.Sum());
        for (int round = 1; round <= 3; round++)
        {
            for (int i = 0; i < 100; i++) r.Device.Backend.Fill(-1, source);
            r.Device.Backend.Fill((round * 10) + r.Rank, source);
            r.World.AllToAll(source, send, destination, receive).Wait();
            r.Device.Backend.Fill(-1, source);
            for (int rank = 0; rank < 2; rank++)
            {
                long start = rank == 0 ? 0 : receive[0];
                if (receive[rank] == 0) continue;
                using Tensor part = destination.Slice(start, receive[rank]);
                foreach (long probe in (long[])[0, part.Count / 2, part.Count - 1])
                {
                    using Tensor one = part.Slice(probe, 1);
                    Assert.Equal((round * 10) + rank, one.ToDoubles()[0]);
                }
            }
        }
    });

    /// <summary>Numbers of messages are compared modulo 4096, and a gather or a relay the other way leaves the flags of thousands of relays alone: each still waits for a sender that is late.</summary>
    [Fact]
    public void Thousands_of_relays_let_no_other_message_pass_early() => Run(2, DType.F32, r =>
    {
        const int Count = 1000;
        using Tensor block = Filled(r, DType.F32, Count, _ => -1), load = Tensor.Zeros([1 << 26], DType.F32, r.Device);
        foreach (int relays in (int[])[1500, 1000, 1500])
        {
            for (int i = 0; i < relays; i++) Relay(from: 0).Dispose();
            using BlockRelay back = Relay(from: 1, isLate: true, value: relays);
            if (back.Block is { } came) Equal(Count, _ => relays, came);
            if (r.Rank == 0) Late(relays + 1);
            using BlockGather gather = r.World.Gather(block);
            gather.Wait(0, 1);
            using Tensor first = gather.Blocks.Slice(0, 1);
            Equal(Count, _ => relays + 1, first);
        }

        BlockRelay Relay(int from, bool isLate = false, double value = 0)
        {
            BlockRelay relay = r.World.Relay(block.Shape, block.DType, 1, from: r.Rank == from ? null : from, to: r.Rank == from ? 1 - from : null);
            if (r.Rank == from)
            {
                if (isLate) Late(value);
                relay.Send(block);
            }
            else relay.Wait(1);
            return relay;
        }

        void Late(double value)
        {
            for (int i = 0; i < 100; i++) r.Device.Backend.Fill(0, load);
            r.Device.Backend.Fill(value, block);
        }
    });

    [Fact]
    public void A_group_of_one_joins_and_leaves()
    {
        using CudaDevice device = Gpu.Open();
        using (var communicator = new NcclCommunicator(device, 0, 1, NcclCommunicator.NewUniqueId()))
        {
            communicator.Barrier();
            communicator.Abort(new LaspException("enough"));
            Assert.Contains("enough", Assert.Throws<GroupFailedException>(communicator.Barrier).Message, StringComparison.Ordinal);
        }
        Assert.Equal(0, device.Memory.Current);
    }
}
