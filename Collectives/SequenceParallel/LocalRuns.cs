using LaspNative.Autograd;
using LaspNative.Runtime;

namespace LaspNative.Collectives;

/// <summary>
/// A rank's own chunk, computed as runs of tokens: one per document piece, the whole chunk where nothing is packed. Every run is the affine map S_out = A S_in + M, and only two of them
/// meet other ranks (the documents between them are whole, and computed in one call): the first, if its document began before (it enters with P_t), and the last, if its document goes on (D_t comes back through it).
///   a run enters with  P_t, or its document's initial state, or zero       its gradient D comes from  D_t, or its document's final state, or zero
/// All strategies that pass states compute through this; they differ only in how P_t and D_t travel.
/// A device that cuts runs into segments finds the segments' states once per direction: they are kept from the first phase that needs them to the last.
/// </summary>
internal sealed class LocalRuns(AttentionCall call, SavedValue k, SavedValue v, Tensor? decay, Tensor? initialState) : IDisposable
{
    private readonly Run[] _runs = RunsOf(call.OwnPieces); // three at most
    private PackedRuns? _wholeDocuments; // of the one piece that has several

    public Tensor K => k.Tensor;

    public Tensor V => v.Tensor;

    public Tensor? Decay => decay;

    private IBackend Backend => call.Device.Backend;

    /// <summary>
    /// M_t: the state that leaves the chunk when zero enters it. Nobody reads it when no document goes on (it is finite all the same); the segments of the last run are found even so, since Forward needs
    /// them and ranks that do the same work at the same time do not wait for one another.
    /// </summary>
    public void State(Tensor state)
    {
        if (_runs is not [.., var last] || (last.Tokens.IsLast && !IsCut(last.Tokens)))
        {
            Backend.Fill(0, state);
            return;
        }
        using Piece piece = Cut(last.Tokens);
        OwnState(piece, last, last.Tokens.IsFirst ? piece.Initial : null, state);
    }

    /// <summary>o, and the final states of the documents that end here (zeros for the others).</summary>
    public void Forward(Tensor q, Tensor? entering, Tensor o, Tensor? finalState)
    {
        if (finalState is not null) Backend.Fill(0, finalState);
        foreach (Run run in _runs)
        {
            DocumentPiece p = run.Tokens;
            using Piece piece = Cut(p);
            using TensorLease qPiece = Of(q, p), oPiece = Of(o, p);
            Tensor? start = p.IsFirst ? piece.Initial : entering;
            if (finalState is not null && p.IsLast)
            {
                using Tensor final = call.OfDocument(finalState, p);
                OwnState(piece, run, start, final);
            }
            else if (run.Entering is null && IsCut(p))
                OwnState(piece, run, null, state: null);
            Backend.LinearAttention(qPiece, piece.K, piece.V, piece.Decay, start, call.Scale, oPiece, run.Entering, PackedRunsOf(p));
        }
    }

    /// <summary>dM_t: the gradient of the state that enters the chunk, from the chunk's own outputs and final state. As with <see cref="State"/>, nobody reads it when no document came from before.</summary>
    public void BackwardState(Tensor q, Tensor dO, Tensor? dFinalState, Tensor dState)
    {
        if (_runs is not [var first, ..] || (first.Tokens.IsFirst && !IsCut(first.Tokens)))
        {
            Backend.Fill(0, dState);
            return;
        }
        using Piece piece = Cut(first.Tokens);
        using TensorLease dFinal = first.Tokens.IsLast ? Leaving(first.Tokens, leaving: null, dFinalState) : default;
        OwnGradient(piece, first.Tokens, q, dO, dFinal.OrNull, dState, Segments(ref first.Leaving, first.Tokens));
    }

    /// <summary>dq. With <paramref name="q"/>: <see cref="BackwardBegin"/> will be asked for the gradient of a decay per token or channel, and finds what this pass can leave for it.</summary>
    public void BackwardQuery(Tensor? q, Tensor dO, Tensor? entering, Tensor dq)
    {
        foreach (Run run in _runs)
        {
            DocumentPiece p = run.Tokens;
            using Piece piece = Cut(p);
            using TensorLease qPiece = q is null ? default : Of(q, p), dOPiece = Of(dO, p), dqPiece = Of(dq, p);
            Tensor? paths = q is null ? null : Paths(piece, run, qPiece, dOPiece);
            Backend.LinearAttentionBackwardQuery(
                piece.K, piece.V, dOPiece, piece.Decay, p.IsFirst ? piece.Initial : entering, call.Scale, dqPiece, run.Entering, paths is null ? null : qPiece.OrNull, paths,
                PackedRunsOf(p));
        }
    }

    /// <summary>dk and dv. Before <see cref="BackwardDecay"/>, which uses what this leaves.</summary>
    public void BackwardKeyValue(Tensor q, Tensor dO, Tensor? leaving, Tensor? dFinalState, Tensor dk, Tensor dv)
    {
        foreach (Run run in _runs)
        {
            DocumentPiece p = run.Tokens;
            using Piece piece = Cut(p);
            using TensorLease qPiece = Of(q, p), dOPiece = Of(dO, p), dkPiece = Of(dk, p), dvPiece = Of(dv, p);
            using TensorLease d = Leaving(p, leaving, dFinalState);
            FindLeaving(piece, run, q, dO);
            Backend.LinearAttentionBackwardKeyValue(qPiece, piece.K, piece.V, dOPiece, piece.Decay, d.OrNull, call.Scale, dkPiece, dvPiece, run.Leaving, PackedRunsOf(p));
        }
    }

    /// <summary>dk, dv and, where it is asked for, dDecay: what the first phase gets back. A decay with tokens shares the passes of dk and dv.</summary>
    public void BackwardBegin(Tensor q, Tensor dO, Tensor? entering, Tensor? leaving, Tensor? dFinalState, Tensor dk, Tensor dv, Tensor? dDecay)
    {
        if (dDecay is null or { Shape.Rank: 1 })
        {
            BackwardKeyValue(q, dO, leaving, dFinalState, dk, dv);
            if (dDecay is not null) BackwardDecay(q, dO, entering, leaving, dFinalState, dDecay);
            return;
        }
        foreach (Run run in _runs)
        {
            DocumentPiece p = run.Tokens;
            using Piece piece = Cut(p);
            using TensorLease qPiece = Of(q, p), dOPiece = Of(dO, p), dkPiece = Of(dk, p), dvPiece = Of(dv, p), dDecayPiece = Of(dDecay, p);
            using TensorLease d = Leaving(p, leaving, dFinalState);
            FindLeaving(piece, run, q, dO);
            Backend.LinearAttentionBackwardKeyValueDecay(
                qPiece, piece.K, piece.V, dOPiece, piece.Decay!, p.IsFirst ? piece.Initial : entering, d.OrNull, call.Scale, dkPiece, dvPiece, dDecayPiece,
                run.Entering, run.Leaving, run.Paths, PackedRunsOf(p));
            run.Paths?.Dispose();
            run.Paths = null;
        }
    }

    /// <summary>All gradients in one call, for a run that no other rank has a part in. What leaves the segments is found on its way.</summary>
    public void BackwardTogether(Tensor q, Tensor dO, Tensor? dFinalState, Tensor dq, KeySideGradients made)
    {
        foreach (Run run in _runs)
        {
            DocumentPiece p = run.Tokens;
            using Piece piece = Cut(p);
            using TensorLease qPiece = Of(q, p), dOPiece = Of(dO, p), dqPiece = Of(dq, p), dkPiece = Of(made.Key, p), dvPiece = Of(made.Value, p), dDecayPiece = Of(made.Decay, p);
            using TensorLease d = Leaving(p, leaving: null, dFinalState);
            Backend.LinearAttentionBackward(
                qPiece, piece.K, piece.V, dOPiece, piece.Decay!, piece.Initial, d.OrNull, call.Scale, dqPiece, dkPiece, dvPiece, dDecayPiece, run.Entering, run.Leaving,
                PackedRunsOf(p));
        }
    }

    /// <summary>dDecay, shaped like the decay: per head the sum over this rank's tokens.</summary>
    public void BackwardDecay(Tensor q, Tensor dO, Tensor? entering, Tensor? leaving, Tensor? dFinalState, Tensor dDecay)
    {
        bool perHead = dDecay.Shape.Rank == 1;
        if (perHead) Backend.Fill(0, dDecay);
        foreach (Run run in _runs)
        {
            DocumentPiece p = run.Tokens;
            using Piece piece = Cut(p);
            using TensorLease qPiece = Of(q, p), dOPiece = Of(dO, p);
            using TensorLease d = Leaving(p, leaving, dFinalState);
            using TensorLease part = perHead ? TensorLease.Own(Tensor.Empty(dDecay.Shape, dDecay.DType, call.Device)) : Of(dDecay, p);
            Backend.LinearAttentionBackwardDecay(
                qPiece, piece.K, piece.V, dOPiece, piece.Decay!, p.IsFirst ? piece.Initial : entering, d.OrNull, call.Scale, part, run.Entering, run.Leaving, PackedRunsOf(p));
            if (perHead) Backend.AddScaled(part, 1, dDecay);
        }
    }

    /// <summary>Gradients of the initial states of the documents that start here (zeros for the others): A D + dM of their first piece.</summary>
    public void BackwardInitialState(Tensor q, Tensor dO, Tensor? leaving, Tensor? dFinalState, Tensor dInitialState)
    {
        Backend.Fill(0, dInitialState);
        foreach (Run run in _runs)
        {
            DocumentPiece p = run.Tokens;
            if (!p.IsFirst) continue;
            using Piece piece = Cut(p);
            using Tensor gradient = call.OfDocument(dInitialState, p);
            using TensorLease d = Leaving(p, leaving, dFinalState);
            OwnGradient(piece, p, q, dO, d.OrNull, gradient, segments: null);
        }
    }

    /// <summary>Room for what the pass of dq leaves for the gradient of the decay; null where the device has no use for it, and for packed runs.</summary>
    private Tensor? Paths(Piece piece, Run run, Tensor q, Tensor dO)
    {
        long count = run.Tokens.Count > 1 ? 0 : Backend.LinearAttentionPaths(q, piece.K, piece.V, dO, piece.Decay!);
        return count == 0 ? null : run.Paths ??= Tensor.Empty([count], DType.F32, call.Device, MemoryCategory.Workspace);
    }

    /// <summary>What a piece leaves, entered with <paramref name="start"/> (null: zero, and it leaves M).</summary>
    private void OwnState(Piece piece, Run run, Tensor? start, Tensor? state) =>
        Backend.LinearAttentionState(piece.K, piece.V, piece.Decay, state, Segments(ref run.Entering, run.Tokens), start, PackedRunsOf(run.Tokens));

    private void OwnGradient(Piece piece, DocumentPiece p, Tensor q, Tensor dO, Tensor? dFinal, Tensor? dState, Tensor? segments)
    {
        using TensorLease qPiece = Of(q, p), dOPiece = Of(dO, p);
        Backend.LinearAttentionBackwardState(qPiece, dOPiece, piece.Decay, call.Scale, dState, segments, dFinal, PackedRunsOf(p));
    }

    /// <summary>The segments' own gradients of a piece, where the device cuts it and no earlier phase has found them.</summary>
    private void FindLeaving(Piece piece, Run run, Tensor q, Tensor dO)
    {
        if (run.Leaving is null && IsCut(run.Tokens)) OwnGradient(piece, run.Tokens, q, dO, null, dState: null, Segments(ref run.Leaving, run.Tokens));
    }

    private long SegmentCount(DocumentPiece p) => Backend.LinearAttentionSegments(call.Batch, p.Length, call.Heads, call.KeyDim, call.ValueDim);

    /// <summary>Packed runs are cut inside their calls.</summary>
    private bool IsCut(DocumentPiece p) => p.Count == 1 && SegmentCount(p) > 1;

    /// <summary>The documents of a piece that has several.</summary>
    private PackedRuns? PackedRunsOf(DocumentPiece p) => p.Count == 1 ? null : _wholeDocuments ??= call.Documents!.Runs(p);

    /// <summary>The segments of a piece, kept from now on; null where the device does not cut it.</summary>
    private Tensor? Segments(ref Tensor? kept, DocumentPiece p) =>
        IsCut(p) ? kept ??= Tensor.Empty(call.StateShape.Times(SegmentCount(p)), call.DType.Accumulator(), call.Device, MemoryCategory.States) : null;

    public void Dispose()
    {
        foreach (Run run in _runs) run.Dispose();
        _wholeDocuments?.Dispose();
        _wholeDocuments = null;
    }

    /// <summary>The gradient of the state that leaves a piece; none: zero.</summary>
    private TensorLease Leaving(DocumentPiece p, Tensor? leaving, Tensor? dFinalState)
    {
        if (!p.IsLast) return TensorLease.Borrow(leaving);
        return dFinalState is null ? default : TensorLease.Own(call.OfDocument(dFinalState, p));
    }

    private static TensorLease Of(Tensor x, DocumentPiece p) => IsAll(p, x) ? TensorLease.Borrow(x) : TensorLease.Own(Tokens(x, p));

    private static bool IsAll(DocumentPiece p, Tensor x) => p.Start == 0 && p.Length == x.Shape[1];

    /// <summary>The tokens of a piece in a tensor [B, C, ...]; a packed batch has one row.</summary>
    internal static Tensor Tokens(Tensor x, DocumentPiece p)
    {
        if (IsAll(p, x)) return x.Share();
        Span<long> extents = stackalloc long[x.Shape.Rank];
        for (int i = 0; i < extents.Length; i++) extents[i] = x.Shape[i];
        using Tensor rows = x.View(new Shape(extents[1..]));
        using Tensor cut = rows.Slice(p.Start, p.Length);
        extents[1] = p.Length;
        return cut.View(new Shape(extents));
    }

    private Piece Cut(DocumentPiece p) => new(
        Of(K, p),
        Of(V, p),
        decay is null or { Shape.Rank: 1 } ? TensorLease.Borrow(decay) : Of(decay, p),
        TensorLease.Own(p.IsFirst && initialState is not null ? call.OfDocument(initialState, p) : null));

    private static Run[] RunsOf(IReadOnlyList<DocumentPiece> pieces)
    {
        if (pieces.Count > 1) pieces = PackedDocuments.Gathered(pieces);
        var runs = new Run[pieces.Count];
        for (int i = 0; i < runs.Length; i++) runs[i] = new Run(pieces[i]);
        return runs;
    }

    /// <summary>One run, and what is kept of it between the phases.</summary>
    private sealed class Run(DocumentPiece tokens) : IDisposable
    {
        public Tensor? Entering; // segments of State and Forward
        public Tensor? Leaving; // segments of BackwardState and BackwardKeyValue
        public Tensor? Paths; // of BackwardQuery, for BackwardBegin

        public DocumentPiece Tokens { get; } = tokens;

        public void Dispose()
        {
            Entering?.Dispose();
            Leaving?.Dispose();
            Paths?.Dispose();
            (Entering, Leaving, Paths) = (null, null, null);
        }
    }

    /// <summary>What a run's calls read, for the length of one phase.</summary>
    private readonly struct Piece(TensorLease k, TensorLease v, TensorLease decay, TensorLease initial) : IDisposable
    {
        public Tensor K => k;

        public Tensor V => v;

        public Tensor? Decay => decay.OrNull;

        public Tensor? Initial => initial.OrNull;

        public void Dispose()
        {
            k.Dispose();
            v.Dispose();
            decay.Dispose();
            initial.Dispose();
        }
    }
}
