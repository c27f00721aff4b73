using LaspNative.Collectives;
using LaspNative.Runtime;
using LaspNative.Runtime.Cpu;
using Xunit;

namespace LaspNative.Tests.Collectives;

/// <summary>Ranks as threads on the CPU: the contract, and what happens when ranks disagree.</summary>
public sealed class LocalCpuTests : CollectiveContract
{
    private protected override Action Start(int ranks, DType dtype, Action<RankContext> body) => () => World.Run(new WorldOptions(DeviceKind.Cpu, ranks), body);

    [Fact]
    public void Different_operations_fail_on_every_rank() => EveryRankFails(3, "called AllGather of 4 F32 elements", r =>
    {
        using Tensor tensor = Filled(r, DType.F32, 4, i => i);
        using Tensor all = Poisoned(r, DType.F32, 12);
        (r.Rank == 2 ? r.World.AllGather(tensor, all) : r.World.AllReduce(tensor)).Wait();
    });

    [Fact]
    public void Different_sizes_fail_on_every_rank() => EveryRankFails(4, "5 F32 elements", r =>
    {
        using Tensor tensor = Filled(r, DType.F32, r.Rank == 1 ? 5 : 4, i => i);
        r.World.AllReduce(tensor).Wait();
    });

    [Fact]
    public void A_message_of_another_size_fails_on_every_rank() => EveryRankFails(2, "message of 5 F32 elements", r =>
    {
        using Tensor tensor = Filled(r, DType.F32, r.Rank == 1 ? 5 : 4, i => i);
        r.World.SendReceive(tensor, 1 - r.Rank, tensor, 1 - r.Rank).Wait();
    });

    [Fact]
    public void Different_counts_fail_on_every_rank() => EveryRankFails(2, "AllGather of [", r =>
    {
        using Tensor tensor = Filled(r, DType.F32, r.Rank == 0 ? 2 : 4, i => i);
        using Tensor all = Poisoned(r, DType.F32, 5);
        r.World.AllGather(tensor, all, r.Rank == 0 ? [2, 3] : [1, 4]).Wait();
    });

    [Fact]
    public void A_part_of_another_size_ends_the_group()
    {
        LaspException error = Assert.Throws<GroupFailedException>(() => Run(2, DType.F32, r =>
        {
            using Tensor source = Filled(r, DType.F32, 3, i => i);
            using Tensor destination = Poisoned(r, DType.F32, r.Rank == 0 ? 3 : 4);
            r.World.AllToAll(source, [r.Rank == 0 ? 1 : 2, r.Rank == 0 ? 2 : 1], destination, r.Rank == 0 ? [1, 2] : [3, 1]).Wait();
            r.World.Barrier();
        }));
        Assert.Equal("AllToAll: rank 0 sends rank 1 2 elements, but rank 1 expects 3; both need one count", error.Message);
    }

    [Fact]
    public void A_rank_that_leaves_fails_those_that_wait_for_it()
    {
        LaspException error = Assert.Throws<GroupFailedException>(() => Run(3, DType.F32, r =>
        {
            using Tensor tensor = Filled(r, DType.F32, 4, i => i);
            r.World.AllReduce(tensor).Wait();
            if (r.Rank != 2) r.World.AllReduce(tensor).Wait();
        }));
        Assert.Contains("rank 2 left the group before AllReduce of 4 F32 elements (operation 1)", error.Message, StringComparison.Ordinal);
    }

    [Fact]
    public void Ranks_that_wait_for_one_another_are_told_so() => EveryRankFails(2, "ranks wait for one another", r =>
    {
        using Tensor tensor = Filled(r, DType.F32, 4, i => i);
        if (r.Rank == 0) r.World.AllReduce(tensor).Wait();
        else r.World.Receive(tensor, 0).Wait();
    });

    [Fact]
    public void Ranks_that_wait_for_one_another_across_groups_are_told_so() => EveryRankFails(4, "ranks wait for one another", r =>
    {
        using var mesh = new ProcessMesh(r.World, 2, 2);
        if (r.Rank is 0 or 3) mesh.SequenceParallel.Barrier();
        mesh.DataParallel.Barrier();
        mesh.SequenceParallel.Barrier();
    });

    [Fact]
    public void Splits_that_differ_fail_on_every_rank() => EveryRankFails(2, "splits off ranks", r =>
    {
        r.World.Split(r.Rank == 0 ? [0, 1] : [1, 0]);
        r.World.Barrier();
    });

    [Fact]
    public void An_abort_wakes_the_waiting_and_names_the_rank()
    {
        var group = new LocalGroup(2);
        using var device = new CpuDevice(1);
        using ICommunicator rank = group.Communicator(0, device);
        Task wait = Task.Run(rank.Barrier, TestContext.Current.CancellationToken);
        Thread.Sleep(50);
        group.Abort(1, new InvalidOperationException("out of luck"));
        LaspException error = Assert.Throws<GroupFailedException>(() => wait.GetAwaiter().GetResult());
        Assert.Equal("rank 1 failed: out of luck", error.Message);
        Assert.IsType<InvalidOperationException>(error.InnerException);
    }

    /// <summary>Cleaning up after a failure must not hide it.</summary>
    [Fact]
    public void Waiting_again_after_a_failure_tells_the_failure_and_after_success_is_a_mistake()
    {
        var group = new LocalGroup(2);
        using var device = new CpuDevice(1);
        using ICommunicator rank = group.Communicator(0, device);
        using ICommunicator other = group.Communicator(1, device);
        using Tensor tensor = Tensor.FromSpan([1f], [1], device);
        CommunicationWork done = rank.Broadcast(tensor, 1), failed = rank.AllReduce(tensor);
        other.Broadcast(tensor, 1).Wait();
        done.Wait();
        group.Abort(1, new LaspException("out of luck"));
        Assert.Contains("waits twice", Assert.Throws<LaspException>(done.Wait).Message, StringComparison.Ordinal);
        for (int attempt = 0; attempt < 2; attempt++) Assert.Equal("rank 1 failed: out of luck", Assert.Throws<GroupFailedException>(failed.Wait).Message);
    }

    [Fact]
    public void The_source_may_change_after_the_operation_was_waited_for_and_staging_is_freed()
    {
        var group = new LocalGroup(2);
        using var first = new CpuDevice(1);
        using var second = new CpuDevice(1);
        using ICommunicator a = group.Communicator(0, first);
        using ICommunicator b = group.Communicator(1, second);
        using Tensor x = Tensor.FromSpan([1f, 2f], [2], first);
        using Tensor y = Tensor.FromSpan([3f, 4f], [2], second);
        using Tensor allX = Tensor.FromSpan(new float[4], [4], first);
        using Tensor allY = Tensor.FromSpan(new float[4], [4], second);

        CommunicationWork onA = a.AllGather(x, allX);
        Assert.Equal(8, first.Memory.CurrentOf(MemoryCategory.Communication));
        CommunicationWork onB = b.AllGather(y, allY);
        onA.Wait();
        x.Span<float>().Clear();
        onB.Wait();

        Assert.Equal([1f, 2f, 3f, 4f], allX.ToArray<float>());
        Assert.Equal([1f, 2f, 3f, 4f], allY.ToArray<float>());
        Assert.Equal(0, first.Memory.CurrentOf(MemoryCategory.Communication));
        Assert.Equal(0, second.Memory.CurrentOf(MemoryCategory.Communication));
    }

    [Fact]
    public void Leaving_with_operations_in_flight_frees_their_staging()
    {
        var group = new LocalGroup(2);
        using var first = new CpuDevice(1);
        using var second = new CpuDevice(1);
        using Tensor x = Tensor.FromSpan([1f, 2f], [2], first);
        using Tensor y = Tensor.FromSpan([1f, 2f], [2], second);
        using (ICommunicator a = group.Communicator(0, first))
        using (ICommunicator b = group.Communicator(1, second))
        {
            a.Send(x, 1).Wait();
            a.AllReduce(x);
            b.AllReduce(y);
        }
        Assert.Equal(0, first.Memory.CurrentOf(MemoryCategory.Communication));
        Assert.Equal(0, second.Memory.CurrentOf(MemoryCategory.Communication));
    }

    [Fact]
    public void A_rank_can_be_taken_once()
    {
        var group = new LocalGroup(2);
        using var device = new CpuDevice(1);
        using ICommunicator rank = group.Communicator(1, device);
        Assert.Contains("rank 1 of this group is taken", Assert.Throws<LaspException>(() => group.Communicator(1, device)).Message, StringComparison.Ordinal);
        Assert.Contains("rank 2 does not belong to a group of 2", Assert.Throws<LaspException>(() => group.Communicator(2, device)).Message, StringComparison.Ordinal);
    }

    private void EveryRankFails(int ranks, string expected, Action<RankContext> body)
    {
        var errors = new Exception?[ranks];
        Run(ranks, DType.F32, r => errors[r.Rank] = Record.Exception(() => body(r)));
        Assert.All(errors, e => Assert.Contains(expected, Assert.IsType<GroupFailedException>(e).Message, StringComparison.Ordinal));
        Assert.All(errors, e => Assert.Contains("rank", e!.Message, StringComparison.Ordinal));
    }
}
