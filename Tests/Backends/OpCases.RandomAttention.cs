using LaspNative.Tests.Oracles;

namespace LaspNative.Tests.Backends;

/// <summary>Linear attention of extents that nobody chose: drawn from fixed seeds, every kind of decay in turn, strengths from 0 to 20 nats per token beside each other.</summary>
public static partial class OpCases
{
    private const int RandomAttentionCount = 24;
    private const int LongestSequence = 5000;
    private const double MostDecay = 20;
    private static readonly int[] s_widths = [128, 64, 8, 40, 33, 256];

    private static readonly Lazy<Dictionary<string, OpCase>> s_random = new(() =>
        Enumerable.Range(0, RandomAttentionCount).Select(RandomShape).Select((shape, seed) => (Name: $"{seed}: {shape.Name}", Row: Attention(shape))).ToDictionary(r => r.Name, r => r.Row, StringComparer.Ordinal));

    public static IReadOnlyDictionary<string, OpCase> RandomAttention => s_random.Value;

    /// <summary>
    /// The first of each kind are long and as wide as models' heads are, the next as wide; the others of any width, and short ones as likely as long ones. Heads and widths are drawn until the oracles,
    /// which walk all pairs of tokens and keep all states, take only seconds.
    /// </summary>
    private static AttentionShape RandomShape(int seed)
    {
        const double PatienceNanoseconds = 25e9;
        var random = new Random(1000 + seed);
        DecayKind kind = (DecayKind)(seed % 4);
        int longest = kind == DecayKind.Channel ? LongestSequence * 2 / 5 : LongestSequence;
        int tokens = seed < 4 ? longest - random.Next(longest / 10) : (int)Math.Round(Math.Exp(random.NextDouble() * Math.Log(LongestSequence)));
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
}
