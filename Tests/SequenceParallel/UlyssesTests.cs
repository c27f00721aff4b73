using LaspNative.Autograd;
using LaspNative.Collectives;
using LaspNative.Runtime;
using LaspNative.Tests.Oracles;
using Xunit;

namespace LaspNative.Tests.SequenceParallel;

/// <summary>Ulysses beyond the strategy matrix: grouped heads at the largest legal group, the error that names it, bytes, memory.</summary>
public class UlyssesTests
{
    private static readonly WorldOptions s_cpu = new(DeviceKind.Cpu);

    [Theory]
    [InlineData(2, 4, 2)]
    [InlineData(3, 6, 3)]
    [InlineData(4, 12, 4)]
    [InlineData(8, 16, 8)]
    public void Grouped_heads_and_states_equal_the_definition_in_fp64(int w, int heads, int keyHeads)
    {
        foreach (DecayKind decay in Enum.GetValues<DecayKind>())
            new StrategyCase(w, 70, DType.F64) { Strategy = "ulysses", Decay = decay, States = true, H = heads, Hk = keyHeads, B = 2, D = 8, E = 5 }.AssertWithin(s_cpu, 1e-11);
    }

    [Theory]
    [InlineData(2)]
    [InlineData(4)]
    public void In_bf16_it_errs_at_most_twice_the_naive_op(int w)
    {
        foreach (DecayKind decay in Enum.GetValues<DecayKind>())
        {
            new StrategyCase(w, 200, DType.BF16) { Strategy = "ulysses", Decay = decay, B = 2, Hk = 4, D = 32 }.AssertWithinTwiceNaive(s_cpu);
        }
    }

    [Theory]
    [InlineData(4, 6, 2, 2)]
    [InlineData(3, 8, 4, 4)]
    [InlineData(2, 3, 1, 1)]
    public void A_group_that_does_not_divide_the_heads_is_refused_with_the_largest_that_does(int w, int heads, int keyHeads, int largest)
    {
        World.Run(s_cpu with { Ranks = w }, rank =>
        {
            using Variable q = Leaf(rank.Device, heads, 1), k = Leaf(rank.Device, keyHeads, 2);
            string message = Assert.Throws<LaspException>(() => LinearAttention.Apply(q, k, k, null, rank.World, Ulysses.Default)).Message;
            Assert.EndsWith($"is {largest}", message);
        });
    }

    [Fact]
    public void Each_rank_sends_what_leaves_it()
    {
        const int W = 4, H = 8, D = 4, E = 4;
        World.Run(s_cpu with { Ranks = W }, rank =>
        {
            using Variable q = Leaf(rank.Device, H, 1), k = Leaf(rank.Device, H, 2), v = Leaf(rank.Device, H, 3);
            rank.World.Counters.Reset();
            using Variable output = LinearAttention.Apply(q, k, v, null, rank.World, Ulysses.Default);
            long bytes = Tokens * H * (D + D + E + E) * sizeof(float) * (W - 1) / W;
            Assert.Equal(bytes, rank.World.Counters.BytesSent);
            output.Backward(v.Value);
            Assert.Equal(2 * bytes, rank.World.Counters.BytesSent);
            Assert.Equal(8, rank.World.Counters.Messages);
        });
    }

    [Fact]
    public void Queries_alone_may_want_a_gradient()
    {
        World.Run(s_cpu with { Ranks = 2 }, rank =>
        {
            using Variable q = Leaf(rank.Device, 2, 1), k = Leaf(rank.Device, 2, 2), v = Leaf(rank.Device, 2, 3);
            using (Variable output = LinearAttention.Apply(q, k, v, null, rank.World, Ulysses.Default)) output.Backward(v.Value);
            double[] expected = q.Gradient!.ToDoubles();
            q.ZeroGradient();
            using Variable fixedKey = Variable.Constant(k.Value.Share()), fixedValue = Variable.Constant(v.Value.Share());
            using (Variable output = LinearAttention.Apply(q, fixedKey, fixedValue, null, rank.World, Ulysses.Default)) output.Backward(v.Value);
            Assert.Equal(expected, q.Gradient!.ToDoubles());
        });
    }

    [Fact]
    public void Memory_returns_to_where_it_was_also_when_a_call_is_abandoned()
    {
        World.Run(s_cpu with { Ranks = 2 }, rank =>
        {
            using Variable q = Leaf(rank.Device, 4, 1), k = Leaf(rank.Device, 2, 2), v = Leaf(rank.Device, 2, 3);
            using var decay = Variable.Parameter(TestData.Tensor(TestData.Decays(4), [4], DType.F32, rank.Device));
            long before = rank.Device.Memory.Current;
            using (Variable output = LinearAttention.Apply(q, k, v, decay, rank.World, Ulysses.Default)) output.Backward(q.Value);
            foreach (Variable x in new[] { q, k, v, decay }) x.ZeroGradient();
            LinearAttention.Apply(q, k, v, decay, rank.World, Ulysses.Default).Dispose();
            LinearAttention.Begin(k, v, decay, rank.World, Ulysses.Default, new AttentionOptions { QueryHeads = 4 }).Dispose();
            rank.World.Barrier();
            Assert.Equal(before, rank.Device.Memory.Current);
        });
    }

    private const int Tokens = 5;

    private static Variable Leaf(Device device, int heads, int seed) => Variable.Parameter(TestData.Tensor(TestData.Heads(Tokens, heads, 4, seed), [1, Tokens, heads, 4], DType.F32, device));
}
