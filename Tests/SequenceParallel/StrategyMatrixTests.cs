using LaspNative.Collectives;
using LaspNative.Runtime;
using Xunit;

namespace LaspNative.Tests.SequenceParallel;

/// <summary>
/// The matrix: strategies x kinds of decay x ranks x {plain, packed, initial state} x odd lengths. o, final state and every gradient on every rank against the token-by-token definition.
/// </summary>
public class StrategyMatrixTests
{
    private static readonly WorldOptions s_cpu = new(DeviceKind.Cpu);

    /// <summary>Documents of odd lengths: boundaries inside chunks, at chunk edges, documents of one token, and one over three or more ranks.</summary>
    internal static long[] DocumentsOf(int n)
    {
        long[] inside = [0, 1, n / 8, n / 4, (n / 4) + 1, n - 3, n - 1, n];
        return [.. inside.Where(x => x >= 0 && x <= n).Distinct().Order()];
    }

    /// <summary>The cases of one strategy.</summary>
    internal static TheoryData<string, int, int, DecayKind, string> Matrix(IReadOnlyList<string> strategies, IReadOnlyList<int> worlds)
    {
        var rows = new TheoryData<string, int, int, DecayKind, string>();
        foreach (string strategy in strategies)
            foreach (int w in worlds)
                foreach (DecayKind decay in Enum.GetValues<DecayKind>())
                    foreach (string kind in new[] { "plain", "packed", "initial state" })
                        rows.Add(strategy, w, kind == "plain" ? 131 : kind == "packed" ? 150 : 65, decay, kind);
        return rows;
    }

    public static TheoryData<string, int, int, DecayKind, string> StatePassing() => Matrix(["lasp1", "lasp2", "zeco"], [1, 2, 3, 4, 8]);

    public static TheoryData<string, int, int, DecayKind, string> Others() => Matrix([.. SequenceParallelNames().Except(["lasp1", "lasp2", "zeco", "serial"])], [1, 2, 3, 4, 8]);

    private static IEnumerable<string> SequenceParallelNames() => LaspNative.Collectives.SequenceParallel.All.Select(s => s.Name);

    internal static StrategyCase Case(string strategy, int w, int n, DecayKind decay, string kind, DType dtype) => new(w, n, dtype)
    {
        Strategy = strategy,
        Decay = decay,
        Documents = kind == "packed" ? DocumentsOf(n) : null,
        States = kind != "plain",
        B = kind == "packed" ? 1 : 2,
        H = strategy == "ulysses" && w == 3 ? 6 : 8, // ulysses: w divides both numbers of heads
        Hk = strategy != "ulysses" ? 4 : w == 3 ? 3 : Math.Max(w, 4),
        D = 8,
        E = 12,
    };

    [Theory]
    [MemberData(nameof(StatePassing))]
    public void Strategies_that_pass_states_equal_the_definition(string strategy, int w, int n, DecayKind decay, string kind) =>
        Case(strategy, w, n, decay, kind, DType.F32).AssertWithin(s_cpu, 2e-5);

    [Theory]
    [MemberData(nameof(Others))]
    public void Baselines_equal_the_definition(string strategy, int w, int n, DecayKind decay, string kind) =>
        Case(strategy, w, n, decay, kind, DType.F32).AssertWithin(s_cpu, 2e-5);

    [Theory]
    [InlineData(DecayKind.None)]
    [InlineData(DecayKind.Head)]
    [InlineData(DecayKind.Token)]
    [InlineData(DecayKind.Channel)]
    public void All_strategies_equal_the_definition_in_fp64(DecayKind decay)
    {
        foreach (string strategy in SequenceParallelNames().Where(s => s != "serial"))
            foreach (string kind in new[] { "plain", "packed", "initial state" })
                Case(strategy, 4, 37, decay, kind, DType.F64).AssertWithin(s_cpu, 1e-11);
    }

    /// <summary>Random documents, many of them whole on one rank and neighbours, so that they are computed as packed runs; some over several ranks, some of one token.</summary>
    [Theory]
    [InlineData("lasp1")]
    [InlineData("lasp2")]
    [InlineData("zeco")]
    [InlineData("ulysses")]
    public void Random_documents_equal_the_definition_in_fp64(string strategy)
    {
        for (int seed = 0; seed < 16; seed++)
        {
            var random = new Random(seed);
            int n = random.Next(1, 120), w = random.Next(1, 6), longest = random.Next(1, n + 1);
            var boundaries = new List<long> { 0 };
            while (boundaries[^1] < n) boundaries.Add(Math.Min(n, boundaries[^1] + random.Next(1, longest + 1)));
            StrategyCase one = Case(strategy, strategy == "ulysses" ? Math.Min(w, 2) : w, n, (DecayKind)(seed % 4), "packed", DType.F64);
            (one with { Documents = [.. boundaries], States = random.Next(4) > 0 }).AssertWithin(s_cpu, 1e-11);
        }
    }

    [Theory]
    [InlineData(1)]
    [InlineData(2)]
    [InlineData(3)]
    [InlineData(5)]
    public void Fewer_tokens_than_ranks_leave_ranks_empty(int n)
    {
        foreach (string strategy in SequenceParallelNames().Where(s => s != "serial"))
            foreach (DecayKind decay in Enum.GetValues<DecayKind>())
                Case(strategy, 8, n, decay, "initial state", DType.F32).AssertWithin(s_cpu, 2e-5);
    }

    [Theory]
    [InlineData(2, DecayKind.None)]
    [InlineData(3, DecayKind.Head)]
    [InlineData(4, DecayKind.Token)]
    [InlineData(8, DecayKind.Channel)]
    public void Strategies_that_pass_states_give_the_same_bits(int w, DecayKind decay) => AssertSameBits(s_cpu, w, decay, ["plain", "packed", "initial state"]);

    /// <summary>Runs the kinds of case with lasp2, lasp1 and zeco.</summary>
    internal static void AssertSameBits(WorldOptions world, int w, DecayKind decay, string[] kinds)
    {
        foreach (string kind in kinds)
        {
            StrategyCase.RankResult[] lasp2 = Case("lasp2", w, 150, decay, kind, DType.F32).Run(world);
            foreach (string other in new[] { "lasp1", "zeco" })
            {
                StrategyCase.RankResult[] results = Case(other, w, 150, decay, kind, DType.F32).Run(world);
                for (int r = 0; r < w; r++) AssertSame(lasp2[r], results[r], $"{other} against lasp2, {kind}, rank {r}");
            }
        }
    }

    [Theory]
    [InlineData(2)]
    [InlineData(3)]
    [InlineData(8)]
    public void Attention_without_a_mask_equals_the_definition(int w) =>
        new StrategyCase(w, 100, DType.F32) { Causal = false, B = 2, Hk = 2, States = true }.AssertWithin(s_cpu, 2e-5);

    private static void AssertSame(StrategyCase.RankResult a, StrategyCase.RankResult b, string what)
    {
        Assert.True(a.Output.SequenceEqual(b.Output), what);
        Assert.True(a.FinalState.SequenceEqual(b.FinalState), what);
        Assert.True(a.Query.SequenceEqual(b.Query), what);
        Assert.True(a.Key.SequenceEqual(b.Key), what);
        Assert.True(a.Value.SequenceEqual(b.Value), what);
        Assert.True((a.Decay ?? []).SequenceEqual(b.Decay ?? []), what);
        Assert.True((a.InitialState ?? []).SequenceEqual(b.InitialState ?? []), what);
    }
}
