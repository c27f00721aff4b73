namespace LaspNative.Runtime.Cpu;

/// <summary>The keys that queries see: the documents are walked along with the tokens.</summary>
internal sealed unsafe partial class CpuBackend
{
    public void KeyRanges(Tensor? bounds, long tokens, long firstToken, bool causal, Tensor ranges)
    {
        long count = KeyRangesExtents.Require(bounds, tokens, firstToken, ranges);
        long* starts = bounds is null ? null : (long*)bounds.Pointer, result = (long*)ranges.Pointer;
        if (bounds is not null && starts[bounds.Count - 1] != tokens) throw new LaspException($"packed documents end at token {starts[bounds.Count - 1]} of a sequence of {tokens}; the last bound is the sequence's length");
        (long start, long end) = bounds is null ? (0, tokens) : (starts[0], starts[1]);
        for (long token = firstToken; token < firstToken + count; token++, result += 2)
        {
            while (token >= end) (start, end) = (end, *(++starts + 1));
            result[0] = start;
            result[1] = causal ? token : end - 1;
        }
    }
}
