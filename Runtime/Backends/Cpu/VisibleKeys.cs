namespace LaspNative.Runtime.Cpu;

/// <summary>
/// The keys of one block that each query sees: global indices [ranges[i,0], ranges[i,1]], both ends included, become [Start, End) in the block's own indices,
/// where key 0 has global index <paramref name="firstKey"/> and there are <paramref name="keys"/> of them. A query that sees none has Start &gt;= End.
/// </summary>
internal readonly unsafe struct VisibleKeys(Tensor ranges, long firstKey, long keys)
{
    private readonly long* _ranges = (long*)ranges.Pointer; // [C, 2]

    public (long Start, long End) Of(long query)
    {
        long first = _ranges[2 * query], last = _ranges[(2 * query) + 1];
        long start = first <= firstKey ? 0 : first - firstKey;
        long end = last < firstKey ? 0 : Math.Min(keys - 1, last - firstKey) + 1;
        return (start, end);
    }

    /// <summary>What a query sees of the keys [key, key + width), counted from key.</summary>
    public (int Start, int End) Of(long query, long key, int width)
    {
        (long start, long end) = Of(query);
        return ((int)Math.Clamp(start - key, 0, width), (int)Math.Clamp(end - key, 0, width));
    }

    /// <summary>The smallest interval that holds all that the queries [query, query + count) see.</summary>
    public (long Start, long End) OfBlock(long query, int count)
    {
        long first = keys, behind = 0;
        for (long i = query; i < query + count; i++)
        {
            (long start, long end) = Of(i);
            if (start >= end) continue;
            first = Math.Min(first, start);
            behind = Math.Max(behind, end);
        }
        return (first, behind);
    }

    /// <summary>Whether any of the queries [query, query + count) sees any of the keys [key, key + width).</summary>
    public bool Any(long query, int count, long key, int width)
    {
        for (long i = query; i < query + count; i++)
        {
            (int start, int end) = Of(i, key, width);
            if (start < end) return true;
        }
        return false;
    }
}
