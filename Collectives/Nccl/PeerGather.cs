using LaspNative.Runtime;
using LaspNative.Runtime.Cuda;

namespace LaspNative.Collectives;

/// <summary>
/// Gathers of short blocks by copy engines. Each rank writes its block into the others' memory and raises a flag behind it; readers wait in their compute stream for the flags of those they read. What is
/// computed meanwhile keeps all multiprocessors: a collective kernel would take some of them first, or come last, behind the blocks of the kernels that its message was to travel beside.
/// Message n lies in slot n mod 4; before a rank writes there again it waits until message n - 4 has been read. A block that came before its reader asks for it costs the reader nothing.
/// </summary>
internal sealed class PeerGather : IDisposable
{
    /// <summary>Longest block of one rank.</summary>
    private const long MaxBlockBytes = 4 << 20;

    private const int Slots = 4;
    private readonly CudaDevice _device;
    private readonly PeerMemory _memory; // [Slots, W, MaxBlockBytes]; flags: arrived [Slots, W], read [Slots, W]
    private readonly CudaEvent _computed;
    private readonly CudaEvent[] _sent; // by slot
    private readonly bool[] _isHeld; // by slot: whether this rank may still read it
    private uint _messages;

    private PeerGather(CudaDevice device, PeerMemory memory)
    {
        (_device, _memory) = (device, memory);
        _computed = new CudaEvent(device.Context);
        _sent = [.. Enumerable.Range(0, Slots).Select(_ => new CudaEvent(device.Context))];
        _isHeld = new bool[Slots];
    }

    private int Rank => _memory.Rank;

    private int Size => _memory.Size;

    /// <summary>As <see cref="PeerMemory.Open"/>.</summary>
    public static PeerGather? Open(CudaDevice device, int rank, ThreadMeeting meeting) =>
        PeerMemory.Open(device, rank, meeting, Slots * meeting.Size * MaxBlockBytes, 2 * Slots * meeting.Size, series: 1, memory => new PeerGather(device, memory));

    /// <summary>
    /// Whether one gather more fits: as many as there are slots may be under way and undisposed. All ranks call the same in the same order, and so get the same answer.
    /// </summary>
    public bool Takes(Tensor source) => source.Bytes <= MaxBlockBytes && !_isHeld[(_messages + 1) % Slots];

    /// <summary>Sends a block to every rank. The source must not change until the gather is disposed.</summary>
    public BlockGather Start(Tensor source)
    {
        uint message = ++_messages;
        var slot = (int)(message % Slots);
        CudaStream queue = FollowCompute();
        for (int step = 1; step <= Size; step++)
        {
            int reader = (Rank + step) % Size; // this rank itself comes last
            if (message > Slots && reader != Rank) _memory.Await(queue, ReadFlag(slot, reader), message - Slots);
            queue.CopyAsync(source.Pointer, Slot(reader, slot) + (nint)(Rank * source.Bytes), source.Bytes);
            _memory.Raise(queue, reader, ArrivedFlag(slot, Rank), message);
        }
        _sent[slot].Record(queue);
        _isHeld[slot] = true;
        return new Message(this, message, Tensor.WrapDevicePointer(Slot(Rank, slot), source.Shape.Times(Size), source.DType, _device));
    }

    public void Abort() => _memory.Abort(series: 0, _messages);

    /// <summary>As <see cref="PeerMemory.Abandon"/>, instead of <see cref="Dispose"/>.</summary>
    public void Abandon()
    {
        _memory.Abandon();
        Free();
    }

    public void Dispose()
    {
        _memory.Dispose();
        Free();
    }

    private void Free()
    {
        _computed.Dispose();
        foreach (CudaEvent sent in _sent) sent.Dispose();
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

    private sealed class Message(PeerGather owner, uint message, Tensor blocks) : BlockGather
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
            for (int sender = 0; sender < owner.Size; sender++)
                if (sender != owner.Rank) owner._memory.Raise(queue, sender, owner.ReadFlag(_slot, owner.Rank), message);
            owner._isHeld[_slot] = false;
            blocks.Dispose();
        }
    }
}
