using LaspNative.Runtime;

namespace LaspNative.Collectives;

/// <summary>A relay by sends and receives. All receives are under way from the start: where a transport keeps one order, as NCCL does, what is passed on and whatever else the group does goes behind them.</summary>
internal sealed class MessageRelay : BlockRelay
{
    private readonly ICommunicator _group;
    private readonly DType _dtype;
    private readonly BlockLayout _pieces;
    private readonly int? _to;
    private readonly Queue<CommunicationWork> _receives = new();
    private readonly List<CommunicationWork> _sends = [];
    private readonly List<Tensor> _parts = []; // pieces in flight
    private int _arrived, _passed; // pieces

    public MessageRelay(ICommunicator group, Shape shape, DType dtype, BlockLayout pieces, int? from, int? to)
    {
        (_group, _dtype, _pieces, _to) = (group, dtype, pieces, to);
        if (from is not { } sender) return;
        Block = Tensor.Empty(shape, dtype, group.Device, MemoryCategory.Communication);
        for (int piece = 0; piece < pieces.Ranks; piece++) _receives.Enqueue(group.Receive(Part(Block, 0, piece), sender));
    }

    public override Tensor? Block { get; }

    public override void Wait(int count)
    {
        CheckPieces(count, _pieces.Ranks, _group.Rank);
        for (; _arrived < count && _receives.TryDequeue(out CommunicationWork? receive); _arrived++) receive.Wait();
    }

    public override void Send(Tensor pieces)
    {
        (int first, int end) = (_passed, _pieces.EndOf(pieces, _dtype, _passed, _group.Rank));
        for (; _passed < end; _passed++) _sends.Add(_group.Send(Part(pieces, first, _passed), Receiver(_to, _group.Rank)));
    }

    /// <summary>A piece of a tensor that begins with piece <paramref name="first"/>.</summary>
    private Tensor Part(Tensor pieces, int first, int piece)
    {
        Tensor part = pieces.Part(_pieces.Start(piece) - _pieces.Start(first), [_pieces.Count(piece)]);
        _parts.Add(part);
        return part;
    }

    protected override void Dispose(bool disposing)
    {
        Wait(_pieces.Ranks);
        foreach (CommunicationWork send in _sends) send.Wait();
        foreach (Tensor part in _parts) part.Dispose();
        Block?.Dispose();
    }
}
