using LaspNative.Autograd;
using LaspNative.Collectives;
using LaspNative.Runtime;
using LaspNative.Tests.Oracles;
using Xunit;

namespace LaspNative.Tests.SequenceParallel;

/// <summary>What a rank sends for one layer is the strategy's formula to the byte: every strategy, every kind of decay, uneven chunks.</summary>
public class StrategyBytesTests
{
    public static TheoryData<string, int, DecayKind> Cases()
    {
        var rows = new TheoryData<string, int, DecayKind>();
        foreach (LaspNative.Collectives.SequenceParallel strategy in LaspNative.Collectives.SequenceParallel.All.Where(s => s.Name != "serial"))
            foreach (int w in new[] { 1, 2, 4 })
                foreach (DecayKind decay in Enum.GetValues<DecayKind>()) rows.Add(strategy.Name, w, decay);
        return rows;
    }

    [Theory]
    [MemberData(nameof(Cases))]
    public void Measured_bytes_are_the_predicted(string strategy, int w, DecayKind decay)
    {
        const int B = 2, N = 37, H = 8, D = 6, E = 10;
        var chosen = LaspNative.Collectives.SequenceParallel.Parse(strategy);
        World.Run(new WorldOptions(DeviceKind.Cpu, w), rank =>
        {
            var partition = new SequencePartition(N, w);
            long c = partition.Length(rank.Rank);
            Variable Leaf(Shape shape, int seed) => Variable.Parameter(TestData.Tensor(Array.ConvertAll(TestData.Normal(shape.Count, seed), x => -Math.Abs(x)), shape, DType.F32, rank.Device));
            using Variable q = Leaf([B, c, H, D], 1), k = Leaf([B, c, H, D], 2), v = Leaf([B, c, H, E], 3);
            using Variable? g = decay switch
            {
                DecayKind.None => null,
                DecayKind.Head => Leaf([H], 4),
                DecayKind.Token => Leaf([B, c, H], 4),
                _ => Leaf([B, c, H, D], 4),
            };
            var options = new AttentionOptions { Partition = partition };
            var call = new AttentionCall(k.Value, v.Value, g?.Value, null, rank.World, options);
            (long forward, long backward) = chosen.PredictedBytesSent(call, g?.Value);
            rank.World.Counters.Reset();
            using Variable output = LinearAttention.Apply(q, k, v, g, rank.World, chosen, options);
            Assert.Equal(forward, rank.World.Counters.BytesSent);
            using Tensor dO = Tensor.Zeros(output.Shape, DType.F32, rank.Device);
            output.Backward(dO);
            Assert.Equal(backward, rank.World.Counters.BytesSent - forward);
        });
    }
}
