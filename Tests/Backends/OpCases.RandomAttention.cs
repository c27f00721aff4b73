using LaspNative.Tests.Oracles;

namespace LaspNative.Tests.Backends;

/// <summary>
/// Attention of extents that nobody chose, drawn from fixed seeds: linear with every kind of decay in turn, strengths from 0 to 20 nats per token beside each other; softmax with queries at any
/// place among the keys, packed documents, and keys in any number of blocks.
/// </summary>
public static partial class OpCases
{
    private const double PatienceNanoseconds = 25e9;
    private const int RandomAttentionCount = 24;
    private const int RandomSoftmaxCount = 12;
    private const int LongestSequence = 5000;
    private const double MostDecay = 20;
    private static readonly int[] s_widths = [128, 64, 8, 40, 33, 256];

    private static readonly Lazy<Dictionary<string, OpCase>> s_random = new(() =>
    {
        var rows = new Dictionary<string, OpCase>(StringComparer.Ordinal);
        for (int seed = 0; seed < RandomAttentionCount; seed++)
        {
            AttentionShape shape = RandomShape(seed);
            rows[$"{seed}: {shape.Name}"] = Attention(shape);
        }
        for (int seed = 0; seed < RandomSoftmaxCount; seed++)
        {
            SoftmaxShape shape = RandomSoftmax(seed);
            rows[$"{seed}: {shape.Name}"] = Softmax(shape);
        }
        return rows;
    });

    public static IReadOnlyDictionary<string, OpCase> RandomAttention => s_random.Value;

    /// <summary>
    /// The first of each kind are long and as wide as models' heads are, the next as wide; the others of any width, and short ones as likely as long ones. Heads and widths are drawn until the oracles,
    /// which walk all pairs of tokens and keep all states, take only seconds.
    /// </summary>
    private static AttentionShape RandomShape(int seed)
    {
        var random = new Random(1000 + seed);
        DecayKind kind = (DecayKind)(seed % 4);
        int longest = kind == DecayKind.Channel ? LongestSequence * 2 / 5 : LongestSequence;
        int tokens = seed < 4 ? longest - random.Next(longest / 10) : Length(random, LongestSequence);
        ReadOnlySpan<int> widths = s_widths.AsSpan(0, seed < 4 ? 1 : seed < 8 ? 2 : s_widths.Length);
        while (true)
        {
            int group = 1 << random.Next(3), keyHeads = 1 + random.Next(2);
            var shape = new AttentionShape(
                tokens, widths[random.Next(widths.Length)], widths[random.Next(widths.Length)], B: 1 + random.Next(2), H: group * keyHeads, Hk: keyHeads,
                Decay: kind == DecayKind.None ? 0 : MostDecay, States: random.Next(2) == 0, Kind: kind, MixedSeed: kind == DecayKind.None ? 0 : seed + 1);
            if (OracleNanoseconds(shape) < PatienceNanoseconds) return shape;
        }
    }

    private static double OracleNanoseconds(AttentionShape s)
    {
        double pairs = (double)s.B * s.H * s.N * s.N / 2, states = (double)s.B * s.H * s.N * s.D * s.E;
        double perPair = (5 * (s.D + s.E)) + (s.Kind == DecayKind.Channel ? 40 * s.D : 0);
        return (pairs * perPair) + (80 * states);
    }

    /// <summary>Queries that are the last of the keys, or all of them; every third call packs documents. The first three are long.</summary>
    private static SoftmaxShape RandomSoftmax(int seed)
    {
        var random = new Random(2000 + seed);
        while (true)
        {
            int keys = seed < 3 ? LongestSequence - random.Next(LongestSequence / 2) : Length(random, LongestSequence);
            int queries = seed < 3 || random.Next(2) == 0 ? keys : Length(random, keys), first = keys - queries;
            bool packed = seed % 3 == 2;
            long[] ranges = packed ? SoftmaxAttentionOracle.Documents(first, queries, Bounds(random, keys)) : SoftmaxAttentionOracle.Causal(first, queries);
            ReadOnlySpan<int> widths = s_widths.AsSpan(0, seed < 8 ? 2 : s_widths.Length);
            int width = widths[random.Next(widths.Length)], group = 1 << random.Next(3), keyHeads = 1 + random.Next(2);
            var shape = new SoftmaxShape(
                packed ? $"documents at {first}" : $"causal at {first}", ranges, Blocks(random, keys), width, seed < 8 ? width : widths[random.Next(widths.Length)], B: 1 + random.Next(2),
                H: group * keyHeads, Hk: keyHeads);
            if ((double)shape.B * shape.H * queries * keys * 10 * (shape.D + shape.E) < PatienceNanoseconds) return shape;
        }
    }

    /// <summary>1 to <paramref name="longest"/>, short ones as likely as long ones.</summary>
    private static int Length(Random random, int longest) => (int)Math.Round(Math.Exp(random.NextDouble() * Math.Log(longest)));

    /// <summary>Where documents start, and the end.</summary>
    private static long[] Bounds(Random random, int tokens) =>
        [0, .. Enumerable.Range(0, 1 + random.Next(5)).Select(_ => (long)random.Next(1, tokens + 1)).Distinct().Where(b => b < tokens).Order(), tokens];

    /// <summary>One to three blocks that make up all keys.</summary>
    private static int[] Blocks(Random random, int keys)
    {
        int[] cuts = [0, .. Enumerable.Range(0, random.Next(3)).Select(_ => random.Next(1, keys + 1)).Where(c => c < keys).Distinct().Order(), keys];
        return [.. cuts.Zip(cuts.Skip(1), (from, to) => to - from)];
    }
}
