using System.Runtime.InteropServices;
using LaspNative.Runtime;
using LaspNative.Runtime.Cuda;

namespace LaspNative.Collectives;

/// <summary>
/// Memory that each rank sets aside on its GPU for the others to write with their copy engines, and flags beside it that say how far a writer or a reader has come: numbers that only grow, and that streams
/// wait for. No multiprocessor takes part. For ranks of one process, one GPU each. Number n is written as n x 2^20 modulo 2^32, and is raised by copying it from a table: a stream may wait for numbers in its own
/// GPU's memory, but writes them to another's only as a copy. Flags come in series, each counted on its own and with a table of its own.
/// </summary>
internal sealed class PeerMemory : IDisposable
{
    private const int NumberShift = 20;
    private const uint Numbers = 1u << (32 - NumberShift);

    private readonly CudaDevice _device;
    private readonly nint[] _addresses; // of every rank's memory
    private readonly long _flagsAt, _tablesAt;
    private readonly int _flags; // of one series
    private readonly CudaStream _rescue;
    private readonly Stack<IDisposable> _kept = new();
    private readonly Lock _lock = new();
    private PlainMemory? _memory; // what others write, then the flags of every series, then their tables
    private bool _disposed;

    private PeerMemory(CudaDevice device, int rank, int size, long bytes, int flags, int series)
    {
        (_device, Rank, _addresses) = (device, rank, new nint[size]);
        (_flagsAt, _tablesAt, _flags) = (bytes, bytes + (series * flags * sizeof(uint)), flags);
        _rescue = Keep(new CudaStream(device.Context));
    }

    public int Rank { get; }

    public int Size => _addresses.Length;

    /// <summary>
    /// Called at the same point by all ranks, before there is anything to wait for. Null, on all, where two of their GPUs do not reach each other. Allocating, and opening one GPU's memory to another, may
    /// wait for either of them: no rank goes on, to a message that would wait for the others, before all have done both.
    /// </summary>
    /// <param name="bytes">For what others write; a multiple of 4.</param>
    /// <param name="flags">Of one series: flag f belongs to series f / flags.</param>
    /// <param name="use">Makes the owner of the memory, which is abandoned where that fails.</param>
    public static T? Open<T>(CudaDevice device, int rank, ThreadMeeting meeting, long bytes, int flags, int series, Func<PeerMemory, T> use) where T : class
    {
        meeting.Meet();
        var memory = new PeerMemory(device, rank, meeting.Size, bytes, flags, series);
        try
        {
            memory._memory = Allocate(device, bytes, flags, series);
            bool isOpen = memory.Connect(meeting, memory._memory.Pointer);
            if (!isOpen) memory.Dispose();
            meeting.Meet();
            return isOpen ? use(memory) : null;
        }
        catch
        {
            memory.Abandon();
            throw;
        }
    }

    /// <summary>Something of the memory's owner: it goes with the memory, also where the rest of the owner could not be made.</summary>
    public T Keep<T>(T part) where T : IDisposable
    {
        _kept.Push(part);
        return part;
    }

    public nint At(int rank, long offset) => _addresses[rank] + (nint)offset;

    /// <summary>Behind what is queued on the stream, the flag of any rank says <paramref name="number"/>.</summary>
    public void Raise(CudaStream stream, int rank, int flag, long number) => stream.CopyAsync(Table(Rank, flag / _flags) + (nint)(number % Numbers * sizeof(uint)), Flag(rank, flag), sizeof(uint));

    /// <summary>What is queued from now on waits until this rank's flag says <paramref name="number"/> or more.</summary>
    public void Await(CudaStream stream, int flag, long number) => stream.WaitForValue(Flag(Rank, flag), Written(number));

    /// <summary>
    /// Lets pass everything that this GPU's streams wait for, now and later, at the flags of a series; from any thread, when a rank has failed. What the others have queued still runs, and raises flags: it
    /// must not take one back to a number that a wait here is beyond. So their tables go first; after that nothing but the number that lets pass can be raised.
    /// </summary>
    /// <param name="latest">About as far as the flags have come: waits for up to 1024 numbers less or more pass.</param>
    public unsafe void Abort(int series, long latest)
    {
        uint number = Written(latest + (Numbers / 4));
        var numbers = new uint[Numbers];
        numbers.AsSpan().Fill(number);
        lock (_lock)
        {
            if (_disposed) return;
            _device.Context.TryMakeCurrent();
            // The second time is for a flag that was being raised from a table while it was written: by the end it has come.
            for (int time = 0; time < 2; time++)
            {
                fixed (uint* host = numbers) _rescue.TryCopyAsync((nint)host, Table(Rank, series), Numbers * sizeof(uint));
                for (int rank = 0; rank < Size; rank++)
                    if (rank != Rank) _rescue.TryCopyAsync(Table(Rank, series), Table(rank, series), Numbers * sizeof(uint));
            }
            for (int flag = series * _flags; flag < (series + 1) * _flags; flag++) _rescue.TryWriteValue(Flag(Rank, flag), number);
        }
    }

    /// <summary>Call after a failure, when nothing of this rank waits any more: another rank may still write here.</summary>
    public void Abandon()
    {
        lock (_lock)
        {
            if (_disposed) return;
            _disposed = true;
            _memory?.Abandon();
            foreach (IDisposable part in _kept) part.Dispose();
        }
    }

    /// <summary>Call when no rank writes any more.</summary>
    public void Dispose()
    {
        lock (_lock)
        {
            if (_disposed) return;
            _disposed = true;
            _memory?.Dispose();
            foreach (IDisposable part in _kept) part.Dispose();
        }
    }

    /// <summary>Learns where the ranks' memory lies and opens it to this GPU. False, on all, where two of their GPUs do not reach each other.</summary>
    private bool Connect(ThreadMeeting meeting, nint own)
    {
        (nint Address, int Gpu)[] all = meeting.Share(Rank, (own, _device.Context.Gpu));
        if (all.Any(a => all.Any(b => a.Gpu != b.Gpu && !CudaContext.CanAccess(a.Gpu, b.Gpu)))) return false;
        for (int rank = 0; rank < Size; rank++)
        {
            _addresses[rank] = all[rank].Address;
            if (all[rank].Gpu != _device.Context.Gpu) _device.Context.UseMemoryOf(all[rank].Gpu);
        }
        return true;
    }

    /// <summary>Flags at zero, and a table of all numbers for each series.</summary>
    private static PlainMemory Allocate(CudaDevice device, long bytes, int flags, int series)
    {
        var behind = new uint[series * (flags + (int)Numbers)];
        for (uint n = 0; n < series * Numbers; n++) behind[(series * flags) + n] = Written(n);
        var memory = new PlainMemory(device, bytes + (behind.Length * sizeof(uint)), MemoryCategory.Communication);
        try
        {
            device.CopyFromHost(MemoryMarshal.AsBytes<uint>(behind), memory.Pointer + (nint)bytes);
            device.Synchronize();
            return memory;
        }
        catch
        {
            memory.Dispose(); // nobody else has heard of it
            throw;
        }
    }

    private static uint Written(long number) => (uint)(number % Numbers) << NumberShift;

    private nint Flag(int rank, int flag) => At(rank, _flagsAt + ((long)flag * sizeof(uint)));

    private nint Table(int rank, int series) => At(rank, _tablesAt + (series * Numbers * sizeof(uint)));
}
