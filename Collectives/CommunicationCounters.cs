namespace LaspNative.Collectives;

/// <summary>The operations that are counted.</summary>
public enum CollectiveKind
{
    AllGather,
    AllReduce,
    ReduceScatter,
    Broadcast,
    AllToAll,
    SendReceive,
}

/// <summary>
/// Bytes and messages that one rank has sent, by operation, by the formulas of <see cref="ICommunicator"/>: payload only, no transport padding.
/// A message is one call that sends something.
/// </summary>
public sealed class CommunicationCounters
{
    private static readonly int s_kinds = Enum.GetValues<CollectiveKind>().Length;
    private readonly long[] _bytes = new long[s_kinds];
    private readonly long[] _messages = new long[s_kinds];

    public long BytesSent => _bytes.Sum();

    public long Messages => _messages.Sum();

    public long BytesSentBy(CollectiveKind kind) => _bytes[(int)kind];

    public long MessagesBy(CollectiveKind kind) => _messages[(int)kind];

    internal void Count(CollectiveKind kind, long bytes)
    {
        if (bytes == 0) return;
        _bytes[(int)kind] += bytes;
        _messages[(int)kind]++;
    }

    public void Reset()
    {
        Array.Clear(_bytes);
        Array.Clear(_messages);
    }
}
