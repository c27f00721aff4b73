using Xunit;

namespace LaspNative.Tests.Oracles;

/// <summary>The oracle is checked too: its gradients against central differences of its own forward pass, its forward against the left product.</summary>
public class LinearAttentionOracleTests
{
    [Theory]
    [InlineData(1, 5, 2, 2, 3, 4, false, false)]
    [InlineData(2, 7, 4, 2, 3, 2, true, false)]
    [InlineData(1, 6, 3, 1, 2, 5, true, true)]
    [InlineData(1, 4, 2, 2, 3, 3, false, true)]
    public void Gradients_equal_central_differences(int b, int n, int h, int hk, int d, int e, bool decay, bool states)
    {
        LinearAttentionOracle oracle = Problem(b, n, h, hk, d, e, decay, states);
        double[] dOutput = TestData.Normal(b * n * h * e, 5);
        double[]? dFinal = states ? TestData.Normal(b * h * d * e, 6) : null;

        double Loss(LinearAttentionOracle o)
        {
            LinearAttentionOracle.Values values = o.Forward();
            return Dot(values.Output, dOutput) + (dFinal is null ? 0 : Dot(values.FinalState, dFinal));
        }

        LinearAttentionOracle.Gradients gradients = oracle.Backward(dOutput, dFinal);
        Check(gradients.Query, oracle.Q, x => Loss(oracle with { Q = x }));
        Check(gradients.Key, oracle.K, x => Loss(oracle with { K = x }));
        Check(gradients.Value, oracle.V, x => Loss(oracle with { V = x }));
        Check(gradients.Decay, oracle.Decay ?? new double[h], x => Loss(oracle with { Decay = x }));
        Check(gradients.InitialState, oracle.InitialState ?? new double[b * h * d * e], x => Loss(oracle with { InitialState = x }));
    }

    [Fact]
    public void Output_equals_the_left_product()
    {
        LinearAttentionOracle oracle = Problem(1, 9, 2, 1, 3, 4, decay: true, states: false);
        var expected = new double[9 * 2 * 4];
        for (int h = 0; h < 2; h++)
        {
            for (int i = 0; i < 9; i++)
            {
                for (int j = 0; j <= i; j++)
                {
                    double score = 0;
                    for (int d = 0; d < 3; d++) score += oracle.Q[(i * 2 + h) * 3 + d] * oracle.K[j * 3 + d];
                    score *= oracle.Scale * Math.Exp((i - j) * oracle.Decay![h]);
                    for (int e = 0; e < 4; e++) expected[(i * 2 + h) * 4 + e] += score * oracle.V[j * 4 + e];
                }
            }
        }
        Errors.AssertClose(oracle.Forward().Output, expected, 1e-14, "o");
    }

    [Fact]
    public void NaN_is_never_close()
    {
        Assert.Equal(double.PositiveInfinity, Errors.Relative([1, double.NaN], [1, 2]));
        Assert.Equal(double.PositiveInfinity, Errors.Relative([0, double.NaN], [0, 0]));
        Assert.Equal(5, Errors.Relative([3, 4], [0, 0]));
    }

    private static LinearAttentionOracle Problem(int b, int n, int h, int hk, int d, int e, bool decay, bool states) => new(b, n, h, hk, d, e)
    {
        Q = TestData.Heads(b * n, h, d, 1),
        K = TestData.Heads(b * n, hk, d, 2),
        V = TestData.Heads(b * n, hk, e, 3),
        Decay = decay ? TestData.Decays(h) : null,
        InitialState = states ? TestData.Normal(b * h * d * e, 4) : null,
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

    private static double Dot(double[] a, double[] b) => a.Zip(b, (x, y) => x * y).Sum();
}
