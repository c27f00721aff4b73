using System.Net;
using System.Net.Sockets;
using System.Text;
using LaspNative.Collectives;
using LaspNative.Runtime;
using Xunit;

namespace LaspNative.Tests.Collectives;

/// <summary>Processes that find each other over TCP, here as tasks on the loopback address.</summary>
public sealed class RendezvousTests
{
    private const string Loopback = "127.0.0.1";

    private static CancellationToken Stop => TestContext.Current.CancellationToken;

    [Theory, InlineData(1), InlineData(2), InlineData(5)]
    public async Task Every_rank_receives_rank_0s_bytes_in_turn(int ranks)
    {
        int port = FreePort();
        byte[] large = new byte[100_000];
        new Random(3).NextBytes(large);
        byte[][][] received = await Task.WhenAll(Enumerable.Range(0, ranks).Select(rank => Task.Run(() =>
        {
            using var rendezvous = new Rendezvous(rank, ranks, Loopback, port, TimeSpan.FromSeconds(20));
            return (byte[][])[rendezvous.Broadcast(rank == 0 ? large : []), rendezvous.Broadcast(rank == 0 ? Encoding.UTF8.GetBytes("second") : []), rendezvous.Broadcast([])];
        }, Stop)));
        Assert.All(received, r => Assert.Equal(large, r[0]));
        Assert.All(received, r => Assert.Equal("second", Encoding.UTF8.GetString(r[1])));
        Assert.All(received, r => Assert.Empty(r[2]));
    }

    [Fact]
    public async Task Ranks_may_come_before_rank_0()
    {
        int port = FreePort();
        Task<byte[]> early = Task.Run(() =>
        {
            using var rendezvous = new Rendezvous(1, 2, Loopback, port, TimeSpan.FromSeconds(20));
            return rendezvous.Broadcast([]);
        }, Stop);
        await Task.Delay(300, Stop);
        using var master = new Rendezvous(0, 2, Loopback, port, TimeSpan.FromSeconds(20));
        master.Broadcast([1, 2, 3]);
        Assert.Equal([1, 2, 3], await early);
    }

    [Fact]
    public async Task Every_rank_learns_where_the_others_listen()
    {
        int port = FreePort();
        IPEndPoint[][] all = await Task.WhenAll(Enumerable.Range(0, 3).Select(rank => Task.Run(() =>
        {
            using var rendezvous = new Rendezvous(rank, 3, Loopback, port, TimeSpan.FromSeconds(20));
            return rendezvous.ExchangeEndPoints(4000 + rank);
        }, Stop)));
        IPEndPoint[] expected = [new(IPAddress.Loopback, 4000), new(IPAddress.Loopback, 4001), new(IPAddress.Loopback, 4002)];
        Assert.Equal(expected, all[1]);
        Assert.Equal(expected, all[2]);
        Assert.Equal(expected[1..], all[0][1..]);
    }

    [Fact]
    public void Rank_0_says_who_did_not_come()
    {
        LaspException error = Assert.Throws<LaspException>(() => new Rendezvous(0, 3, Loopback, FreePort(), TimeSpan.FromSeconds(0.3)));
        Assert.Contains("these ranks did not come: 1, 2", error.Message, StringComparison.Ordinal);
    }

    [Fact]
    public void A_rank_says_where_it_looked_for_rank_0()
    {
        int port = FreePort();
        LaspException error = Assert.Throws<LaspException>(() => new Rendezvous(1, 2, Loopback, port, TimeSpan.FromSeconds(0.3)));
        Assert.Contains($"rank 1 could not reach rank 0 at 127.0.0.1:{port} within 0.3 s", error.Message, StringComparison.Ordinal);
    }

    [Fact]
    public async Task A_stranger_is_ignored_and_a_rank_of_another_run_is_named()
    {
        int port = FreePort();
        Task<Rendezvous> master = Task.Run(() => new Rendezvous(0, 2, Loopback, port, TimeSpan.FromSeconds(20)), Stop);
        using (TcpClient stranger = await Dial(port))
        {
            await stranger.GetStream().WriteAsync(Encoding.ASCII.GetBytes("GET / HTTP/1.1\r\n\r\n"), Stop);
        }
        Task other = Task.Run(() => new Rendezvous(2, 4, Loopback, port, TimeSpan.FromSeconds(20)).Dispose(), Stop);
        LaspException error = await Assert.ThrowsAsync<LaspException>(() => master);
        Assert.Contains("rank 2 believes in 4 ranks, rank 0 in 2", error.Message, StringComparison.Ordinal);
        await other;
    }

    [Fact]
    public void A_taken_port_is_an_error_that_names_it()
    {
        using var taken = new TcpListener(IPAddress.Loopback, 0);
        taken.Start();
        int port = ((IPEndPoint)taken.LocalEndpoint).Port;
        LaspException error = Assert.Throws<LaspException>(() => new Rendezvous(0, 2, Loopback, port, TimeSpan.FromSeconds(1)));
        Assert.Contains($"rank 0 cannot listen at 127.0.0.1:{port}", error.Message, StringComparison.Ordinal);
    }

    [Fact]
    public async Task A_rank_that_goes_away_is_named()
    {
        int port = FreePort();
        Task master = Task.Run(() => new Rendezvous(0, 2, Loopback, port, TimeSpan.FromSeconds(20)).Dispose(), Stop);
        using var rendezvous = new Rendezvous(1, 2, Loopback, port, TimeSpan.FromSeconds(20));
        await master;
        Assert.Contains("rank 1 lost rank 0", Assert.Throws<LaspException>(() => rendezvous.Broadcast([])).Message, StringComparison.Ordinal);
    }

    [Fact]
    public void The_launchers_environment_is_read_and_checked()
    {
        var variables = new Dictionary<string, string?>(StringComparer.Ordinal)
        {
            ["RANK"] = "3",
            ["WORLD_SIZE"] = "4",
            ["LOCAL_RANK"] = "1",
            ["MASTER_ADDR"] = "10.0.0.1",
            ["MASTER_PORT"] = "29500",
        };
        LaunchedRank? Read() => LaunchedRank.Read(variables.GetValueOrDefault);

        Assert.Equal(new LaunchedRank(3, 4, 1, "10.0.0.1", 29500), Read());
        Assert.Equal(4, Read()!.LocalSize);
        variables["LOCAL_WORLD_SIZE"] = "2";
        Assert.Equal(2, Read()!.LocalSize);
        variables["TORCHELASTIC_USE_AGENT_STORE"] = "True";
        Assert.Equal(29501, Read()!.MasterPort);
        variables["RANK"] = "4";
        Assert.Equal("the environment variable RANK is '4'; a launcher sets it to a number from 0 to 3", Assert.Throws<LaspException>(Read).Message);
        variables["RANK"] = "0";
        variables.Remove("MASTER_ADDR");
        Assert.StartsWith("RANK and WORLD_SIZE are set but MASTER_ADDR is not", Assert.Throws<LaspException>(Read).Message, StringComparison.Ordinal);
        variables.Remove("WORLD_SIZE");
        Assert.Null(Read());
    }

    private static async Task<TcpClient> Dial(int port)
    {
        while (true)
        {
            var client = new TcpClient();
            try
            {
                await client.ConnectAsync(Loopback, port, Stop);
                return client;
            }
            catch (SocketException)
            {
                client.Dispose();
                await Task.Delay(20, Stop);
            }
        }
    }

    private static int FreePort()
    {
        using var probe = new TcpListener(IPAddress.Loopback, 0);
        probe.Start();
        return ((IPEndPoint)probe.LocalEndpoint).Port;
    }
}
