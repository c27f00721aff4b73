using LaspNative.Autograd;
using LaspNative.Collectives;
using LaspNative.Runtime;
using LaspNative.Tests.Oracles;
using Xunit;

namespace LaspNative.Tests.SoftmaxParallel;

/// <summary>Softmax attention on the tape: phases, memory, inputs without gradient and inputs that do not fit.</summary>
public class SoftmaxAttentionTests
{
    private static readonly WorldOptions s_cpu = new(DeviceKind.Cpu);

    public static TheoryData<string> Strategies() => [.. SoftmaxMatrixTests.Names];

    [Theory]
    [MemberData(nameof(Strategies))]
    public void Memory_returns_to_where_it_was_also_when_a_call_is_abandoned(string name)
    {
        LaspNative.Collectives.SoftmaxParallel strategy = LaspNative.Collectives.SoftmaxParallel.Parse(name);
        World.Run(s_cpu with { Ranks = 2 }, rank =>
        {
            using Problem p = new(rank.Device, 16, batch: 2);
            long before = rank.Device.Memory.Current;
            using (Variable output = SoftmaxAttention.Apply(p.Q, p.K, p.V, rank.World, strategy)) output.Backward(p.DOutput);
            p.TakeGradients();
            SoftmaxAttention.Apply(p.Q, p.K, p.V, rank.World, strategy).Dispose();
            SoftmaxAttention.Begin(p.K, p.V, rank.World, strategy, new AttentionOptions { QueryHeads = 4 }).Dispose();
            rank.World.Barrier();
            Assert.Equal(before, rank.Device.Memory.Current);
        });
    }

    [Theory]
    [MemberData(nameof(Strategies))]
    public void Work_between_the_phases_runs_between_them_in_backward_too(string name)
    {
        LaspNative.Collectives.SoftmaxParallel strategy = LaspNative.Collectives.SoftmaxParallel.Parse(name);
        World.Run(s_cpu with { Ranks = 2 }, rank =>
        {
            using Problem p = new(rank.Device, 16);
            using (Variable whole = SoftmaxAttention.Apply(p.Q, p.K, p.V, rank.World, strategy)) whole.Backward(p.DOutput);
            double[][] expected = p.TakeGradients();

            using var tape = new Tape();
            PendingSoftmaxAttention pending = SoftmaxAttention.Begin(p.K, p.V, rank.World, strategy, new AttentionOptions { QueryHeads = 4 });
            using Variable q = Add.Apply(p.Q, tape.Constant(Tensor.Zeros(p.Q.Shape, DType.F32, rank.Device)));
            using Variable output = SoftmaxAttention.Finish(q, pending);
            output.Backward(p.DOutput);
            double[][] actual = p.TakeGradients();
            for (int i = 0; i < 3; i++) Assert.Equal(expected[i], actual[i]);
        });
    }

    [Theory]
    [MemberData(nameof(Strategies))]
    public void Keys_and_values_without_gradient_send_none(string name)
    {
        LaspNative.Collectives.SoftmaxParallel strategy = LaspNative.Collectives.SoftmaxParallel.Parse(name);
        World.Run(s_cpu with { Ranks = 2 }, rank =>
        {
            using Problem p = new(rank.Device, 16);
            using (Variable whole = SoftmaxAttention.Apply(p.Q, p.K, p.V, rank.World, strategy)) whole.Backward(p.DOutput);
            long withAll = rank.World.Counters.BytesSent;
            double[] expected = p.TakeGradients()[0];

            using Variable k = Variable.Constant(p.K.Value.Share()), v = Variable.Constant(p.V.Value.Share());
            rank.World.Counters.Reset();
            using Variable output = SoftmaxAttention.Apply(p.Q, k, v, rank.World, strategy);
            output.Backward(p.DOutput);
            Assert.Equal(expected, p.Q.Gradient!.ToDoubles());
            Assert.True(rank.World.Counters.BytesSent < withAll);
        });
    }

    [Fact]
    public void Inputs_that_do_not_fit_are_named()
    {
        World.Run(s_cpu, rank =>
        {
            using Problem p = new(rank.Device, 16);
            using var other = Variable.Constant(Tensor.Zeros([1, 15, 2, 8], DType.F32, rank.Device));
            string Error(Variable q, Variable k, AttentionOptions options) =>
                Assert.Throws<LaspException>(() => SoftmaxAttention.Apply(q, k, p.V, rank.World, SoftmaxAllGather.Default, options)).Message;
            Assert.Contains("[1, 15, 2, 8]", Error(p.Q, other, AttentionOptions.Default));
            Assert.Contains("[1, 15, 2, 8]", Error(other, p.K, AttentionOptions.Default));
            Assert.Contains("17", Error(p.Q, p.K, new AttentionOptions { Partition = new SequencePartition(17, 1) }));
            Assert.Contains("cu_seqlens ends at 12", Error(p.Q, p.K, new AttentionOptions { Documents = new PackedDocuments([0, 5, 12]) }));
        });
        Assert.Contains("zigzag", Assert.Throws<LaspException>(() => LaspNative.Collectives.SoftmaxParallel.Parse("zickzack")).Message);
    }

    [Fact]
    public void Strategies_that_cannot_use_a_group_say_what_can()
    {
        string Error(LaspNative.Collectives.SoftmaxParallel strategy) => Assert.Throws<LaspException>(() => World.Run(s_cpu with { Ranks = 3 }, rank =>
        {
            using Problem p = new(rank.Device, 16);
            using Variable output = SoftmaxAttention.Apply(p.Q, p.K, p.V, rank.World, strategy);
        })).Message;
        Assert.Equal("ulysses cannot divide 4 query and 2 key/value heads among 3 ranks; use a number that divides both: the largest number of ranks it can use is 2", Error(SoftmaxUlysses.Default));
        Assert.Contains("use allgather", Error(SoftmaxSerial.Default));
    }

    /// <summary>A small problem of one rank: four query heads, two key/value heads of 8.</summary>
    private sealed class Problem(Device device, int tokens, int batch = 1) : IDisposable
    {
        public Variable Q { get; } = Leaf(device, batch, tokens, 4, 1);

        public Variable K { get; } = Leaf(device, batch, tokens, 2, 2);

        public Variable V { get; } = Leaf(device, batch, tokens, 2, 3);

        public Tensor DOutput { get; } = TestData.Tensor(TestData.Heads(batch * tokens, 4, 8, 4), [batch, tokens, 4, 8], DType.F32, device);

        private static Variable Leaf(Device device, int batch, int tokens, int heads, int seed) =>
            Variable.Parameter(TestData.Tensor(TestData.Heads(batch * tokens, heads, 8, seed), [batch, tokens, heads, 8], DType.F32, device));

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
