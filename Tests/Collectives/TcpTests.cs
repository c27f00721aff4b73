using System.Net;
using System.Net.Sockets;
using LaspNative.Collectives;
using LaspNative.Runtime;
using LaspNative.Runtime.Cpu;
using Xunit;

namespace LaspNative.Tests.Collectives;

/// <summary>Ranks that speak TCP, here as threads over the loopback address: the contract, and what happens when ranks disagree or disappear.</summary>
public sealed class TcpTests : CollectiveContract
{
    private protected override Action Start(int ranks, DType dtype, Action<RankContext> body) =>
        () => new RankThreads(new LoopbackRanks(ranks), ranks, body, default).Run(only: null);

    [Fact]
    public void Different_operations_fail_on_every_rank() => EveryRankFails(3, "all ranks must call the same operations in the same order", r =>
    {
        using Tensor tensor = Filled(r, DType.F32, 4, i => i);
        using Tensor all = Poisoned(r, DType.F32, 12);
        (r.Rank == 2 ? r.World.AllGather(tensor, all) : r.World.AllReduce(tensor)).Wait();
        r.World.Barrier();
    });

    [Fact]
    public void Different_sizes_fail_on_every_rank() => EveryRankFails(4, "5 F32 elements", r =>
    {
        using Tensor tensor = Filled(r, DType.F32, r.Rank == 1 ? 5 : 4, i => i);
        r.World.AllReduce(tensor).Wait();
        r.World.Barrier();
    });

    [Fact]
    public void Splits_that_differ_fail_on_every_rank() => EveryRankFails(2, "splits off other ranks", r =>
    {
        r.World.Split(r.Rank == 0 ? [0, 1] : [1, 0]);
        r.World.Barrier();
    });

    [Fact]
    public void A_rank_that_leaves_fails_those_that_wait_for_it()
    {
        LaspException error = Assert.Throws<GroupFailedException>(() => Run(3, DType.F32, r =>
        {
            using Tensor tensor = Filled(r, DType.F32, 4, i => i);
            r.World.AllReduce(tensor).Wait();
            if (r.Rank != 2) r.World.AllReduce(tensor).Wait();
        }));
        Assert.Contains("rank 2 left before AllReduce with a part of 4 F32 elements (operation 1)", error.Message, StringComparison.Ordinal);
    }

    /// <summary>A process that is killed says nothing: its sockets close.</summary>
    [Fact]
    public void A_rank_that_disappears_ends_those_that_wait_for_it()
    {
        using TcpListener gone = new(IPAddress.Loopback, 0);
        gone.Start();
        using var client = new Socket(AddressFamily.InterNetwork, SocketType.Stream, ProtocolType.Tcp);
        client.Connect(gone.LocalEndpoint);
        Socket peer = gone.AcceptSocket();
        string? reason = null;
        using var lost = new ManualResetEventSlim();
        using (var link = new TcpLink(client, "test", _ => { }, why =>
        {
            reason = why;
            lost.Set();
        }))
        {
            link.Start();
            peer.Dispose();
            Assert.True(lost.Wait(TimeSpan.FromSeconds(20)), "nobody noticed");
            link.Finish();
        }
        Assert.Equal("the connection was closed", reason);
    }

    private void EveryRankFails(int ranks, string expected, Action<RankContext> body)
    {
        var errors = new Exception?[ranks];
        Run(ranks, DType.F32, r => errors[r.Rank] = Record.Exception(() => body(r)));
        Assert.All(errors, e => Assert.Contains(expected, Assert.IsType<GroupFailedException>(e).Message, StringComparison.Ordinal));
    }

    /// <summary>As processes do it, but all of them here.</summary>
    private sealed class LoopbackRanks(int size) : RankHost
    {
        private readonly int _port = FreePort();
        private readonly TcpWorld?[] _worlds = new TcpWorld?[size];

        public override Device OpenDevice(int rank) => new CpuDevice(1);

        public override ICommunicator Join(int rank, Device device)
        {
            using var rendezvous = new Rendezvous(rank, size, "127.0.0.1", _port, TimeSpan.FromSeconds(30));
            TcpWorld world = _worlds[rank] = new TcpWorld(rank, size, rendezvous);
            return new TcpCommunicator(world, device);
        }

        public override void Abort(int rank, Exception reason) => _worlds[rank]?.Abort(rank, reason);

        private static int FreePort()
        {
            using var probe = new TcpListener(IPAddress.Loopback, 0);
            probe.Start();
            return ((IPEndPoint)probe.LocalEndpoint).Port;
        }
    }
}
