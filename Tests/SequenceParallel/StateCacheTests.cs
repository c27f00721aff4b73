using LaspNative.Autograd;
using LaspNative.Collectives;
using LaspNative.Runtime;
using LaspNative.Tests.Oracles;
using Xunit;

namespace LaspNative.Tests.SequenceParallel;

/// <summary>A call that finds its entering states kept sends nothing forward, and what as always backward; its results are the bits of a call that asked.</summary>
public class StateCacheTests
{
    private const int H = 4, D = 6, E = 10, N = 37;

    public static TheoryData<string, int, DecayKind, bool> Cases()
    {
        var rows = new TheoryData<string, int, DecayKind, bool>();
        foreach (string strategy in (string[])["lasp1", "lasp2", "zeco"])
            foreach (int w in (int[])[2, 4])
                foreach (DecayKind decay in Enum.GetValues<DecayKind>())
                    foreach (bool packed in (bool[])[false, true]) rows.Add(strategy, w, decay, packed);
        return rows;
    }

    [Theory]
    [MemberData(nameof(Cases))]
    public void Kept_states_save_the_message_and_change_no_bit(string strategy, int w, DecayKind decay, bool packed) =>
        World.Run(new WorldOptions(DeviceKind.Cpu, w), rank =>
        {
            var options = new AttentionOptions { Partition = new SequencePartition(N, w), Documents = packed ? new PackedDocuments([0, 5, 6, 30, N]) : null };
            var chosen = LaspNative.Collectives.SequenceParallel.Parse(strategy);
            using var inputs = new Inputs(rank, options.Partition.Length(rank.Rank), decay);
            (double[][] expected, long forward, long backward) = inputs.Run(chosen, options);

            using var states = new StateCache();
            Assert.Equal(forward, inputs.Forward(chosen, options with { States = states }));
            Assert.True(states.IsFilled);
            long factors = strategy == "lasp2" && decay >= DecayKind.Token ? w * H * (decay == DecayKind.Channel ? D : 1) : 0;
            Assert.Equal((H * D * E + factors) * sizeof(float), states.Bytes);
            Assert.Equal(states.Bytes, rank.Device.Memory.CurrentOf(MemoryCategory.States));

            (double[][] actual, long again, long backwardAgain) = inputs.Run(chosen, options with { States = states });
            Assert.Equal((0, backward), (again, backwardAgain));
            Assert.False(states.IsFilled);
            Assert.Equal(0, rank.Device.Memory.CurrentOf(MemoryCategory.States));
            for (int i = 0; i < expected.Length; i++) Assert.Equal(expected[i], actual[i]);
        });

    [Theory]
    [InlineData("ring")]
    [InlineData("ulysses")]
    public void Strategies_without_a_state_ask_again(string strategy) =>
        World.Run(new WorldOptions(DeviceKind.Cpu, 2), rank =>
        {
            var chosen = LaspNative.Collectives.SequenceParallel.Parse(strategy);
            using var states = new StateCache();
            var options = new AttentionOptions { Partition = new SequencePartition(N, 2), States = states };
            using var inputs = new Inputs(rank, options.Partition.Length(rank.Rank), DecayKind.Head);
            long forward = inputs.Forward(chosen, options);
            Assert.True(forward > 0);
            Assert.False(states.IsFilled);
            Assert.Equal(forward, inputs.Forward(chosen, options));
        });

    /// <summary>One rank's chunk of random q, k, v and decay, and what it sends.</summary>
    private sealed class Inputs : IDisposable
    {
        private readonly RankContext _rank;
        private readonly Variable[] _leaves; // q, k, v, and the decay where there is one

        public Inputs(RankContext rank, long c, DecayKind decay)
        {
            _rank = rank;
            Shape? decayShape = decay switch
            {
                DecayKind.None => null,
                DecayKind.Head => new Shape([H]),
                DecayKind.Token => new Shape([1, c, H]),
                _ => new Shape([1, c, H, D]),
            };
            List<Variable> leaves = [Leaf([1, c, H, D], 1), Leaf([1, c, H, D], 2), Leaf([1, c, H, E], 3)];
            if (decayShape is { } shape) leaves.Add(Leaf(shape, 4));
            _leaves = [.. leaves];
        }

        private Variable Leaf(Shape shape, int seed) =>
            Variable.Parameter(TestData.Tensor(Array.ConvertAll(TestData.Normal(shape.Count, seed + 10 * _rank.Rank, 0.3), x => seed == 4 ? -Math.Abs(x) : x), shape, DType.F32, _rank.Device));

        private Variable Apply(LaspNative.Collectives.SequenceParallel strategy, AttentionOptions options) =>
            LinearAttention.Apply(_leaves[0], _leaves[1], _leaves[2], _leaves.ElementAtOrDefault(3), _rank.World, strategy, options);

        /// <summary>Bytes sent by a call that is not run backwards.</summary>
        public long Forward(LaspNative.Collectives.SequenceParallel strategy, AttentionOptions options)
        {
            _rank.World.Counters.Reset();
            Apply(strategy, options).Dispose();
            return _rank.World.Counters.BytesSent;
        }

        /// <summary>o and all gradients, and the bytes sent for them.</summary>
        public (double[][] Results, long Forward, long Backward) Run(LaspNative.Collectives.SequenceParallel strategy, AttentionOptions options)
        {
            foreach (Variable leaf in _leaves) leaf.ZeroGradient();
            _rank.World.Counters.Reset();
            using Variable o = Apply(strategy, options);
            long forward = _rank.World.Counters.BytesSent;
            using Tensor dO = TestData.Tensor(TestData.Normal(o.Shape.Count, 9 + _rank.Rank), o.Shape, DType.F32, _rank.Device);
            o.Backward(dO);
            return ([o.Value.ToDoubles(), .. _leaves.Select(l => l.Gradient!.ToDoubles())], forward, _rank.World.Counters.BytesSent - forward);
        }

        public void Dispose()
        {
            foreach (Variable leaf in _leaves) leaf.Dispose();
        }
    }
}
