using LaspNative.Autograd;
using LaspNative.Collectives;
using LaspNative.Runtime;
using LaspNative.Tests.Oracles;
using Xunit;

namespace LaspNative.Tests.SequenceParallel;

/// <summary>Ring attention beyond the strategy matrix: final states read by queries at the end, grouped heads, documents over the ring's hops, strong decays, refusals, bytes, memory.</summary>
public class RingTests
{
    private static readonly WorldOptions s_cpu = new(DeviceKind.Cpu);

    [Theory]
    [InlineData(2, 1)]
    [InlineData(3, 2)]
    [InlineData(4, 6)]
    public void Grouped_heads_and_final_states_equal_the_definition_in_fp64(int w, int keyHeads)
    {
        foreach (DecayKind decay in Enum.GetValues<DecayKind>())
            new StrategyCase(w, 70, DType.F64) { Strategy = "ring", Decay = decay, States = true, H = 6, Hk = keyHeads, B = 2, D = 8, E = 5 }.AssertWithin(s_cpu, 1e-11);
    }

    [Theory]
    [InlineData(2)]
    [InlineData(3)]
    [InlineData(4)]
    [InlineData(8)]
    public void A_document_reads_back_to_its_start_and_no_further(int w)
    {
        foreach (long[] documents in (long[][])[[0, 80], [0, 10, 80], [0, 39, 41, 80], [0, 20, 40, 60, 80], [0, 1, 2, 79, 80], [0, 70, 80]])
            foreach (DecayKind decay in Enum.GetValues<DecayKind>())
                new StrategyCase(w, 80, DType.F64) { Strategy = "ring", Documents = documents, Decay = decay, States = true, H = 2, Hk = 1, D = 4, E = 6 }.AssertWithin(s_cpu, 1e-11);
    }

    [Theory]
    [InlineData(2)]
    [InlineData(4)]
    public void In_bf16_it_errs_at_most_twice_the_naive_op(int w)
    {
        foreach (DecayKind decay in Enum.GetValues<DecayKind>())
        {
            new StrategyCase(w, 200, DType.BF16) { Strategy = "ring", Decay = decay, B = 2, Hk = 2, D = 32 }.AssertWithinTwiceNaive(s_cpu);
        }
    }

    [Fact]
    public void What_a_ring_cannot_carry_is_refused()
    {
        World.Run(s_cpu with { Ranks = 2 }, rank =>
        {
            using Variable x = Leaf(rank.Device, 3);
            using var state = Variable.Parameter(Tensor.Zeros([1, 2, 4, 4], DType.F32, rank.Device));
            string message = Assert.Throws<LaspException>(() => LinearAttention.ApplyWithState(x, x, x, null, state, rank.World, Ring.Default)).Message;
            Assert.Contains("initial_state", message);
            message = Assert.Throws<LaspException>(() => LinearAttention.Apply(x, x, x, null, rank.World, Ring.Default, new AttentionOptions { Causal = false })).Message;
            Assert.Contains("causal", message);
        });
    }

    [Fact]
    public void Keys_and_values_make_all_hops_but_one_and_gradients_come_home()
    {
        const int W = 4, H = 2, D = 4, E = 4;
        World.Run(s_cpu with { Ranks = W }, rank =>
        {
            using Variable q = Leaf(rank.Device, 1), k = Leaf(rank.Device, 2), v = Leaf(rank.Device, 3);
            rank.World.Counters.Reset();
            using Variable output = LinearAttention.Apply(q, k, v, null, rank.World, Ring.Default);
            long block = Tokens * H * (D + E) * sizeof(float);
            Assert.Equal((W - 1) * block, rank.World.Counters.BytesSent);
            output.Backward(v.Value);
            Assert.Equal(((W - 1) + (W - 1) + W) * block, rank.World.Counters.BytesSent);
        });
    }

    [Fact]
    public void Queries_alone_may_want_a_gradient()
    {
        World.Run(s_cpu with { Ranks = 2 }, rank =>
        {
            using Variable q = Leaf(rank.Device, 1), k = Leaf(rank.Device, 2), v = Leaf(rank.Device, 3);
            using (Variable output = LinearAttention.Apply(q, k, v, null, rank.World, Ring.Default)) output.Backward(v.Value);
            double[] expected = q.Gradient!.ToDoubles();
            q.ZeroGradient();
            using Variable fixedKey = Variable.Constant(k.Value.Share()), fixedValue = Variable.Constant(v.Value.Share());
            using (Variable output = LinearAttention.Apply(q, fixedKey, fixedValue, null, rank.World, Ring.Default)) output.Backward(v.Value);
            Assert.Equal(expected, q.Gradient!.ToDoubles());
        });
    }

    [Fact]
    public void Memory_returns_to_where_it_was_also_when_a_call_is_abandoned()
    {
        World.Run(s_cpu with { Ranks = 3 }, rank =>
        {
            using Variable q = Leaf(rank.Device, 1), k = Leaf(rank.Device, 2), v = Leaf(rank.Device, 3);
            using var decay = Variable.Parameter(TestData.Tensor(TestData.Decays(2), [2], DType.F32, rank.Device));
            long before = rank.Device.Memory.Current;
            using (Variable output = LinearAttention.Apply(q, k, v, decay, rank.World, Ring.Default)) output.Backward(v.Value);
            foreach (Variable x in new[] { q, k, v, decay }) x.ZeroGradient();
            LinearAttention.Apply(q, k, v, decay, rank.World, Ring.Default).Dispose();
            LinearAttention.Begin(k, v, decay, rank.World, Ring.Default).Dispose();
            rank.World.Barrier();
            Assert.Equal(before, rank.Device.Memory.Current);
        });
    }

    private const int Tokens = 5;

    private static Variable Leaf(Device device, int seed) => Variable.Parameter(TestData.Tensor(TestData.Heads(Tokens, 2, 4, seed), [1, Tokens, 2, 4], DType.F32, device));
}
