using System.Buffers.Binary;
using System.Diagnostics;
using System.Net;
using System.Net.Sockets;
using System.Text;
using LaspNative.Runtime;

namespace LaspNative.Collectives;

/// <summary>
/// Where the processes of one run find each other: rank 0 listens at an address, the others connect, and rank 0 can hand bytes to all, such as NCCL's unique id.
/// Connections stay open, so it can be used again. A message is [length, bytes], the length little-endian 32-bit.
/// </summary>
public sealed class Rendezvous : IDisposable
{
    private static readonly TimeSpan s_retry = TimeSpan.FromMilliseconds(100);
    private readonly int _rank;
    private readonly Socket?[] _peers;

    /// <summary>Returns when this rank is connected (rank 0: when all are). Default timeout 120 s: ranks of a cluster start at different moments.</summary>
    public Rendezvous(int rank, int size, string address, int port, TimeSpan? timeout = null)
    {
        if (size < 1 || rank < 0 || rank >= size) throw new LaspException($"rank {rank} does not belong to a rendezvous of {size}; ranks count from 0");
        _rank = rank;
        _peers = new Socket?[size];
        if (size == 1) return;
        var deadline = new Deadline(timeout ?? TimeSpan.FromSeconds(120));
        try
        {
            if (rank == 0) Listen(address, port, deadline);
            else _peers[0] = Connect(address, port, deadline);
        }
        catch
        {
            Dispose();
            throw;
        }
    }

    /// <summary>Rank 0's bytes, on every rank. The other ranks' argument is ignored.</summary>
    public byte[] Broadcast(byte[] data)
    {
        ArgumentNullException.ThrowIfNull(data);
        if (_rank == 0)
        {
            var message = new byte[4 + data.Length];
            BinaryPrimitives.WriteInt32LittleEndian(message, data.Length);
            data.CopyTo(message, 4);
            for (int peer = 1; peer < _peers.Length; peer++) Talk(peer, s => s.SendAll(message));
            return data;
        }
        byte[] received = [];
        Talk(0, s =>
        {
            received = new byte[BinaryPrimitives.ReadInt32LittleEndian(s.ReceiveAll(4))];
            s.ReceiveAll(received);
        });
        return received;
    }

    /// <summary>How the ranks reach one another.</summary>
    internal AddressFamily AddressFamily => _peers.First(p => p is not null)!.AddressFamily;

    /// <summary>Where each rank listens, as this rank reaches it: every rank gives the port that it listens at, its address is the one that it came from.</summary>
    public IPEndPoint[] ExchangeEndPoints(int port)
    {
        if (_rank == 0)
        {
            var endPoints = new IPEndPoint[_peers.Length];
            endPoints[0] = new IPEndPoint(IPAddress.Any, port);
            for (int peer = 1; peer < _peers.Length; peer++)
                Talk(peer, s => endPoints[peer] = new IPEndPoint(Remote(s), BinaryPrimitives.ReadInt32LittleEndian(s.ReceiveAll(4))));
            Broadcast(Encoding.ASCII.GetBytes(string.Join('\n', (object[])endPoints)));
            return endPoints;
        }
        var own = new byte[4];
        BinaryPrimitives.WriteInt32LittleEndian(own, port);
        Talk(0, s => s.SendAll(own));
        IPEndPoint[] all = [.. Encoding.ASCII.GetString(Broadcast([])).Split('\n').Select(IPEndPoint.Parse)];
        all[0].Address = Remote(_peers[0]!);
        return all;
    }

    public void Dispose()
    {
        foreach (Socket? peer in _peers) peer?.Dispose();
    }

    private static IPAddress Remote(Socket peer) => ((IPEndPoint)peer.RemoteEndPoint!).Address;

    private void Talk(int peer, Action<Socket> exchange)
    {
        try
        {
            exchange(_peers[peer]!);
        }
        catch (Exception error) when (error is SocketException or EndOfStreamException)
        {
            throw new LaspException($"rank {_rank} lost rank {peer} while exchanging start-up data ({error.Message}); see what that rank printed", error);
        }
    }

    private void Listen(string address, int port, Deadline deadline)
    {
        using Socket listener = Bind(address, port);
        int missing = _peers.Length - 1;
        while (missing > 0)
        {
            if (!listener.Poll(deadline.Remaining, SelectMode.SelectRead))
            {
                string absent = string.Join(", ", Enumerable.Range(1, _peers.Length - 1).Where(r => _peers[r] is null));
                throw new LaspException($"rank 0 waited {deadline.Limit.TotalSeconds:0.#} s at {address}:{port} and these ranks did not come: {absent}; see what they printed, and check MASTER_ADDR and MASTER_PORT there");
            }
            if (Greet(listener.Accept(), deadline)) missing--;
        }
    }

    /// <summary>Binds the master's own address, or any address of this machine when the name stands for one that is translated on the way.</summary>
    private static Socket Bind(string address, int port)
    {
        IPAddress resolved = Resolve(address);
        try
        {
            try
            {
                return ListenAt(resolved, port);
            }
            catch (SocketException error) when (error.SocketErrorCode == SocketError.AddressNotAvailable)
            {
                return ListenAt(resolved.AddressFamily == AddressFamily.InterNetworkV6 ? IPAddress.IPv6Any : IPAddress.Any, port);
            }
        }
        catch (SocketException error)
        {
            throw new LaspException($"rank 0 cannot listen at {address}:{port} ({error.Message}); choose another MASTER_PORT (--master-port)", error);
        }
    }

    private static Socket ListenAt(IPAddress address, int port)
    {
        var socket = new Socket(address.AddressFamily, SocketType.Stream, ProtocolType.Tcp);
        try
        {
            socket.Bind(new IPEndPoint(address, port));
            socket.Listen();
            return socket;
        }
        catch
        {
            socket.Dispose();
            throw;
        }
    }

    /// <summary>Takes a rank in. What does not speak our greeting is shown the door; a rank of another run is an error that names both.</summary>
    private bool Greet(Socket guest, Deadline deadline)
    {
        guest.NoDelay = true;
        if (guest.ReadGreeting(deadline.Remaining) is not var (size, rank))
        {
            guest.Dispose();
            return false;
        }
        bool welcome = size == _peers.Length && rank > 0 && rank < size && _peers[rank] is null;
        if (!welcome)
        {
            guest.Dispose();
            throw new LaspException(size != _peers.Length
                ? $"rank {rank} believes in {size} ranks, rank 0 in {_peers.Length}; give every process the same WORLD_SIZE"
                : $"two processes say that they are rank {rank}; give every process its own RANK, and every run its own MASTER_PORT");
        }
        _peers[rank] = guest;
        return true;
    }

    private Socket Connect(string address, int port, Deadline deadline)
    {
        while (true)
        {
            IPAddress resolved = Resolve(address);
            var socket = new Socket(resolved.AddressFamily, SocketType.Stream, ProtocolType.Tcp) { NoDelay = true };
            try
            {
                socket.Connect(new IPEndPoint(resolved, port));
                socket.Greet(_peers.Length, _rank);
                return socket;
            }
            catch (SocketException error)
            {
                socket.Dispose();
                if (deadline.Remaining == TimeSpan.Zero)
                    throw new LaspException($"rank {_rank} could not reach rank 0 at {address}:{port} within {deadline.Limit.TotalSeconds:0.#} s ({error.Message}); check that rank 0 runs, and MASTER_ADDR and MASTER_PORT", error);
                Thread.Sleep(s_retry);
            }
        }
    }

    private static IPAddress Resolve(string address)
    {
        try
        {
            IPAddress[] found = IPAddress.TryParse(address, out IPAddress? literal) ? [literal] : Dns.GetHostAddresses(address);
            // IPv4 first, so that all ranks choose alike where a name has both.
            return found.OrderBy(a => a.AddressFamily != AddressFamily.InterNetwork).First();
        }
        catch (Exception error) when (error is SocketException or InvalidOperationException or ArgumentException)
        {
            throw new LaspException($"the address '{address}' of rank 0 is unknown ({error.Message}); check MASTER_ADDR (--master-addr)", error);
        }
    }

    private readonly struct Deadline(TimeSpan limit)
    {
        private readonly long _start = Stopwatch.GetTimestamp();

        public TimeSpan Limit { get; } = limit;

        public TimeSpan Remaining => Limit > Stopwatch.GetElapsedTime(_start) ? Limit - Stopwatch.GetElapsedTime(_start) : TimeSpan.Zero;
    }
}
