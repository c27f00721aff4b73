using Xunit;

namespace LaspNative.Tests.Oracles;

/// <summary>The oracle is checked too: its gradients against central differences of its own forward pass, its ranges against the masks that they stand for.</summary>
public class SoftmaxAttentionOracleTests
{
    [Theory]
    [InlineData(1, 5, 5, 2, 2, 3, 4, 0)]
    [InlineData(2, 4, 9, 4, 2, 3, 2, 3)]
    [InlineData(1, 6, 4, 3, 1, 2, 5, 1)]
    public void Gradients_equal_central_differences(int b, int c, int m, int h, int hk, int d, int e, long firstKey)
    {
        SoftmaxAttentionOracle oracle = Problem(b, c, m, h, hk, d, e) with { FirstKey = firstKey };
        double[] dOutput = TestData.Normal(b * c * h * e, 5);
        double Loss(SoftmaxAttentionOracle o) => o.Forward().Output.Zip(dOutput, (x, y) => x * y).Sum();
        SoftmaxAttentionOracle.Gradients gradients = oracle.Backward(dOutput);
        Check(gradients.Query, oracle.Q, x => Loss(oracle with { Q = x }));
        Check(gradients.Key, oracle.K, x => Loss(oracle with { K = x }));
        Check(gradients.Value, oracle.V, x => Loss(oracle with { V = x }));
    }

    [Fact]
    public void Equal_scores_give_the_mean_of_the_visible_values()
    {
        SoftmaxAttentionOracle oracle = Problem(1, 4, 6, 1, 1, 2, 1) with { Q = new double[8], V = [1, 2, 4, 8, 16, 32], FirstKey = 1, Ranges = [0, 0, 0, 1, 2, 4, 6, 99] };
        SoftmaxAttentionOracle.Values values = oracle.Forward();
        Errors.AssertClose(values.Output, [0, 1, 14 / 3.0, 32], 1e-15, "o");
        Errors.AssertClose(values.LogSumExp, [double.NegativeInfinity, 0, Math.Log(3), 0], 1e-15, "logSumExp");
    }

    [Fact]
    public void Ranges_of_documents_end_at_their_bounds()
    {
        Assert.Equal([0, 2, 3, 3, 3, 4, 5, 5], SoftmaxAttentionOracle.Documents(first: 2, count: 4, bounds: [0, 3, 5, 9]));
        Assert.Equal([0, 2, 3, 4, 3, 4, 5, 8], SoftmaxAttentionOracle.Documents(first: 2, count: 4, bounds: [0, 3, 5, 9], causal: false));
        Assert.Equal([0, 7, 0, 8], SoftmaxAttentionOracle.Causal(first: 7, count: 2));
    }

    private static SoftmaxAttentionOracle Problem(int b, int c, int m, int h, int hk, int d, int e) => new(b, c, m, h, hk, d, e)
    {
        Q = TestData.Heads(b * c, h, d, 1),
        K = TestData.Heads(b * m, hk, d, 2),
        V = TestData.Heads(b * m, hk, e, 3),
        Ranges = SoftmaxAttentionOracle.Causal(0, c),
        Scale = 1 / Math.Sqrt(d),
    };

    private static void Check(double[] gradient, double[] at, Func<double[], double> loss)
    {
        const double Step = 1e-5;
        var differences = new double[at.Length];
        for (int i = 0; i < at.Length; i++)
        {
            double[] x = [.. at];
            x[i] = at[i] + Step;
            double above = loss(x);
            x[i] = at[i] - Step;
            differences[i] = (above - loss(x)) / (2 * Step);
        }
        Errors.AssertClose(gradient, differences, 1e-8, "gradient");
    }
}
