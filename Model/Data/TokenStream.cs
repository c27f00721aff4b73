using System.Numerics;

namespace LaspNative.Model;

/// <summary>
/// Documents one after the other as one circular sequence of tokens: reading past the end goes on at the beginning, so that a corpus of any length fills any window.
/// </summary>
public sealed class TokenStream
{
    /// <summary>The label of a position that no loss is computed for.</summary>
    public const int IgnoredLabel = -100;

    private readonly int[][] _documents;
    private readonly long[] _starts;
    private readonly Lazy<ulong> _fingerprint;

    public TokenStream(IEnumerable<int[]> documents)
    {
        _documents = [.. documents.Where(d => d.Length > 0)];
        _starts = new long[_documents.Length];
        for (int i = 0; i < _documents.Length; i++)
        {
            _starts[i] = Count;
            Count += _documents[i].Length;
        }
        _fingerprint = new Lazy<ulong>(ComputeFingerprint);
    }

    /// <summary>Number of tokens.</summary>
    public long Count { get; private set; }

    public int Documents => _documents.Length;

    /// <summary>
    /// Fills a window from <paramref name="position"/> on (modulo the stream's length). The label of a token is the token after it; the last token of a document
    /// has none, since what follows it is unrelated.
    /// </summary>
    public void Read(long position, Span<int> tokens, Span<int> labels)
    {
        position %= Count;
        int document = Array.BinarySearch(_starts, position);
        if (document < 0) document = ~document - 1;
        int offset = (int)(position - _starts[document]);
        for (int written = 0; written < tokens.Length;)
        {
            ReadOnlySpan<int> rest = _documents[document].AsSpan(offset);
            int n = Math.Min(rest.Length, tokens.Length - written);
            rest[..n].CopyTo(tokens[written..]);
            int labelled = Math.Min(n, rest.Length - 1);
            rest.Slice(1, labelled).CopyTo(labels[written..]);
            if (labelled < n) labels[written + labelled] = IgnoredLabel;
            written += n;
            document = (document + 1) % _documents.Length;
            offset = 0;
        }
    }

    /// <summary>A number that other texts are very unlikely to share.</summary>
    public ulong Fingerprint => _fingerprint.Value;

    private ulong ComputeFingerprint()
    {
        ulong hash = 14695981039346656037;
        foreach (int[] document in _documents)
        {
            hash = (hash ^ (uint)document.Length) * 1099511628211;
            foreach (int token in document) hash = BitOperations.RotateLeft((hash ^ (uint)token) * 1099511628211, 5);
        }
        return hash;
    }
}
