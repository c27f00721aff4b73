using System.Buffers;
using LaspNative.Runtime;

namespace LaspNative.Collectives;

/// <summary>
/// The whole mask: per query the first and the last global index of the keys that it sees.
///   causal         [start of its document, its own index]
///   bidirectional  [start of its document, last of its document]
/// Without packed documents the sequence is one document.
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
        long[] ranges = ArrayPool<long>.Shared.Rent(checked((int)(2 * count))); // new ones would be megabytes of garbage per step
        int at = 0;
        foreach (TokenSpan span in queries)
        {
            for (long token = span.Start; token < span.End;)
            {
                TokenSpan document = DocumentOf(call, token);
                _first = Math.Min(_first, document.Start);
                for (long end = Math.Min(span.End, document.End); token < end; token++)
                {
                    ranges[at++] = document.Start;
                    ranges[at++] = call.Causal ? token : document.End - 1;
                }
                _last = Math.Max(_last, ranges[at - 1]);
            }
        }
        Values = Tensor.FromSpan<long>(ranges.AsSpan(0, at), [count, 2], call.Device);
        ArrayPool<long>.Shared.Return(ranges);
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
