using LaspNative.Autograd;
using LaspNative.Collectives;
using LaspNative.Runtime;
using LaspNative.Tests.Oracles;
using Xunit;

namespace LaspNative.Tests.SequenceParallel;

/// <summary>Without kernel fusion, an attention call gives what one pass gives.</summary>
public class SeparatePartsTests
{
    private const int B = 2, H = 3, D = 6, E = 10, N = 37;

    [Theory]
    [InlineData(2)]
    [InlineData(3)]
    public void Two_kernels_and_a_sum_give_what_one_pass_gives(int w) => World.Run(new WorldOptions(DeviceKind.Cpu, w), rank =>
    {
        var options = new AttentionOptions { Partition = new SequencePartition(N, w) };
        double[][] fused = Run(rank, new Lasp1(), options), separate = Run(rank, new Lasp1 { SeparatesParts = true }, options), gathered = Run(rank, new Lasp2 { SeparatesParts = true }, options);
        for (int i = 0; i < fused.Length; i++)
        {
            Assert.True(Errors.Relative(separate[i], fused[i]) < 1e-12, $"result {i}");
            Assert.Equal(separate[i], gathered[i]);
        }
    });

    [Fact]
    public void A_decay_is_refused() => World.Run(new WorldOptions(DeviceKind.Cpu, 2), rank =>
    {
        using var decay = Variable.Constant(Tensor.FromSpan([-0.1, -0.2, -0.3], [H], rank.Device));
        using Variable q = Input(rank, 1, D), k = Input(rank, 2, D), v = Input(rank, 3, E);
        var options = new AttentionOptions { Partition = new SequencePartition(N, 2) };
        var error = Assert.Throws<LaspException>(() => LinearAttention.Apply(q, k, v, decay, rank.World, new Lasp1 { SeparatesParts = true }, options));
        Assert.Contains("leave them fused", error.Message, StringComparison.Ordinal);
    });

    /// <summary>o, dq, dk, dv of this rank.</summary>
    private static double[][] Run(RankContext rank, LaspNative.Collectives.SequenceParallel strategy, AttentionOptions options)
    {
        using var tape = new Tape();
        using Variable q = Input(rank, 1, D), k = Input(rank, 2, D), v = Input(rank, 3, E), dO = Input(rank, 4, E);
        using Variable o = LinearAttention.Apply(q, k, v, null, rank.World, strategy, options);
        o.Backward(dO.Value);
        return [o.Value.ToDoubles(), q.Gradient!.ToDoubles(), k.Gradient!.ToDoubles(), v.Gradient!.ToDoubles()];
    }

    private static Variable Input(RankContext rank, int seed, int width)
    {
        var partition = new SequencePartition(N, rank.Size);
        var random = new Random((17 * rank.Rank) + seed);
        Shape shape = [B, partition.Length(rank.Rank), H, width];
        var values = new double[shape.Count];
        for (int i = 0; i < values.Length; i++) values[i] = random.NextDouble() - 0.5;
        return Variable.Parameter(Tensor.FromSpan(values, shape, rank.Device));
    }
}
