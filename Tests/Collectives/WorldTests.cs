using System.Net;
using System.Net.Sockets;
using LaspNative.Collectives;
using LaspNative.Runtime;
using LaspNative.Runtime.Cpu;
using Xunit;

namespace LaspNative.Tests.Collectives;

/// <summary>How a world starts its ranks, ends them, and what it refuses.</summary>
public sealed class WorldTests
{
    private static readonly LaunchedRank s_launched = new(1, 2, 1, "127.0.0.1", 29500);

    private static void Run(WorldOptions options, Action<RankContext> body, LaunchedRank? launched = null, CancellationToken cancellation = default) =>
        World.Run(options, launched, body, cancellation);

    [Theory, InlineData(2), InlineData(3), InlineData(8)]
    public void Ranks_are_named_threads_that_share_the_cores(int ranks)
    {
        var seen = new string?[ranks];
        Run(new WorldOptions(DeviceKind.Cpu, ranks), r =>
        {
            Assert.Equal(ranks, r.Size);
            Assert.Equal(r.Rank, r.World.Rank);
            Assert.Same(r.Device, r.World.Device);
            Assert.Equal(Math.Max(1, Environment.ProcessorCount / ranks), ((CpuDevice)r.Device).Threads);
            seen[r.Rank] = Thread.CurrentThread.Name;
        });
        Assert.Equal(Enumerable.Range(0, ranks).Select(r => $"rank {r}/{ranks}"), seen);
    }

    [Fact]
    public void One_rank_runs_on_the_calling_thread_with_all_cores()
    {
        Thread caller = Thread.CurrentThread;
        Run(new WorldOptions(DeviceKind.Cpu), r =>
        {
            Assert.Same(caller, Thread.CurrentThread);
            Assert.Equal(1, r.Size);
            Assert.Equal(Environment.ProcessorCount, ((CpuDevice)r.Device).Threads);
        });
    }

    [Theory, InlineData(1), InlineData(4)]
    public void The_first_error_is_thrown_as_it_was(int ranks)
    {
        var cause = new InvalidDataException("bad byte");
        Exception thrown = Assert.ThrowsAny<Exception>(() => Run(new WorldOptions(DeviceKind.Cpu, ranks), r =>
        {
            if (r.Rank == ranks - 1) throw cause;
            r.World.Barrier();
        }));
        Assert.Same(cause, thrown);
    }

    [Fact]
    public void Ranks_that_stop_at_different_moments_after_a_cancellation_end_as_cancelled()
    {
        using var interrupt = new CancellationTokenSource();
        Assert.Throws<OperationCanceledException>(() => Run(new WorldOptions(DeviceKind.Cpu, 2), r =>
        {
            r.World.Barrier();
            interrupt.Cancel();
            Assert.True(r.Cancellation.IsCancellationRequested);
            if (r.Rank == 0) r.World.Barrier();
        }, cancellation: interrupt.Token));
    }

    [Fact]
    public void An_error_during_a_cancellation_is_not_hidden()
    {
        using var interrupt = new CancellationTokenSource();
        interrupt.Cancel();
        LaspException error = Assert.Throws<LaspException>(() => Run(new WorldOptions(DeviceKind.Cpu, 2), _ => throw new LaspException("the disk is full"), cancellation: interrupt.Token));
        Assert.Equal("the disk is full", error.Message);
    }

    [Fact]
    public void A_world_needs_a_rank() =>
        Assert.Equal("a world needs at least 1 rank, got 0", Refusal(new WorldOptions(DeviceKind.Cpu, 0), null));

    [Fact]
    public void Under_a_launcher_ranks_must_agree() =>
        Assert.StartsWith("4 ranks were asked for but the launcher started 2 processes", Refusal(new WorldOptions(DeviceKind.Cuda, 4), s_launched), StringComparison.Ordinal);

    [Fact]
    public void Under_a_launcher_virtual_ranks_make_no_sense() =>
        Assert.StartsWith("virtual ranks are threads of one process", Refusal(new WorldOptions(DeviceKind.Cuda, VirtualRanks: true), s_launched), StringComparison.Ordinal);

    [Fact]
    public void A_launcher_may_start_one_process_on_the_cpu()
    {
        int runs = 0;
        Run(new WorldOptions(DeviceKind.Cpu), r => runs += r.Size, new LaunchedRank(0, 1, 0, "127.0.0.1", 29500));
        Assert.Equal(1, runs);
    }

    [Fact]
    public async Task Launched_processes_on_the_cpu_join_and_share_the_cores_of_their_node()
    {
        using var probe = new TcpListener(IPAddress.Loopback, 0);
        probe.Start();
        int port = ((IPEndPoint)probe.LocalEndpoint).Port;
        probe.Stop();
        var sums = new double[2][];
        await Task.WhenAll(Enumerable.Range(0, 2).Select(rank => Task.Factory.StartNew(() => Run(new WorldOptions(DeviceKind.Cpu), r =>
        {
            Assert.Equal((rank, 2), (r.Rank, r.Size));
            Assert.Equal(Math.Max(1, Environment.ProcessorCount / 2), ((CpuDevice)r.Device).Threads);
            using Tensor tensor = Tensor.FromSpan([1f + rank], [1], r.Device);
            r.World.AllReduce(tensor).Wait();
            sums[rank] = tensor.ToDoubles();
        }, new LaunchedRank(rank, 2, rank, "127.0.0.1", port)), TestContext.Current.CancellationToken, TaskCreationOptions.LongRunning, TaskScheduler.Default)));
        Assert.Equal([[3.0], [3.0]], sums);
    }

    private static string Refusal(WorldOptions options, LaunchedRank? launched) =>
        Assert.Throws<LaspException>(() => Run(options, _ => Assert.Fail("the body ran"), launched)).Message;
}
