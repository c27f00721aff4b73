using System.Runtime.InteropServices;
using LaspNative.Runtime.Cuda;

namespace LaspNative.Collectives;

/// <summary>
/// Memory that each rank sets aside on its GPU for the others to write with their copy engines, and flags beside it that say how far a writer or a reader has come: numbers that only grow, and that streams
/// wait for. No multiprocessor takes part. For ranks of one process, one GPU each. A number is n x 2^22 modulo 2^32, and is raised by copying it from a table: a stream may wait for numbers in its own
/// GPU's memory, but writes them to another's only as a copy.
/// </summary>
internal sealed class PeerMemory : IDisposable
{
    private const int NumberShift = 22;
    private const uint Numbers = 1u << (32 - NumberShift);
    private static readonly TimeSpan s_patience = TimeSpan.FromMilliseconds(10);

    private readonly CudaDevice _device;
    private readonly PlainMemory _memory; // what others write, then flags, then the table
    private readonly nint[] _addresses; // of every rank's memory
    private readonly long _flagsAt;
    private readonly int _flagCount;
    private readonly CudaStream _rescue;
    private readonly Lock _lock = new();
    private readonly List<(int First, int Count, uint Number)> _aborted = [];
    private Timer? _again;
    private bool _disposed;

    private PeerMemory(CudaDevice device, int rank, PlainMemory memory, nint[] addresses, long flagsAt, int flagCount)
    {
        (_device, Rank, _memory, _addresses, _flagsAt, _flagCount) = (device, rank, memory, addresses, flagsAt, flagCount);
        _rescue = new CudaStream(device.Context);
    }

    public int Rank { get; }

    public int Size => _addresses.Length;

    /// <summary>
    /// Called at the same point by all ranks, before there is anything to wait for. Null, on all, where two of their GPUs do not reach each other. Allocating, and opening one GPU's memory to another, may
    /// wait for either of them: no rank goes on, to a message that would wait for the others, before all have done both.
    /// </summary>
    public static PeerMemory? Open(CudaDevice device, int rank, ThreadMeeting meeting, long bytes, int flags)
    {
        meeting.Meet();
        var memory = new PlainMemory(device.Context, bytes + ((flags + Numbers) * sizeof(uint)));
        var numbers = new uint[flags + (int)Numbers]; // flags at zero
        for (uint n = 0; n < Numbers; n++) numbers[flags + (int)n] = n << NumberShift;
        device.CopyFromHost(MemoryMarshal.AsBytes<uint>(numbers), memory.Pointer + (nint)bytes);
        device.Synchronize();
        (nint Address, int Gpu)[] all = meeting.Share(rank, (memory.Pointer, device.Context.Gpu));
        if (all.Any(a => all.Any(b => a.Gpu != b.Gpu && !CudaContext.CanAccess(a.Gpu, b.Gpu))))
        {
            memory.Dispose();
            meeting.Meet();
            return null;
        }
        foreach ((_, int gpu) in all)
            if (gpu != device.Context.Gpu) device.Context.UseMemoryOf(gpu);
        var opened = new PeerMemory(device, rank, memory, [.. all.Select(a => a.Address)], bytes, flags);
        meeting.Meet();
        return opened;
    }

    public nint At(int rank, long offset) => _addresses[rank] + (nint)offset;

    /// <summary>Behind what is queued on the stream, the flag of any rank says <paramref name="number"/>.</summary>
    public void Raise(CudaStream stream, int rank, int flag, uint number) =>
        stream.CopyAsync(At(Rank, _flagsAt + ((_flagCount + (number % Numbers)) * sizeof(uint))), At(rank, _flagsAt + ((long)flag * sizeof(uint))), sizeof(uint));

    /// <summary>What is queued from now on waits until this rank's flag says <paramref name="number"/> or more.</summary>
    public void Await(CudaStream stream, int flag, uint number) => stream.WaitForValue(At(Rank, _flagsAt + ((long)flag * sizeof(uint))), number << NumberShift);

    /// <summary>Lets pass everything that this GPU's streams wait for at some flags; from any thread, when a rank has failed. <paramref name="latest"/>: about as far as these flags have come.</summary>
    public void Abort(int firstFlag, int flags, uint latest)
    {
        lock (_lock)
        {
            if (_disposed) return;
            _aborted.Add((firstFlag, flags, latest + (Numbers / 4)));
            LetPass();
            _again ??= new Timer(_ => Again(), null, s_patience, s_patience);
        }
    }

    /// <summary>What a peer had queued when it failed still arrives, and takes a flag back to a number that some wait here is beyond: one time is not enough.</summary>
    private void Again()
    {
        lock (_lock)
            if (!_disposed) LetPass();
    }

    private void LetPass()
    {
        _device.Context.TryMakeCurrent();
        foreach ((int first, int count, uint number) in _aborted)
            for (int flag = first; flag < first + count; flag++) _rescue.TryWriteValue(At(Rank, _flagsAt + ((long)flag * sizeof(uint))), number << NumberShift);
    }

    /// <summary>Call after a failure, when nothing of this rank waits any more. Another rank may still write here, so the memory goes with the context.</summary>
    public void Abandon()
    {
        lock (_lock)
        {
            _disposed = true;
            _again?.Dispose();
        }
    }

    /// <summary>Call when no rank writes any more.</summary>
    public void Dispose()
    {
        lock (_lock)
        {
            if (_disposed) return;
            _disposed = true;
            _memory.Dispose();
            _rescue.Dispose();
        }
    }
}
