using LaspNative.Runtime;
using LaspNative.Runtime.Cuda;

namespace LaspNative.Collectives;

/// <summary>
/// Short blocks by copy engines, gathered from all ranks or handed from rank to rank. A rank writes its block into the others' memory and raises a flag behind it; readers wait in their compute stream for
/// the flags of what they read. What is computed meanwhile keeps all multiprocessors: a collective kernel would take some of them first, or come last, behind the blocks of the kernels that its message was
/// to travel beside. Message n, on all ranks the same gather or relay, lies in slot n mod 4; before a rank writes there again it waits until message n - 4 has been read. A block that came before its reader
/// asks for it costs the reader nothing.
/// </summary>
internal sealed class PeerBlocks : IDisposable
{
    /// <summary>Longest block of one rank.</summary>
    private const long MaxBlockBytes = 4 << 20;

    private const int Slots = 4;

    /// <summary>Most pieces of a relayed block.</summary>
    private const int MaxPieces = 16;

    /// <summary>How often, in uses of a slot, its flags are all brought up to its number.</summary>
    private const int Refresh = 256;

    private readonly CudaDevice _device;
    private readonly PeerMemory _memory; // [Slots, W, MaxBlockBytes]; flags: arrived [Slots, W], read [Slots, W], pieces arrived [Slots, MaxPieces]
    private readonly CudaEvent _computed;
    private readonly CudaEvent[] _sent; // by slot
    private readonly bool[] _isHeld; // by slot: whether this rank may still read it
    private long _messages;

    private PeerBlocks(CudaDevice device, PeerMemory memory)
    {
        (_device, _memory) = (device, memory);
        _computed = memory.Keep(new CudaEvent(device.Context));
        _sent = [.. Enumerable.Range(0, Slots).Select(_ => memory.Keep(new CudaEvent(device.Context)))];
        _isHeld = new bool[Slots];
    }

    private int Rank => _memory.Rank;

    private int Size => _memory.Size;

    /// <summary>As <see cref="PeerMemory.Open"/>.</summary>
    public static PeerBlocks? Open(CudaDevice device, int rank, ThreadMeeting meeting) =>
        PeerMemory.Open(device, rank, meeting, Slots * meeting.Size * MaxBlockBytes, Slots * ((2 * meeting.Size) + MaxPieces), series: 1, memory => new PeerBlocks(device, memory));

    /// <summary>
    /// Whether one message more fits, of blocks of so many bytes: as many as there are slots may be under way and undisposed. All ranks call the same in the same order, and so get the same answer.
    /// </summary>
    public bool Takes(long bytes, int pieces = 1) => bytes <= MaxBlockBytes && pieces <= MaxPieces && !_isHeld[(_messages + 1) % Slots];

    /// <summary>Sends a block to every rank. The source must not change until the gather is disposed.</summary>
    public BlockGather Gather(Tensor source)
    {
        (long message, int slot) = Begin();
        CudaStream queue = FollowCompute();
        for (int step = 1; step <= Size; step++)
        {
            int reader = (Rank + step) % Size; // this rank itself comes last
            if (reader != Rank) AwaitRoom(queue, reader, slot, message);
            queue.CopyAsync(source.Pointer, Slot(reader, slot) + (nint)(Rank * source.Bytes), source.Bytes);
            _memory.Raise(queue, reader, ArrivedFlag(slot, Rank), message);
        }
        _sent[slot].Record(queue);
        return new Gathered(this, message, Tensor.WrapDevicePointer(Slot(Rank, slot), source.Shape.Times(Size), source.DType, _device));
    }

    /// <summary>A block that comes and goes in pieces; nothing is sent yet.</summary>
    /// <param name="counters">Told what is passed on.</param>
    public BlockRelay Relay(Shape shape, DType dtype, BlockLayout pieces, int? from, int? to, CommunicationCounters counters)
    {
        (long message, int slot) = Begin();
        Tensor? block = from is null ? null : Tensor.WrapDevicePointer(Slot(Rank, slot), shape, dtype, _device);
        return new Relayed(this, message, block, dtype, pieces, to, counters);
    }

    public void Abort() => _memory.Abort(series: 0, _messages);

    /// <summary>As <see cref="PeerMemory.Abandon"/>, instead of <see cref="Dispose"/>.</summary>
    public void Abandon() => _memory.Abandon();

    public void Dispose() => _memory.Dispose();

    private (long Message, int Slot) Begin()
    {
        long message = ++_messages;
        var slot = (int)(message % Slots);
        _isHeld[slot] = true;
        return (message, slot);
    }

    /// <summary>Behind what is queued, all of the message has come, and this rank needs it no longer.</summary>
    private void End(CudaStream queue, int slot, long message)
    {
        // A message raises the flags of its own kind, and those that fell back by half of PeerMemory's numbers would seem to be ahead.
        if (message / Slots % Refresh == 0)
        {
            for (int sender = 0; sender < Size; sender++) _memory.Raise(queue, Rank, ArrivedFlag(slot, sender), message);
            for (int piece = 0; piece < MaxPieces; piece++) _memory.Raise(queue, Rank, PieceFlag(slot, piece), message);
        }
        for (int sender = 0; sender < Size; sender++)
            if (sender != Rank) _memory.Raise(queue, sender, ReadFlag(slot, Rank), message);
        _isHeld[slot] = false;
    }

    private void AwaitRoom(CudaStream queue, int reader, int slot, long message)
    {
        if (message > Slots) _memory.Await(queue, ReadFlag(slot, reader), message - Slots);
    }

    private CudaStream FollowCompute()
    {
        _computed.Record(_device.Stream);
        _device.CommunicationStream.WaitFor(_computed);
        return _device.CommunicationStream;
    }

    private nint Slot(int owner, int slot) => _memory.At(owner, slot * Size * MaxBlockBytes);

    /// <summary>At the reader: the last message of <paramref name="sender"/> that has arrived in the slot.</summary>
    private int ArrivedFlag(int slot, int sender) => (slot * Size) + sender;

    /// <summary>At the sender: the last message in the slot that <paramref name="reader"/> needs no longer.</summary>
    private int ReadFlag(int slot, int reader) => ((Slots + slot) * Size) + reader;

    /// <summary>At the reader: the last message of which the piece has arrived in the slot, whoever sent it.</summary>
    private int PieceFlag(int slot, int piece) => (2 * Slots * Size) + (slot * MaxPieces) + piece;

    private sealed class Gathered(PeerBlocks owner, long message, Tensor blocks) : BlockGather
    {
        private readonly int _slot = (int)(message % Slots);

        public override Tensor Blocks => blocks;

        public override void Wait(int first, int count)
        {
            owner._device.Context.MakeCurrent();
            for (int rank = first; rank < first + count; rank++) owner._memory.Await(owner._device.Stream, owner.ArrivedFlag(_slot, rank), message);
        }

        protected override void Dispose(bool disposing)
        {
            owner._device.Context.MakeCurrent();
            owner._device.Stream.WaitFor(owner._sent[_slot]);
            CudaStream queue = owner.FollowCompute();
            // A block that nobody here has waited for comes before another rank writes in its place.
            for (int sender = 0; sender < owner.Size; sender++)
                if (sender != owner.Rank) owner._memory.Await(queue, owner.ArrivedFlag(_slot, sender), message);
            owner.End(queue, _slot, message);
            blocks.Dispose();
        }
    }

    private sealed class Relayed(PeerBlocks owner, long message, Tensor? block, DType dtype, BlockLayout layout, int? to, CommunicationCounters counters) : BlockRelay
    {
        private readonly int _slot = (int)(message % Slots);
        private int _arrived, _passed; // pieces

        public override Tensor? Block => block;

        public override void Wait(int count)
        {
            CheckPieces(count, layout.Ranks, owner.Rank);
            if (block is null || count <= _arrived) return;
            _arrived = count;
            owner._device.Context.MakeCurrent();
            owner._memory.Await(owner._device.Stream, owner.PieceFlag(_slot, count - 1), message); // those before it came before it
        }

        public override void Send(Tensor pieces)
        {
            (int first, int end, int reader) = (_passed, layout.EndOf(pieces, dtype, _passed, owner.Rank), Receiver(to, owner.Rank));
            owner._device.Context.MakeCurrent();
            CudaStream queue = owner.FollowCompute();
            if (first == 0) owner.AwaitRoom(queue, reader, _slot, message);
            for (; _passed < end; _passed++)
            {
                (long start, long bytes) = (layout.Start(_passed) * dtype.Size(), layout.Count(_passed) * dtype.Size());
                queue.CopyAsync(pieces.Pointer + (nint)(start - (layout.Start(first) * dtype.Size())), owner.Slot(reader, _slot) + (nint)start, bytes);
                owner._memory.Raise(queue, reader, owner.PieceFlag(_slot, _passed), message);
                counters.Count(CollectiveKind.SendReceive, bytes);
            }
            owner._sent[_slot].Record(queue);
        }

        protected override void Dispose(bool disposing)
        {
            Wait(layout.Ranks);
            owner._device.Context.MakeCurrent();
            if (_passed > 0) owner._device.Stream.WaitFor(owner._sent[_slot]);
            owner.End(owner.FollowCompute(), _slot, message);
            block?.Dispose();
        }
    }
}
