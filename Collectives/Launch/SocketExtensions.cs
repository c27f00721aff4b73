using System.Buffers.Binary;
using System.Net.Sockets;

namespace LaspNative.Collectives;

/// <summary>Whole messages over blocking sockets. A greeting is [magic, world size, rank], little-endian 32-bit.</summary>
internal static class SocketExtensions
{
    private const int Magic = 0x5053414C; // "LASP"
    private const int GreetingBytes = 12;
    private static readonly TimeSpan s_patience = TimeSpan.FromSeconds(5);

    public static void SendAll(this Socket socket, ReadOnlySpan<byte> bytes)
    {
        while (bytes.Length > 0) bytes = bytes[socket.Send(bytes)..];
    }

    public static byte[] ReceiveAll(this Socket socket, int count)
    {
        var bytes = new byte[count];
        socket.ReceiveAll(bytes);
        return bytes;
    }

    /// <summary>Throws <see cref="EndOfStreamException"/> when the other side closes first.</summary>
    public static void ReceiveAll(this Socket socket, Span<byte> bytes)
    {
        while (bytes.Length > 0)
        {
            int received = socket.Receive(bytes);
            if (received == 0) throw new EndOfStreamException("the connection was closed");
            bytes = bytes[received..];
        }
    }

    public static void Greet(this Socket socket, int size, int rank)
    {
        var greeting = new byte[GreetingBytes];
        BinaryPrimitives.WriteInt32LittleEndian(greeting, Magic);
        BinaryPrimitives.WriteInt32LittleEndian(greeting.AsSpan(4), size);
        BinaryPrimitives.WriteInt32LittleEndian(greeting.AsSpan(8), rank);
        socket.SendAll(greeting);
    }

    /// <summary>Who has connected; null for what does not speak our greeting, or not in time.</summary>
    public static (int Size, int Rank)? ReadGreeting(this Socket guest, TimeSpan patience)
    {
        try
        {
            guest.ReceiveTimeout = (int)Math.Clamp(patience.TotalMilliseconds, 1, s_patience.TotalMilliseconds);
            byte[] greeting = guest.ReceiveAll(GreetingBytes);
            guest.ReceiveTimeout = 0;
            if (BinaryPrimitives.ReadInt32LittleEndian(greeting) != Magic) return null;
            return (BinaryPrimitives.ReadInt32LittleEndian(greeting.AsSpan(4)), BinaryPrimitives.ReadInt32LittleEndian(greeting.AsSpan(8)));
        }
        catch (Exception error) when (error is SocketException or EndOfStreamException)
        {
            return null;
        }
    }
}
