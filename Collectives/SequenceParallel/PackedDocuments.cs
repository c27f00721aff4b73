using LaspNative.Runtime;

namespace LaspNative.Collectives;

/// <summary>The part of one document that lies in a rank's chunk, or several whole documents.</summary>
/// <param name="Document">Index of the (first) document.</param>
/// <param name="Start">First token, counted from the chunk's start.</param>
/// <param name="Length">Tokens, at least 1.</param>
/// <param name="IsFirst">The document starts with this piece: nothing before it is seen.</param>
/// <param name="IsLast">The document ends with this piece: nothing after it sees it.</param>
/// <param name="Count">Documents; with more than one all of them are whole.</param>
public readonly record struct DocumentPiece(int Document, long Start, long Length, bool IsFirst, bool IsLast, int Count = 1)
{
    public bool IsWhole => IsFirst && IsLast;
}

/// <summary>
/// Where the documents of a packed sequence begin and end: cu_seqlens [n+1] over the whole sequence, from 0 to N, strictly increasing.
/// A boundary resets the state: it is a mask (A = 0 for whatever run contains a document's start), never a decay of minus infinity.
/// </summary>
public sealed record PackedDocuments
{
    private readonly long[] _boundaries;

    public PackedDocuments(IReadOnlyList<long> boundaries)
    {
        ArgumentNullException.ThrowIfNull(boundaries);
        if (boundaries.Count < 2 || boundaries[0] != 0) throw new LaspException($"cu_seqlens starts with 0 and has an entry per document after it; got {(boundaries.Count == 0 ? "nothing" : $"{boundaries.Count} entries from {boundaries[0]}")}");
        for (int i = 1; i < boundaries.Count; i++)
            if (boundaries[i] <= boundaries[i - 1]) throw new LaspException($"cu_seqlens must increase: entry {i} is {boundaries[i]} after {boundaries[i - 1]}; leave out documents without tokens");
        _boundaries = [.. boundaries];
    }

    /// <summary>Documents n.</summary>
    public int Count => _boundaries.Length - 1;

    /// <summary>Tokens N of all documents.</summary>
    public long Tokens => _boundaries[^1];

    /// <summary>Where each document starts, and the end of the last: n + 1 entries.</summary>
    internal ReadOnlySpan<long> Boundaries => _boundaries;

    /// <summary>First token of a document.</summary>
    public long Start(int document) => _boundaries[document];

    /// <summary>The token after a document's last.</summary>
    public long End(int document) => _boundaries[document + 1];

    /// <summary>The document that holds a token.</summary>
    public int DocumentOf(long token)
    {
        int found = Array.BinarySearch(_boundaries, token);
        return found >= 0 ? found : ~found - 1;
    }

    /// <summary>The documents' pieces within tokens [start, start + length), in order; none for no tokens.</summary>
    public IReadOnlyList<DocumentPiece> Pieces(long start, long length)
    {
        var pieces = new List<DocumentPiece>();
        for (long at = start; at < start + length;)
        {
            int document = DocumentOf(at);
            long end = Math.Min(End(document), start + length);
            pieces.Add(new DocumentPiece(document, at - start, end - at, at == Start(document), end == End(document)));
            at = end;
        }
        return pieces;
    }

    /// <summary>The same pieces with the whole documents among them, which are neighbours, as one.</summary>
    public static IReadOnlyList<DocumentPiece> Gathered(IReadOnlyList<DocumentPiece> pieces)
    {
        var gathered = new List<DocumentPiece>();
        foreach (DocumentPiece p in pieces)
        {
            if (p.IsWhole && gathered is [.., { IsWhole: true } last]) gathered[^1] = last with { Length = last.Length + p.Length, Count = last.Count + p.Count };
            else gathered.Add(p);
        }
        return gathered;
    }

    /// <summary>The documents of a piece as runs, which begin with it.</summary>
    public PackedRuns Runs(DocumentPiece piece) => new([.. Enumerable.Range(piece.Document, piece.Count).Select(d => Start(d) - Start(piece.Document)), piece.Length]);

    public bool Equals(PackedDocuments? other) => other is not null && _boundaries.AsSpan().SequenceEqual(other._boundaries);

    public override int GetHashCode() => HashCode.Combine(Count, Tokens);
}
