using Xunit;

namespace LaspNative.Tests.Oracles;

/// <summary>The oracle is checked too: its gradients against central differences of its own forward pass, its forward against the left product.</summary>
public class LinearAttentionOracleTests
{
    [Theory]
    [InlineData(1, 5, 2, 2, 3, 4, DecayKind.None, false)]
    [InlineData(2, 7, 4, 2, 3, 2, DecayKind.Head, false)]
    [InlineData(1, 6, 3, 1, 2, 5, DecayKind.Head, true)]
    [InlineData(1, 4, 2, 2, 3, 3, DecayKind.None, true)]
    [InlineData(2, 5, 4, 2, 3, 2, DecayKind.Token, true)]
    [InlineData(2, 5, 4, 2, 3, 2, DecayKind.Channel, true)]
    public void Gradients_equal_central_differences(int b, int n, int h, int hk, int d, int e, DecayKind decay, bool states) =>
        CheckGradients(Problem(b, n, h, hk, d, e, decay, states), states);

    [Theory]
    [InlineData(DecayKind.None)]
    [InlineData(DecayKind.Head)]
    [InlineData(DecayKind.Token)]
    [InlineData(DecayKind.Channel)]
    public void Gradients_of_packed_documents_equal_central_differences(DecayKind decay) => CheckGradients(Packed(decay), states: true);

    [Fact]
    public void Gradients_without_a_mask_equal_central_differences()
    {
        CheckGradients(Problem(2, 4, 4, 2, 3, 2, DecayKind.None, states: true) with { Causal = false }, states: true);
        CheckGradients(Packed(DecayKind.None) with { Causal = false }, states: true);
    }

    [Theory]
    [InlineData(DecayKind.Head)]
    [InlineData(DecayKind.Channel)]
    public void A_packed_document_is_attention_of_its_own(DecayKind decay)
    {
        LinearAttentionOracle packed = Packed(decay);
        LinearAttentionOracle.Values together = packed.Forward();
        int q = packed.H * packed.D, k = packed.Hk * packed.D, v = packed.Hk * packed.E, o = packed.H * packed.E, state = packed.H * packed.D * packed.E;
        for (int n = 0; n < packed.DocumentCount; n++)
        {
            (int start, int end) = ((int)packed.CuSeqlens![n], (int)packed.CuSeqlens[n + 1]);
            LinearAttentionOracle.Values alone = new LinearAttentionOracle(1, end - start, packed.H, packed.Hk, packed.D, packed.E)
            {
                Q = packed.Q[(start * q)..(end * q)],
                K = packed.K[(start * k)..(end * k)],
                V = packed.V[(start * v)..(end * v)],
                Decay = decay == DecayKind.Head ? packed.Decay : packed.Decay![(start * q)..(end * q)],
                InitialState = packed.InitialState![(n * state)..((n + 1) * state)],
                Scale = packed.Scale,
            }.Forward();
            Assert.Equal(alone.Output, together.Output[(start * o)..(end * o)]);
            Assert.Equal(alone.FinalState, together.FinalState[(n * state)..((n + 1) * state)]);
        }
    }

    private static void CheckGradients(LinearAttentionOracle oracle, bool states)
    {
        double[] dOutput = TestData.Normal(oracle.B * oracle.N * oracle.H * oracle.E, 5);
        int stateCount = oracle.DocumentCount * oracle.H * oracle.D * oracle.E;
        double[]? dFinal = states ? TestData.Normal(stateCount, 6) : null;

        double Loss(LinearAttentionOracle o)
        {
            LinearAttentionOracle.Values values = o.Forward();
            return Dot(values.Output, dOutput) + (dFinal is null ? 0 : Dot(values.FinalState, dFinal));
        }

        LinearAttentionOracle.Gradients gradients = oracle.Backward(dOutput, dFinal);
        Check(gradients.Query, oracle.Q, x => Loss(oracle with { Q = x }));
        Check(gradients.Key, oracle.K, x => Loss(oracle with { K = x }));
        Check(gradients.Value, oracle.V, x => Loss(oracle with { V = x }));
        if (oracle.Causal) Check(gradients.Decay, oracle.Decay ?? new double[oracle.H], x => Loss(oracle with { Decay = x }));
        Check(gradients.InitialState, oracle.InitialState ?? new double[stateCount], x => Loss(oracle with { InitialState = x }));
    }

    [Fact]
    public void Output_equals_the_left_product()
    {
        LinearAttentionOracle oracle = Problem(1, 9, 2, 1, 3, 4, DecayKind.Head, states: false);
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

    private static LinearAttentionOracle Problem(int b, int n, int h, int hk, int d, int e, DecayKind decay, bool states) => new(b, n, h, hk, d, e)
    {
        Q = TestData.Heads(b * n, h, d, 1),
        K = TestData.Heads(b * n, hk, d, 2),
        V = TestData.Heads(b * n, hk, e, 3),
        Decay = TestData.Decays(decay, b, n, h, d),
        InitialState = states ? TestData.Normal(b * h * d * e, 4) : null,
        Scale = 1 / Math.Sqrt(d),
    };

    /// <summary>Documents of 3, 0, 1 and 4 tokens in one row, each with an initial state.</summary>
    private static LinearAttentionOracle Packed(DecayKind decay) => Problem(1, 8, 4, 2, 3, 2, decay, states: false) with
    {
        CuSeqlens = [0, 3, 3, 4, 8],
        InitialState = TestData.Normal(4 * 4 * 3 * 2, 4),
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
