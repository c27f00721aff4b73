using LaspNative.Collectives;
using LaspNative.Runtime;
using Xunit;

namespace LaspNative.Tests.SequenceParallel;

/// <summary>The strategy matrix, reduced, on GPUs: F32 within 5e-5 of the definition, BF16 within twice the error of the naive op in bf16.</summary>
public abstract class StrategyGpuContract
{
    /// <summary>Where the ranks run; skips the test where that is not here.</summary>
    protected abstract WorldOptions World(int ranks);

    internal static StrategyCase Bf16Case(string strategy, int w, DecayKind decay) => new(w, 200, DType.BF16) { Strategy = strategy, Decay = decay, H = 4, Hk = strategy == "ulysses" ? 4 : 2, D = 32, E = 24 };

    protected void AssertF32(string strategy, int w, int n, DecayKind decay, string kind)
    {
        WorldOptions world = World(w);
        StrategyCase @case = StrategyMatrixTests.Case(strategy, w, n, decay, kind, DType.F32);
        Assert.All(@case.Errors(world), e => Assert.True(e.Value <= 5e-5, $"{@case}: {e.Key}: {e.Value:e2}"));
    }

    protected void AssertBf16(string strategy, int w, DecayKind decay)
    {
        WorldOptions world = World(w);
        Bf16Case(strategy, w, decay).AssertWithinTwiceNaive(world);
    }

    protected void AssertBytes(string strategy, int w)
    {
        WorldOptions world = World(w);
        StrategyCase @case = StrategyMatrixTests.Case(strategy, w, 128, DecayKind.Head, "plain", DType.F32);
        long state = (long)@case.B * @case.H * @case.D * @case.E * sizeof(float);
        var sent = new long[w];
        @case.Run(world, rank => sent[rank.Rank] = rank.World.Counters.BytesSent);
        if (strategy == "lasp2") Assert.All(sent, bytes => Assert.Equal(2 * (w - 1) * state, bytes));
        else Assert.Equal([.. Enumerable.Range(0, w).Select(r => (r < w - 1 ? state : 0) + (r > 0 ? state : 0))], sent);
    }
}

/// <summary>Ranks that share one GPU.</summary>
[Trait("Category", "Gpu")]
public class StrategyVirtualRankTests : StrategyGpuContract
{
    protected override WorldOptions World(int ranks)
    {
        Gpu.Require();
        return new WorldOptions(DeviceKind.Cuda, VirtualRanks: true);
    }

    public static TheoryData<string, int, int, DecayKind, string> Cases() => StrategyMatrixTests.Matrix([.. StrategyNames()], [1, 4]);

    public static IEnumerable<string> StrategyNames() => LaspNative.Collectives.SequenceParallel.All.Select(s => s.Name).Where(n => n != "serial");

    public static TheoryData<string, int, DecayKind> Bf16Cases() => Bf16Cases(2);

    internal static TheoryData<string, int, DecayKind> Bf16Cases(int w)
    {
        var rows = new TheoryData<string, int, DecayKind>();
        foreach (string strategy in StrategyNames())
            foreach (DecayKind decay in Enum.GetValues<DecayKind>()) rows.Add(strategy, w, decay);
        return rows;
    }

    [Theory]
    [MemberData(nameof(Cases))]
    public void F32_equals_the_definition(string strategy, int w, int n, DecayKind decay, string kind) => AssertF32(strategy, w, n, decay, kind);

    [Theory]
    [MemberData(nameof(Bf16Cases))]
    public void Bf16_errs_at_most_twice_as_much_as_the_naive_op(string strategy, int w, DecayKind decay) => AssertBf16(strategy, w, decay);

    /// <summary>
    /// Long chunks of wide heads: there the gradient of the decay shares passes with the other gradients, which lie in two phases of the exchange; in a ring, what passes between ranks is made on tensor
    /// cores by several blocks.
    /// </summary>
    [Theory]
    [InlineData("serial", 1, DecayKind.Token, 2)]
    [InlineData("lasp2", 2, DecayKind.Token, 2)]
    [InlineData("zeco", 2, DecayKind.Token, 2)]
    [InlineData("ring", 2, DecayKind.Head, 2)]
    [InlineData("ring", 2, DecayKind.Token, 2)]
    [InlineData("serial", 1, DecayKind.Channel, 2)]
    [InlineData("lasp2", 2, DecayKind.Channel, 2)]
    [InlineData("ring", 2, DecayKind.Channel, 2)]
    [InlineData("serial", 1, DecayKind.Channel, 1)]
    [InlineData("lasp2", 2, DecayKind.Channel, 1)]
    public void A_decay_is_learned_over_long_chunks(string strategy, int w, DecayKind decay, int keyHeads) => LongChunks(strategy, w, decay, keyHeads).AssertWithinTwiceNaive(World(w));

    /// <summary>The same where a chunk has three ranges of tokens.</summary>
    [Theory]
    [InlineData("serial", 1, DecayKind.Channel, 2)]
    [InlineData("serial", 1, DecayKind.Channel, 1)]
    [InlineData("lasp2", 2, DecayKind.Channel, 2)]
    public void A_decay_is_learned_range_by_range(string strategy, int w, DecayKind decay, int keyHeads) =>
        (LongChunks(strategy, w, decay, keyHeads) with { Prepare = device => ((Runtime.Cuda.CudaBackend)device.Backend).HeadTokensAtOnce = 256 }).AssertWithinTwiceNaive(World(w));

    private static StrategyCase LongChunks(string strategy, int w, DecayKind decay, int keyHeads) =>
        new(w, 300 * w, DType.BF16) { Strategy = strategy, Decay = decay, H = 2, Hk = keyHeads, D = 64, E = 64 };

    [Fact]
    public void Attention_without_a_mask_equals_the_definition()
    {
        WorldOptions world = World(3);
        var @case = new StrategyCase(3, 100, DType.F32) { Causal = false, B = 2, Hk = 2, States = true };
        Assert.All(@case.Errors(world), e => Assert.True(e.Value <= 5e-5, $"{e.Key}: {e.Value:e2}"));
    }
}

/// <summary>One GPU per rank, over NCCL.</summary>
[Collection(nameof(OverNccl))]
public class StrategyNcclTests : StrategyGpuContract
{
    protected override WorldOptions World(int ranks)
    {
        Gpu.Require(ranks);
        return new WorldOptions(DeviceKind.Cuda);
    }

    public static IEnumerable<TheoryDataRow<string, int, int, DecayKind, string>> Cases() =>
        OverNccl.ByGpus(StrategyMatrixTests.Matrix([.. StrategyVirtualRankTests.StrategyNames()], [2, 3, 4]), row => row.Data.Item2);

    public static IEnumerable<TheoryDataRow<string, int, DecayKind>> Bf16Cases() =>
        OverNccl.ByGpus([.. StrategyVirtualRankTests.Bf16Cases(2), .. StrategyVirtualRankTests.Bf16Cases(4)], row => row.Data.Item2);

    public static IEnumerable<TheoryDataRow<string, int>> PassingStates() => OverNccl.ByGpus(
        from strategy in (string[])["lasp1", "lasp2", "zeco"]
        from w in (int[])[2, 4]
        select new TheoryDataRow<string, int>(strategy, w), row => row.Data.Item2);

    public static IEnumerable<TheoryDataRow<int, DecayKind>> SameBits() => OverNccl.ByGpus<TheoryDataRow<int, DecayKind>>(
        [(2, DecayKind.None), (2, DecayKind.Channel), (3, DecayKind.Token), (4, DecayKind.Head), (4, DecayKind.Channel)], row => row.Data.Item1);

    [Theory]
    [MemberData(nameof(Cases))]
    public void F32_equals_the_definition(string strategy, int w, int n, DecayKind decay, string kind) => AssertF32(strategy, w, n, decay, kind);

    [Theory]
    [MemberData(nameof(Bf16Cases))]
    public void Bf16_errs_at_most_twice_as_much_as_the_naive_op(string strategy, int w, DecayKind decay) => AssertBf16(strategy, w, decay);

    [Theory]
    [MemberData(nameof(PassingStates))]
    public void Bytes_per_layer_are_the_formula(string strategy, int w) => AssertBytes(strategy, w);

    [Theory]
    [MemberData(nameof(SameBits))]
    public void Strategies_that_pass_states_give_the_same_bits(int w, DecayKind decay) => StrategyMatrixTests.AssertSameBits(World(w), w, decay, ["packed"]);
}
