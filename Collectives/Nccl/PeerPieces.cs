using LaspNative.Runtime.Cuda;

namespace LaspNative.Collectives;

/// <summary>
/// Pieces of long messages on their way from every rank to every other: piece n, counted from 1, lies in slot n mod <paramref name="slots"/> of its reader's memory until it was read, and its sender waits for
/// that before it writes piece n + slots there. All ranks send the same pieces in the same order. Flags of a rank: [W] the last piece that a sender has brought, [W] the last that a reader has read.
/// </summary>
/// <param name="queue">Where this rank's pieces leave.</param>
/// <param name="start">In the memory: [slots, W - 1, bytes].</param>
/// <param name="bytes">Room for one rank's part of a piece.</param>
internal sealed class PeerPieces(PeerMemory memory, CudaStream queue, long start, int firstFlag, int slots, long bytes)
{
    public int Slots => slots;

    /// <summary>The number of the last piece that was begun; 0: none was.</summary>
    public long Last { get; private set; }

    public static long BytesFor(int ranks, int slots, long bytes) => slots * (ranks - 1) * bytes;

    public static int FlagsFor(int ranks) => 2 * ranks;

    /// <summary>Begins the next piece, which is sent to every other rank before another is begun.</summary>
    public long Next() => ++Last;

    /// <summary>Queues the sending of this rank's part for a reader.</summary>
    public void Send(long piece, int reader, nint source, long count)
    {
        if (piece > slots) memory.Await(queue, ReadFlag(reader), piece - slots);
        queue.CopyAsync(source, memory.At(reader, Offset(piece, memory.Rank, reader)), count);
        memory.Raise(queue, reader, ArrivedFlag(memory.Rank), piece);
    }

    /// <summary>What is queued from now on finds a sender's part of the piece, and of all before it, in <see cref="At"/>.</summary>
    public void Await(CudaStream stream, int sender, long piece) => memory.Await(stream, ArrivedFlag(sender), piece);

    /// <summary>Where a sender's part of a piece lies on this rank.</summary>
    public nint At(long piece, int sender) => memory.At(memory.Rank, Offset(piece, sender, memory.Rank));

    /// <summary>Behind what is queued on the stream, the parts of a piece have been read here.</summary>
    public void Release(CudaStream stream, long piece)
    {
        for (int sender = 0; sender < memory.Size; sender++)
            if (sender != memory.Rank) memory.Raise(stream, sender, ReadFlag(memory.Rank), piece);
    }

    public void Abort() => memory.Abort(firstFlag / FlagsFor(memory.Size), Last);

    private long Offset(long piece, int sender, int reader) => start + ((((piece % slots) * (memory.Size - 1)) + (sender < reader ? sender : sender - 1)) * bytes);

    private int ArrivedFlag(int sender) => firstFlag + sender;

    private int ReadFlag(int reader) => firstFlag + memory.Size + reader;
}
