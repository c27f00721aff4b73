using System.Buffers.Binary;
using LaspNative.Runtime;

namespace LaspNative.Collectives;

/// <summary>What a frame is part of. The first ones are the operations that <see cref="CollectiveKind"/> counts, with the same values.</summary>
internal enum TcpKind
{
    AllGather = CollectiveKind.AllGather,
    AllReduce = CollectiveKind.AllReduce,
    ReduceScatter = CollectiveKind.ReduceScatter,
    Broadcast = CollectiveKind.Broadcast,
    AllToAll = CollectiveKind.AllToAll,
    Message = CollectiveKind.SendReceive,
    Barrier,
    Split,

    /// <summary>The sender calls nothing more.</summary>
    Leave,

    /// <summary>The sender has failed; the payload is the reason in UTF-8.</summary>
    Abort,
}

/// <summary>What one rank gives another for one operation.</summary>
/// <param name="Group">Which group, as <see cref="TcpCommunicator"/> numbers them.</param>
/// <param name="Sequence">Counts a group's collectives, or the messages of one rank to another within a group.</param>
internal sealed record TcpFrame(TcpKind Kind, DType DType, long Group, long Sequence, byte[] Payload)
{
    /// <summary>[kind, dtype, group, sequence, payload bytes], little-endian.</summary>
    public const int HeaderBytes = 28;

    public static TcpFrame Leave { get; } = new(TcpKind.Leave, default, 0, 0, []);

    public byte[] Header()
    {
        var header = new byte[HeaderBytes];
        BinaryPrimitives.WriteInt32LittleEndian(header, (int)Kind);
        BinaryPrimitives.WriteInt32LittleEndian(header.AsSpan(4), (int)DType);
        BinaryPrimitives.WriteInt64LittleEndian(header.AsSpan(8), Group);
        BinaryPrimitives.WriteInt64LittleEndian(header.AsSpan(16), Sequence);
        BinaryPrimitives.WriteInt32LittleEndian(header.AsSpan(24), Payload.Length);
        return header;
    }

    /// <summary>The frame with its payload yet to be filled.</summary>
    public static TcpFrame Parse(ReadOnlySpan<byte> header)
    {
        int length = BinaryPrimitives.ReadInt32LittleEndian(header[24..]);
        if (length < 0) throw new InvalidDataException($"a frame of {length} bytes");
        return new TcpFrame(
            (TcpKind)BinaryPrimitives.ReadInt32LittleEndian(header),
            (DType)BinaryPrimitives.ReadInt32LittleEndian(header[4..]),
            BinaryPrimitives.ReadInt64LittleEndian(header[8..]),
            BinaryPrimitives.ReadInt64LittleEndian(header[16..]),
            GC.AllocateUninitializedArray<byte>(length));
    }

    /// <summary>The operation as errors name it.</summary>
    public string Describe() => Describe(Kind, DType, Payload.Length);

    public static string Describe(TcpKind kind, DType dtype, long bytes) =>
        kind is TcpKind.Barrier or TcpKind.Split ? $"{kind}" : $"{kind} with a part of {bytes / dtype.Size()} {dtype} elements";
}
