using System.Diagnostics;
using System.Net;
using System.Net.Sockets;
using LaspNative.Runtime;

namespace LaspNative.Collectives;

/// <summary>One connection for every pair of ranks: each listens at a port of its own, says so at the rendezvous, and connects to the ranks before it.</summary>
internal static class TcpConnector
{
    /// <summary>The sockets to all other ranks; null at this rank's own place.</summary>
    public static Socket?[] Connect(int rank, int size, Rendezvous rendezvous, TimeSpan limit)
    {
        var sockets = new Socket?[size];
        if (size == 1) return sockets;
        try
        {
            using Socket listener = Listen(rendezvous.AddressFamily, size);
            IPEndPoint[] endPoints = rendezvous.ExchangeEndPoints(((IPEndPoint)listener.LocalEndPoint!).Port);
            for (int peer = 0; peer < rank; peer++) sockets[peer] = Connect(rank, size, peer, endPoints[peer], limit);
            Accept(rank, sockets, listener, limit);
            return sockets;
        }
        catch
        {
            foreach (Socket? socket in sockets) socket?.Dispose();
            throw;
        }
    }

    private static Socket Listen(AddressFamily family, int size)
    {
        var listener = new Socket(family, SocketType.Stream, ProtocolType.Tcp);
        listener.Bind(new IPEndPoint(family == AddressFamily.InterNetworkV6 ? IPAddress.IPv6Any : IPAddress.Any, 0));
        listener.Listen(size);
        return listener;
    }

    private static Socket Connect(int rank, int size, int peer, IPEndPoint address, TimeSpan limit)
    {
        var socket = new Socket(address.AddressFamily, SocketType.Stream, ProtocolType.Tcp);
        try
        {
            using var expired = new CancellationTokenSource(limit);
            socket.ConnectAsync(address, expired.Token).AsTask().GetAwaiter().GetResult();
            socket.Greet(size, rank);
            return socket;
        }
        catch (Exception error) when (error is SocketException or OperationCanceledException)
        {
            socket.Dispose();
            throw new LaspException($"rank {rank} could not reach rank {peer} at {address} ({error.Message}); see what that rank printed, and give MASTER_ADDR as an address by which all nodes reach rank 0's", error);
        }
    }

    /// <summary>Takes in the ranks after this one, in any order.</summary>
    private static void Accept(int rank, Socket?[] sockets, Socket listener, TimeSpan limit)
    {
        long start = Stopwatch.GetTimestamp();
        while (Array.FindIndex(sockets, rank + 1, s => s is null) is var missing and >= 0)
        {
            TimeSpan remaining = limit - Stopwatch.GetElapsedTime(start);
            if (remaining <= TimeSpan.Zero || !listener.Poll(remaining, SelectMode.SelectRead))
                throw new LaspException($"rank {rank} waited {limit.TotalSeconds:0.#} s for rank {missing} to connect; see what that rank printed");
            Socket guest = listener.Accept();
            if (guest.ReadGreeting(remaining) is var (size, peer) && size == sockets.Length && peer > rank && peer < size && sockets[peer] is null) sockets[peer] = guest;
            else guest.Dispose();
        }
    }
}
