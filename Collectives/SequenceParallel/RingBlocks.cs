using LaspNative.Runtime;

namespace LaspNative.Collectives;

/// <summary>What a rank reads of another rank's block: the keys and values of one piece, and the weights that take them to the reading rank's entry.</summary>
/// <param name="Weights">wk_j = exp(G_C - G_j) x A of the ranks between, [B, M, H(, D)]; null: 1.</param>
internal sealed record RingBlock(int Rank, DocumentPiece Piece, Tensor K, Tensor V, Tensor? Weights) : IDisposable
{
    public void Dispose()
    {
        K.Dispose();
        V.Dispose();
        Weights?.Dispose();
    }
}

/// <summary>
/// How far back a piece reads: through earlier ranks' last pieces, nearest first, until its document starts. On the way A of the ranks passed is multiplied up.
/// </summary>
internal sealed class RingReach(AttentionCall call, Tensor? decay, DocumentPiece? reader) : IDisposable
{
    private Tensor? _between; // A of the ranks between [B, H(, D)]; null: 1

    private IBackend Backend => call.Device.Backend;

    /// <summary>What is visible of the next block (K, V and a decay that travels), given from the nearest earlier rank on; null: nothing.</summary>
    public RingBlock? Next(int rank, RingTensors block)
    {
        if (rank > call.Group.Rank || reader is not { } reading) return null;
        if (call.PiecesOf(rank) is not [.., var piece] || piece.Document != reading.Document) return null;
        Tensor? weights = null;
        if (decay is not null)
        {
            using Tensor own = decay.Shape.Rank == 1 ? decay.Share() : LocalRuns.Tokens(block[2], piece);
            weights = call.DecayWeights(own, piece.Length, toEnd: true, _between);
            PassOver(own, piece.Length);
        }
        return new RingBlock(rank, piece, LocalRuns.Tokens(block[0], piece), LocalRuns.Tokens(block[1], piece), weights);
    }

    private void PassOver(Tensor own, long tokens)
    {
        Tensor factor = Tensor.Empty(call.FactorShape(own), own.DType, call.Device, MemoryCategory.States);
        Backend.RunDecay(own, tokens, factor);
        if (_between is not null)
        {
            // A of a run of runs is the product, which Horner's rule forms from M = 0.
            using Tensor none = Tensor.Zeros([1, factor.Count, 1], factor.DType, call.Device, MemoryCategory.States), factors = factor.View([1, factor.Count]), product = _between.View([factor.Count, 1]);
            Backend.CombineStates(none, factors, first: 0, count: 1, step: 1, product, product);
            factor.Dispose();
            return;
        }
        _between = factor;
    }

    public void Dispose() => _between?.Dispose();
}

/// <summary>
/// Queries that read earlier ranks' blocks: the tokens of this rank's first piece, or, at its end, the D unit vectors behind the document's last token, which read its final state:
/// row d of S is what e_d reads, scale 1, with the weight of the whole piece.
/// </summary>
internal sealed class RingReader : IDisposable
{
    private readonly AttentionCall _call;

    public RingReader(AttentionCall call, Tensor? decay, DocumentPiece piece, Tensor q, bool atEnd)
    {
        (_call, Piece, AtEnd) = (call, piece, atEnd);
        Q = atEnd ? UnitQueries() : LocalRuns.Tokens(q, piece);
        if (decay is null) return;
        using Tensor own = decay.Shape.Rank == 1 ? decay.Share() : LocalRuns.Tokens(decay, piece);
        if (!atEnd)
        {
            Weights = call.DecayWeights(own, piece.Length, toEnd: false, between: null);
            return;
        }
        using Tensor run = Tensor.Empty(call.FactorShape(own), own.DType, call.Device, MemoryCategory.States);
        call.Device.Backend.RunDecay(own, piece.Length, run);
        Weights = call.DecayWeights(decay: null, call.KeyDim, toEnd: false, run);
    }

    public DocumentPiece Piece { get; }

    public bool AtEnd { get; }

    /// <summary>[B, n, H, D], n the piece's tokens or D.</summary>
    public Tensor Q { get; }

    /// <summary>wq_i = exp(G_i), [B, n, H(, D)]; null: 1.</summary>
    public Tensor? Weights { get; }

    public double Scale => AtEnd ? 1 : _call.Scale;

    public Shape OutputShape => Q.Shape.WithLast(_call.ValueDim);

    private IBackend Backend => _call.Device.Backend;

    /// <summary>Adds a sum in fp32 (fp64) to the piece's tokens of <paramref name="o"/>, or to the document's final state.</summary>
    public void AddResult(Tensor sum, Tensor o, Tensor? finalState)
    {
        if (AtEnd)
        {
            using Tensor target = _call.OfDocument(finalState!, Piece), state = _call.EmptyState();
            Backend.Permute(sum, [0, 2, 1, 3], state);
            Backend.AddScaled(state, 1, target);
            return;
        }
        using Tensor piece = LocalRuns.Tokens(o, Piece), own = Tensor.Empty(sum.Shape, sum.DType, _call.Device);
        Backend.Cast(piece, own);
        Backend.AddScaled(sum, 1, own);
        Backend.Cast(own, piece);
    }

    /// <summary>The gradient of what these queries read, [B, n, H, E], for the caller to own.</summary>
    public Tensor OutputGradient(Tensor dO, Tensor? dFinalState)
    {
        if (!AtEnd) return LocalRuns.Tokens(dO, Piece);
        using Tensor gradient = _call.OfDocument(dFinalState!, Piece), byRow = Tensor.Empty(OutputShape, gradient.DType, _call.Device);
        Backend.Permute(gradient, [0, 2, 1, 3], byRow);
        Tensor rounded = Tensor.Empty(OutputShape, _call.DType, _call.Device);
        Backend.Cast(byRow, rounded);
        return rounded;
    }

    /// <summary>[B, D, H, D]: query d of every head is e_d.</summary>
    private Tensor UnitQueries()
    {
        int d = (int)_call.KeyDim, row = (int)_call.Heads * d;
        var values = new float[_call.Batch * d * row];
        for (int i = 0; i < values.Length; i += d) values[i + (i / row % d)] = 1;
        using Tensor units = Tensor.FromSpan(values, [_call.Batch, d, _call.Heads, d], _call.Device);
        Tensor queries = Tensor.Empty(units.Shape, _call.DType, _call.Device);
        Backend.Cast(units, queries);
        return queries;
    }

    public void Dispose()
    {
        Q.Dispose();
        Weights?.Dispose();
    }
}

/// <summary>The readers of one rank, the tokens first: none where no document came from before; with the final state's where that document ends here.</summary>
internal sealed class RingReaders : IDisposable
{
    public RingReaders(AttentionCall call, Tensor? decay, DocumentPiece? reading, Tensor q, bool withEnd)
    {
        if (reading is not { } piece) return;
        All.Add(new RingReader(call, decay, piece, q, atEnd: false));
        if (withEnd && piece.IsLast) All.Add(new RingReader(call, decay, piece, q, atEnd: true));
    }

    public List<RingReader> All { get; } = [];

    public RingReader? Tokens => All.FirstOrDefault();

    public void Dispose() => All.ForEach(r => r.Dispose());
}
