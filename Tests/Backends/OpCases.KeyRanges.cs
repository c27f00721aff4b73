using LaspNative.Tests.Oracles;

namespace LaspNative.Tests.Backends;

/// <summary>The keys that queries see, with documents and without.</summary>
public static partial class OpCases
{
    private static void AddKeyRanges()
    {
        foreach (bool causal in (bool[])[true, false])
        {
            AddKeyRanges(causal, 0, 1, [0, 1], isPacked: false);
            AddKeyRanges(causal, 700, 300, [0, 1000], isPacked: false);
            AddKeyRanges(causal, 1000, 0, [0, 1000], isPacked: false);
            AddKeyRanges(causal, 0, 1000, s_bounds, isPacked: true);
            AddKeyRanges(causal, 39, 300, s_bounds, isPacked: true);
            AddKeyRanges(causal, 999, 1, s_bounds, isPacked: true);
            AddKeyRanges(causal, 17, 30, [0, 1000], isPacked: true);
        }
    }

    private static void AddKeyRanges(bool causal, int first, int count, long[] bounds, bool isPacked) =>
        s_rows[$"key ranges {(causal ? "causal" : "both ways")} of {count} tokens at {first}{(isPacked ? bounds.Length == 2 ? " in one document" : " in documents" : "")}"] = () => new OpCase
        {
            Operands = [new("bounds", [bounds.Length], OperandKind.I64, Array.ConvertAll(bounds, b => (double)b)), new("ranges", [count, 2], OperandKind.I64)],
            Call = (backend, t) => backend.KeyRanges(isPacked ? t("bounds") : null, bounds[^1], first, causal, t("ranges")),
            Oracle = _ => Results(("ranges", Array.ConvertAll(SoftmaxAttentionOracle.Documents(first, count, bounds, causal), x => (double)x))),
        };
}
