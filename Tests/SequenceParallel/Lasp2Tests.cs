using LaspNative.Autograd;
using LaspNative.Collectives;
using LaspNative.Runtime;
using LaspNative.Tests.Oracles;
using Xunit;

namespace LaspNative.Tests.SequenceParallel;

/// <summary>LASP-2 over CPU ranks against the token-by-token definition: o, final state and every gradient, on every rank.</summary>
public class Lasp2Tests
{
    private static readonly WorldOptions s_cpu = new(DeviceKind.Cpu);

    public static TheoryData<int, int, bool> Lengths()
    {
        var rows = new TheoryData<int, int, bool>();
        foreach (int w in new[] { 1, 2, 3, 4, 8 })
            foreach (int n in new[] { 1, 2, 63, 64, 65, 130, 1000 })
                foreach (bool decay in new[] { false, true }) rows.Add(w, n, decay);
        return rows;
    }

    [Theory]
    [MemberData(nameof(Lengths))]
    public void Every_rank_equals_the_definition_in_fp32(int w, int n, bool decay) =>
        new StrategyCase(w, n, DType.F32) { Decay = decay ? DecayKind.Head : DecayKind.None }.AssertWithin(s_cpu, 2e-5);

    [Theory]
    [InlineData(1, 65, true)]
    [InlineData(2, 130, false)]
    [InlineData(3, 200, true)]
    [InlineData(4, 3, true)]
    [InlineData(8, 130, true)]
    public void Every_rank_equals_the_definition_in_fp64(int w, int n, bool decay) =>
        new StrategyCase(w, n, DType.F64) { Decay = decay ? DecayKind.Head : DecayKind.None, B = 2 }.AssertWithin(s_cpu, 1e-11);

    [Theory]
    [InlineData(1)]
    [InlineData(2)]
    [InlineData(3)]
    [InlineData(4)]
    public void Initial_and_final_states_and_their_gradients_cross_the_ranks(int w) =>
        new StrategyCase(w, 150, DType.F64) { Decay = DecayKind.Head, States = true, B = 2 }.AssertWithin(s_cpu, 1e-11);

    [Theory]
    [InlineData(1)]
    [InlineData(3)]
    public void Grouped_heads_keep_a_state_per_query_head(int w) =>
        new StrategyCase(w, 100, DType.F64) { Decay = DecayKind.Head, States = true, H = 6, Hk = 2 }.AssertWithin(s_cpu, 1e-11);

    [Fact]
    public void Serial_is_the_same_on_one_rank() =>
        new StrategyCase(1, 150, DType.F64) { Decay = DecayKind.Head, States = true, Strategy = "serial" }.AssertWithin(s_cpu, 1e-11);

    [Theory]
    [InlineData(1)]
    [InlineData(2)]
    [InlineData(4)]
    public void Bytes_sent_are_the_formula(int w)
    {
        World.Run(s_cpu with { Ranks = w }, rank =>
        {
            using Problem p = new(rank.Device, 32);
            rank.World.Counters.Reset();
            var call = new AttentionCall(p.K.Value, p.V.Value, null, null, rank.World, AttentionOptions.Default);
            (long forward, long backward) = Lasp2.Default.PredictedBytesSent(call, null);
            using Variable output = LinearAttention.Apply(p.Q, p.K, p.V, null, rank.World, Lasp2.Default);
            Assert.Equal(forward, rank.World.Counters.BytesSent);
            Assert.Equal((w - 1) * 2L * 8 * 8 * 4, forward);
            output.Backward(p.DOutput);
            Assert.Equal(forward + backward, rank.World.Counters.BytesSent);
            Assert.Equal(w == 1 ? 0 : 2, rank.World.Counters.Messages);
        });
    }

    [Fact]
    public void Work_between_the_phases_runs_between_them_in_backward_too()
    {
        World.Run(s_cpu with { Ranks = 2 }, rank =>
        {
            using Problem p = new(rank.Device, 16);
            using Variable whole = LinearAttention.Apply(p.Q, p.K, p.V, null, rank.World, Lasp2.Default);
            whole.Backward(p.DOutput);
            double[][] expected = p.TakeGradients();

            using var tape = new Tape();
            PendingAttention pending = LinearAttention.Begin(p.K, p.V, null, rank.World, Lasp2.Default);
            using Variable q = Add.Apply(p.Q, tape.Constant(Tensor.Zeros(p.Q.Shape, DType.F32, rank.Device)));
            using Variable output = LinearAttention.Finish(q, pending);
            output.Backward(p.DOutput);
            double[][] actual = p.TakeGradients();
            for (int i = 0; i < 3; i++) Assert.Equal(expected[i], actual[i]);
        });
    }

    [Fact]
    public void Memory_returns_to_where_it_was_also_when_a_call_is_abandoned()
    {
        World.Run(s_cpu with { Ranks = 2 }, rank =>
        {
            using Problem p = new(rank.Device, 16);
            long before = rank.Device.Memory.Current;
            using (Variable output = LinearAttention.Apply(p.Q, p.K, p.V, null, rank.World, Lasp2.Default)) output.Backward(p.DOutput);
            p.TakeGradients();
            LinearAttention.Apply(p.Q, p.K, p.V, null, rank.World, Lasp2.Default).Dispose();
            LinearAttention.Begin(p.K, p.V, null, rank.World, Lasp2.Default).Dispose();
            rank.World.Barrier();
            Assert.Equal(before, rank.Device.Memory.Current);
        });
    }

    [Fact]
    public void Inputs_that_do_not_fit_are_named()
    {
        World.Run(s_cpu, rank =>
        {
            using Problem p = new(rank.Device, 16);
            using var decay = Variable.Constant(Tensor.Zeros([3], DType.F32, rank.Device));
            using var other = Variable.Constant(Tensor.Zeros([1, 15, 2, 8], DType.F32, rank.Device));
            Assert.Contains("[3]", Assert.Throws<LaspException>(() => LinearAttention.Apply(p.Q, p.K, p.V, decay, rank.World, Lasp2.Default)).Message);
            Assert.Contains("[1, 15, 2, 8]", Assert.Throws<LaspException>(() => LinearAttention.Apply(p.Q, other, p.V, null, rank.World, Lasp2.Default)).Message);
            Assert.Contains("[1, 15, 2, 8]", Assert.Throws<LaspException>(() => LinearAttention.Apply(other, p.K, p.V, null, rank.World, Lasp2.Default)).Message);
            var options = new AttentionOptions { Partition = new SequencePartition(17, 1) };
            Assert.Contains("17", Assert.Throws<LaspException>(() => LinearAttention.Apply(p.Q, p.K, p.V, null, rank.World, Lasp2.Default, options)).Message);
        });
    }

    [Fact]
    public void Partition_covers_the_sequence_in_order_with_chunks_that_differ_by_at_most_one()
    {
        foreach (int w in new[] { 1, 2, 3, 5, 8 })
        {
            for (int n = 0; n < 40; n++)
            {
                var partition = new SequencePartition(n, w);
                long[] lengths = partition.Lengths();
                Assert.Equal(n, lengths.Sum());
                Assert.True(lengths.Max() - lengths.Min() <= 1);
                for (int r = 1; r < w; r++) Assert.Equal(partition.Start(r - 1) + lengths[r - 1], partition.Start(r));
            }
        }
    }

    /// <summary>A small problem of one rank: two heads of 8.</summary>
    private sealed class Problem(Device device, int tokens) : IDisposable
    {
        public Variable Q { get; } = Leaf(device, tokens, 1);

        public Variable K { get; } = Leaf(device, tokens, 2);

        public Variable V { get; } = Leaf(device, tokens, 3);

        public Tensor DOutput { get; } = TestData.Tensor(TestData.Heads(tokens, 2, 8, 4), [1, tokens, 2, 8], DType.F32, device);

        private static Variable Leaf(Device device, int tokens, int seed) => Variable.Parameter(TestData.Tensor(TestData.Heads(tokens, 2, 8, seed), [1, tokens, 2, 8], DType.F32, device));

        public double[][] TakeGradients()
        {
            double[][] gradients = [.. new[] { Q, K, V }.Select(x => x.Gradient!.ToDoubles())];
            foreach (Variable x in new[] { Q, K, V }) x.ZeroGradient();
            return gradients;
        }

        public void Dispose()
        {
            foreach (Variable x in new[] { Q, K, V }) x.Dispose();
            DOutput.Dispose();
        }
    }
}
