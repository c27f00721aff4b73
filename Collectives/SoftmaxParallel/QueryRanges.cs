using LaspNative.Runtime;

namespace LaspNative.Collectives;

/// <summary>
/// The whole mask: per query the first and the last global index of the keys that it sees.
///   causal         [start of its document, its own index]
///   bidirectional  [start of its document, last of its document]
/// Without packed documents the sequence is one document. The device writes it: a host array of the sequence's length per layer would be garbage by the megabyte.
/// </summary>
internal sealed class QueryRanges : IDisposable
{
    private readonly long _first = long.MaxValue;
    private readonly long _last = -1;

    /// <param name="queries">The runs of tokens whose queries are computed, in their order.</param>
    public QueryRanges(SoftmaxCall call, ReadOnlySpan<TokenSpan> queries)
    {
        long count = 0;
        foreach (TokenSpan span in queries) count += span.Length;
        Values = Tensor.Empty([count, 2], DType.I64, call.Device);
        using Tensor? bounds = call.Documents is null ? null : Tensor.FromSpan(call.Documents.Boundaries, [call.Documents.Count + 1], call.Device);
        long at = 0;
        foreach (TokenSpan span in queries)
        {
            if (span.Length == 0) continue;
            using Tensor part = Values.Slice(at, span.Length);
            call.Device.Backend.KeyRanges(bounds, call.Partition.Tokens, span.Start, call.Causal, part);
            at += span.Length;
            _first = Math.Min(_first, DocumentOf(call, span.Start).Start);
            _last = Math.Max(_last, call.Causal ? span.End - 1 : DocumentOf(call, span.End - 1).End - 1);
        }
    }

    /// <summary>I64 [queries, 2].</summary>
    public Tensor Values { get; }

    /// <summary>Whether some query may see some of these keys.</summary>
    public bool See(TokenSpan keys) => keys.Length > 0 && keys.Start <= _last && keys.End > _first;

    /// <summary>Whether no query sees anything but these keys.</summary>
    public bool LieWithin(TokenSpan keys) => _first >= keys.Start && _last < keys.End;

    public void Dispose() => Values.Dispose();

    private static TokenSpan DocumentOf(SoftmaxCall call, long token)
    {
        if (call.Documents is not { } documents) return call.Sequence;
        int document = documents.DocumentOf(token);
        return new TokenSpan(documents.Start(document), documents.End(document) - documents.Start(document));
    }
}
