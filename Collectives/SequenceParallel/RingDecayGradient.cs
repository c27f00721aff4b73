using LaspNative.Runtime;

namespace LaspNative.Collectives;

/// <summary>
/// The gradient of this rank's log decay along the paths that connect ranks. A path from token j of rank a to token i of rank b crosses the positions behind j in a, every position of the ranks
/// between, and the positions up to i in b; its weight in dg is q_i . dq_i of that block (= k_j . dk_j), and nothing is ever subtracted.
///   in a        from k . dk, by whoever computes the block; it rides home with dK, dV
///   in b        from q . dq, here
///   between     the block's whole sum, for every position: b sums it per rank passed over, and one reduce-scatter brings each rank its own (a decay per head is counted here at once)
/// </summary>
internal sealed class RingDecayGradient : IDisposable
{
    private readonly AttentionCall _call;
    private readonly Tensor? _crossings; // [W, B, H(, D)]: what rank r's every position gets from paths that end here
    private readonly Tensor? _arriving; // [B, H(, D)]
    private CommunicationWork? _work;

    public RingDecayGradient(AttentionCall call, Tensor decay)
    {
        _call = call;
        Own = Tensor.Zeros(decay.Shape, decay.DType, call.Device);
        if (decay.Shape.Rank == 1) return;
        Shape factor = call.FactorShape(decay);
        _crossings = Tensor.Zeros([call.Group.Size, .. factor], decay.DType, call.Device, MemoryCategory.Communication);
        _arriving = Tensor.Empty(factor, decay.DType, call.Device, MemoryCategory.Communication);
    }

    /// <summary>Shaped like the decay: what is known on this rank.</summary>
    public Tensor Own { get; }

    private IBackend Backend => _call.Device.Backend;

    /// <summary>Adds the paths that end in this reader, from the block of rank <paramref name="from"/>. The final state's queries stand behind the piece: their paths cross all of it.</summary>
    public void AddReading(RingReader reader, Tensor dq, int from)
    {
        if (_crossings is null && !reader.AtEnd) Backend.AddDecayPaths(reader.Q, dq, fromEntry: true, Own);
        using Tensor running = Tensor.Zeros(Own.Shape.Rank == 4 ? dq.Shape : [dq.Shape[0], dq.Shape[1], dq.Shape[2]], Own.DType, _call.Device);
        Backend.AddDecayPaths(reader.Q, dq, fromEntry: true, running);
        using Tensor total = FirstPosition(running);
        if (_crossings is null)
        {
            AddPerHead(total, PositionsBetween(from) + (reader.AtEnd ? reader.Piece.Length : 0));
            return;
        }
        if (!reader.AtEnd)
        {
            using Tensor target = LocalRuns.Tokens(Own, reader.Piece);
            Backend.AddScaled(running, 1, target);
        }
        for (int rank = from + 1; rank < _call.Group.Rank + (reader.AtEnd ? 1 : 0); rank++)
        {
            using Tensor crossed = _crossings.Slice(rank, 1);
            Backend.AddScaled(total, 1, crossed);
        }
    }

    private long PositionsBetween(int from) => _call.Partition.Start(_call.Group.Rank) - _call.Partition.Start(from + 1);

    /// <summary>The sum over all queries, [B, H(, D)]: every path from the entry crosses the first position.</summary>
    private Tensor FirstPosition(Tensor running)
    {
        Shape shape = running.Shape;
        Tensor first = Tensor.Empty(shape.Rank == 4 ? [shape[0], shape[2], shape[3]] : [shape[0], shape[2]], running.DType, _call.Device);
        long row = first.Bytes / shape[0];
        for (long b = 0; b < shape[0]; b++) _call.Device.Copy(running.Pointer + (nint)(b * shape[1] * row), first.Pointer + (nint)(b * row), row);
        return first;
    }

    private void AddPerHead(Tensor total, long positions)
    {
        if (positions == 0) return;
        for (long b = 0; b < total.Shape[0]; b++)
        {
            using Tensor row = total.Slice(b, 1);
            Backend.AddScaled(row, positions, Own);
        }
    }

    /// <summary>Tells the ranks what passed over them. For a decay per head there is nothing to tell.</summary>
    public void SendCrossings()
    {
        if (_crossings is not null) _work = _call.Group.ReduceScatter(_crossings, _arriving!);
    }

    /// <summary>dDecay = what came home (null for a decay per head) + what was found here + what passed over, at every position of the piece that it passed through.</summary>
    public void Write(Tensor? home, DocumentPiece? passed, Tensor dDecay)
    {
        Backend.Cast(Own, dDecay);
        if (home is null) return;
        Backend.AddScaled(home, 1, dDecay);
        Wait();
        if (passed is not { } piece) return;
        using Tensor target = LocalRuns.Tokens(dDecay, piece);
        long batch = target.Shape[0], width = _arriving!.Count / batch;
        using Tensor ones = Tensor.Empty([batch, piece.Length, 1], dDecay.DType, _call.Device);
        using Tensor matrix = target.View([batch, piece.Length, width]), crossing = _arriving.View([batch, 1, width]);
        Backend.Fill(1, ones);
        Backend.Gemm(ones, false, crossing, false, alpha: 1, beta: 1, matrix);
    }

    private void Wait()
    {
        _work?.Wait();
        _work = null;
    }

    public void Dispose()
    {
        Wait();
        Own.Dispose();
        _crossings?.Dispose();
        _arriving?.Dispose();
    }
}
