using LaspNative.Runtime;
using LaspNative.Runtime.Interop;

namespace LaspNative.Collectives;

/// <summary>The operations, and which of them copy engines do.</summary>
public sealed partial class NcclCommunicator
{
    public override bool LeavesComputeAlone => _shards is not null;

    public override string Carrier => _shards is not null ? "copy engines" : "NCCL";

    public override bool LeavesSquares(CollectiveKind kind, Tensor source)
    {
        ArgumentNullException.ThrowIfNull(source);
        return kind != CollectiveKind.AllGather && _shards?.Takes(kind, source) == true;
    }

    public override void TakeSquares(Tensor total)
    {
        if (_shards is { } shards) shards.TakeSquares(total);
        else base.TakeSquares(total);
    }

    private protected override CommunicationWork Start(CollectiveKind kind, Tensor source, Tensor destination, int root)
    {
        if (source.Count == 0) return CommunicationWork.Done;
        if (_shards is { } shards && shards.Takes(kind, source)) return new PeerWork(this, Beside(() => shards.Start(kind, source, destination)));
        nint from = source.Pointer, to = destination.Pointer;
        nuint count = (nuint)source.Count;
        ncclDataType_t type = TypeOf(source.DType);
        return Launch(c =>
        {
            switch (kind)
            {
                case CollectiveKind.AllGather:
                    Nccl.ncclAllGather(from, to, count, type, c, Stream).Check(Rank, c);
                    break;
                case CollectiveKind.AllReduce:
                    Nccl.ncclAllReduce(from, to, count, type, ncclRedOp_t.ncclSum, c, Stream).Check(Rank, c);
                    break;
                case CollectiveKind.ReduceScatter:
                    Nccl.ncclReduceScatter(from, to, (nuint)destination.Count, type, ncclRedOp_t.ncclSum, c, Stream).Check(Rank, c);
                    break;
                case CollectiveKind.Broadcast:
                    Nccl.ncclBroadcast(from, to, count, type, root, c, Stream).Check(Rank, c);
                    break;
                default:
                    AllToAll(from, to, source.Bytes / Size, c);
                    break;
            }
        });
    }

    private protected override BlockGather? StartGather(Tensor source) => _blocks is { } blocks && source.Count > 0 && blocks.Takes(source.Bytes) ? Beside(() => blocks.Gather(source)) : null;

    private protected override BlockRelay? StartRelay(Shape shape, DType dtype, BlockLayout pieces, int? from, int? to) =>
        _blocks is { } blocks && shape.Count > 0 && blocks.Takes(shape.Count * dtype.Size(), pieces.Ranks) ? Beside(() => blocks.Relay(shape, dtype, pieces, from, to, Counters)) : null;

    private protected override CommunicationWork StartAllGather(Tensor source, Tensor destination, BlockLayout blocks) => Launch(c => Group(c, () =>
    {
        for (int peer = 0; peer < Size; peer++)
        {
            Send(source, 0, blocks.Count(Rank), peer, c);
            Receive(destination, blocks.Start(peer), blocks.Count(peer), peer, c);
        }
    }));

    private protected override CommunicationWork StartReduceScatter(Tensor source, Tensor destination, BlockLayout blocks) => Launch(c => Group(c, () =>
    {
        ncclDataType_t type = TypeOf(source.DType);
        for (int root = 0; root < Size; root++)
        {
            if (blocks.Count(root) == 0) continue;
            Nccl.ncclReduce(At(source, blocks.Start(root)), destination.Pointer, (nuint)blocks.Count(root), type, ncclRedOp_t.ncclSum, root, c, Stream).Check(Rank, c);
        }
    }));

    private protected override CommunicationWork StartAllToAll(Tensor source, BlockLayout sent, Tensor destination, BlockLayout received) => Launch(c => Group(c, () =>
    {
        // What a rank keeps goes with the rest: a copy of its own holds NCCL's blocks up, until those of other kernels have all multiprocessors.
        for (int peer = 0; peer < Size; peer++)
        {
            Send(source, sent.Start(peer), sent.Count(peer), peer, c);
            Receive(destination, received.Start(peer), received.Count(peer), peer, c);
        }
    }));

    private protected override CommunicationWork StartSend(Tensor source, int peer) =>
        source.Count == 0 ? CommunicationWork.Done : Launch(c => Send(source, 0, source.Count, peer, c));

    private protected override CommunicationWork StartReceive(Tensor destination, int peer) =>
        destination.Count == 0 ? CommunicationWork.Done : Launch(c => Receive(destination, 0, destination.Count, peer, c));

    private protected override CommunicationWork StartSendReceive(Tensor source, int to, Tensor destination, int from) => Launch(c => Group(c, () =>
    {
        Send(source, 0, source.Count, to, c);
        Receive(destination, 0, destination.Count, from, c);
    }));

    private void AllToAll(nint source, nint destination, long block, nint communicator) => Group(communicator, () =>
    {
        for (int peer = 0; peer < Size; peer++)
        {
            nint offset = (nint)(peer * block);
            Nccl.ncclSend(source + offset, (nuint)block, ncclDataType_t.ncclUint8, peer, communicator, Stream).Check(Rank, communicator);
            Nccl.ncclRecv(destination + offset, (nuint)block, ncclDataType_t.ncclUint8, peer, communicator, Stream).Check(Rank, communicator);
        }
    });

    /// <summary>Sends some elements of a tensor; none need no message, and the peer posts none either.</summary>
    private void Send(Tensor source, long first, long count, int peer, nint communicator)
    {
        if (count > 0) Nccl.ncclSend(At(source, first), (nuint)count, TypeOf(source.DType), peer, communicator, Stream).Check(Rank, communicator);
    }

    private void Receive(Tensor destination, long first, long count, int peer, nint communicator)
    {
        if (count > 0) Nccl.ncclRecv(At(destination, first), (nuint)count, TypeOf(destination.DType), peer, communicator, Stream).Check(Rank, communicator);
    }

    private static nint At(Tensor tensor, long element) => tensor.Pointer + (nint)(element * tensor.DType.Size());

    private void Group(nint communicator, Action operations)
    {
        Nccl.ncclGroupStart().Check(Rank, communicator);
        try
        {
            operations();
        }
        catch
        {
            Nccl.ncclGroupEnd(); // The first error is the one to report.
            throw;
        }
        Nccl.ncclGroupEnd().Check(Rank, communicator);
    }

    private static ncclDataType_t TypeOf(DType dtype) => dtype switch
    {
        DType.F64 => ncclDataType_t.ncclFloat64,
        DType.F32 => ncclDataType_t.ncclFloat32,
        DType.BF16 => ncclDataType_t.ncclBfloat16,
        DType.I64 => ncclDataType_t.ncclInt64,
        _ => ncclDataType_t.ncclInt32,
    };
}
