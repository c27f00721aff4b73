using LaspNative.Autograd;
using LaspNative.Runtime;
using LaspNative.Tests.Oracles;
using Xunit;

namespace LaspNative.Tests.Autograd;

/// <summary>The optimizer over several steps, its fp32 masters, its state in checkpoints, and clipping.</summary>
public sealed class AdamWTests : IDisposable
{
    private static readonly AdamWOptions s_options = new() { Beta1 = 0.8, Beta2 = 0.9, Epsilon = 1e-6, WeightDecay = 0.05 };
    private readonly Device _device = Device.Open("cpu:1");

    public void Dispose()
    {
        Assert.Equal(0, _device.Memory.Current);
        _device.Dispose();
    }

    private Variable Parameter(DType dtype, int seed) => Variable.Parameter(TestData.Tensor(TestData.Normal(37, seed), [37], dtype, _device));

    private Tensor Number(DType dtype, double value)
    {
        Tensor number = Tensor.Empty([1], dtype.Accumulator(), _device);
        _device.Backend.Fill(value, number);
        return number;
    }

    private static double SquaredNorm(AdamW optimizer, Tensor sum)
    {
        sum.Device.Backend.Fill(0, sum);
        optimizer.AddSquaredNorm(sum);
        return sum.ToDoubles()[0];
    }

    private static void SetGradient(Variable parameter, int seed)
    {
        parameter.ZeroGradient();
        using Tensor dy = TestData.Tensor(TestData.Normal(37, seed), [37], parameter.DType, parameter.Device);
        using Variable y = Reshape.Apply(parameter, [37]);
        y.Backward(dy);
    }

    [Theory]
    [InlineData(DType.F64)]
    [InlineData(DType.F32)]
    [InlineData(DType.BF16)]
    public void Steps_follow_the_equations(DType dtype)
    {
        using Variable decayed = Parameter(dtype, 1);
        using Variable free = Parameter(dtype, 2);
        using var optimizer = new AdamW([new("decayed", decayed, Decays: true), new("free", free, Decays: false)], s_options);
        double[][] w = [decayed.Value.ToDoubles(), free.Value.ToDoubles()];
        double[][] m = [new double[37], new double[37]];
        double[][] v = [new double[37], new double[37]];
        for (int step = 1; step <= 5; step++)
        {
            SetGradient(decayed, 10 + step);
            SetGradient(free, 20 + step);
            Variable[] parameters = [decayed, free];
            for (int p = 0; p < 2; p++)
            {
                double[] gradient = parameters[p].Gradient!.ToDoubles();
                var scalars = new AdamWStep(0.01, 0.8, 0.9, 1e-6, step);
                for (int i = 0; i < 37; i++) (m[p][i], v[p][i], w[p][i]) = MatrixOracle.AdamW(0.5 * gradient[i], scalars, p == 0 ? 0.05 : 0, m[p][i], v[p][i], w[p][i]);
            }
            using Tensor scale = Number(dtype, 0.5);
            optimizer.Step(0.01, scale);
        }
        Assert.Equal(5, optimizer.StepCount);
        Check(optimizer, "decayed", decayed, w[0]);
        Check(optimizer, "free", free, w[1]);
    }

    /// <summary>The master keeps fp32 where the parameter does not: small updates are not lost.</summary>
    private static void Check(AdamW optimizer, string name, Variable parameter, double[] expected)
    {
        DType acc = parameter.DType.Accumulator();
        Tensor? master = optimizer.ExportState().Where(t => t.Name == name + ".master").Select(t => t.Tensor).FirstOrDefault();
        Assert.Equal(parameter.DType == DType.BF16, master is not null);
        Errors.AssertClose((master ?? parameter.Value).ToDoubles(), expected, Tolerances.Of(acc), name);
        if (master is not null) Assert.Equal(TestData.Rounded(master.ToDoubles(), DType.BF16), parameter.Value.ToDoubles());
    }

    [Theory]
    [InlineData(DType.F32)]
    [InlineData(DType.BF16)]
    public void An_exported_state_continues_bit_exactly(DType dtype)
    {
        using Variable a = Parameter(dtype, 1);
        using Variable b = Parameter(dtype, 1);
        using var first = new AdamW([new("w", a, Decays: true)], s_options);
        SetGradient(a, 3);
        first.Step(0.01);
        using var second = new AdamW([new("w", b, Decays: true)], s_options);
        _device.Backend.Cast(a.Value, b.Value);
        second.ImportState(first.StepCount, name => first.ExportState().Single(t => t.Name == name).Tensor);
        SetGradient(a, 4);
        SetGradient(b, 4);
        first.Step(0.01);
        second.Step(0.01);
        Assert.Equal(a.Value.ToDoubles(), b.Value.ToDoubles());
        foreach ((NamedTensor one, NamedTensor other) in first.ExportState().Zip(second.ExportState())) Assert.Equal(one.Tensor.ToDoubles(), other.Tensor.ToDoubles());
    }

    [Theory]
    [InlineData(0, 1)]
    [InlineData(1, 3)]
    [InlineData(2, 3)]
    [InlineData(0, 3)]
    [InlineData(3, 3)]
    public void A_step_in_two_launches_is_a_step_and_begins_with_the_parameters_asked_for(int first, int end)
    {
        Variable[] whole = [Parameter(DType.BF16, 1), Parameter(DType.F32, 2), Parameter(DType.BF16, 3)], parts = [Parameter(DType.BF16, 1), Parameter(DType.F32, 2), Parameter(DType.BF16, 3)];
        using AdamW atOnce = Optimizer(whole), inTwo = Optimizer(parts);
        double[][] before = [.. parts.Select(p => p.Value.ToDoubles())];
        for (int i = 0; i < 3; i++)
        {
            SetGradient(whole[i], 10 + i);
            SetGradient(parts[i], 10 + i);
        }
        using Tensor scale = Number(DType.F32, 0.5);
        atOnce.Step(0.01, scale);
        int calls = 0;
        inTwo.StepInTwo(0.01, scale, first..end, () =>
        {
            calls++;
            for (int i = 0; i < 3; i++) Assert.Equal(i >= first && i < end ? whole[i].Value.ToDoubles() : before[i], parts[i].Value.ToDoubles());
        });
        Assert.Equal((1, 1), (calls, inTwo.StepCount));
        for (int i = 0; i < 3; i++)
        {
            Assert.NotEqual(before[i], parts[i].Value.ToDoubles());
            Assert.Equal(whole[i].Value.ToDoubles(), parts[i].Value.ToDoubles());
        }
        foreach (Variable variable in whole.Concat(parts)) variable.Dispose();

        static AdamW Optimizer(Variable[] parameters) => new([.. parameters.Select((p, i) => new NamedParameter($"p{i}", p, Decays: i == 1))], s_options);
    }

    [Fact]
    public void A_state_of_another_model_is_refused()
    {
        using Variable w = Parameter(DType.F32, 1);
        using var optimizer = new AdamW([new("w", w, Decays: true)], s_options);
        Assert.Contains("'w.exp_avg'", Assert.Throws<LaspException>(() => optimizer.ImportState(1, _ => null)).Message, StringComparison.Ordinal);
        using Tensor small = Tensor.Zeros([3], DType.F32, _device);
        Assert.Contains("[37]", Assert.Throws<LaspException>(() => optimizer.ImportState(1, _ => small)).Message, StringComparison.Ordinal);
    }

    [Fact]
    public void The_norm_is_over_all_gradients_and_clips_them_together()
    {
        using Variable a = Parameter(DType.F32, 1);
        using Variable b = Parameter(DType.BF16, 2);
        using Variable without = Parameter(DType.F32, 3);
        using var optimizer = new AdamW([new("a", a, Decays: true), new("b", b, Decays: true), new("without", without, Decays: true)], s_options);
        SetGradient(a, 4);
        SetGradient(b, 5);
        double expected = a.Gradient!.ToDoubles().Concat(b.Gradient!.ToDoubles()).Sum(x => x * x);
        using Tensor sum = Number(DType.F32, 0);
        Assert.Equal(expected, SquaredNorm(optimizer, sum), expected * 1e-6);
        double[] before = without.Value.ToDoubles();
        optimizer.Step(0.1);
        Assert.Equal(before, without.Value.ToDoubles());
        optimizer.ZeroGradients();
        Assert.Null(a.Gradient);
        Assert.Equal(0, SquaredNorm(optimizer, sum));
    }

    [Theory]
    [InlineData(4, 1, 0.5)]
    [InlineData(0.25, 1, 1)]
    [InlineData(100, 0, 1)]
    [InlineData(0, 1, 1)]
    public void Clipping_scales_down_to_the_bound(double squaredNorm, double bound, double factor)
    {
        using Tensor squares = Number(DType.F64, squaredNorm), loss = Number(DType.F64, 3), result = GradientClipping.Factor(squares, loss, bound);
        Assert.Equal(factor, result.ToDoubles()[0], 1e-15);
    }

    [Fact]
    public void A_negative_bound_is_refused()
    {
        using Tensor one = Number(DType.F32, 1);
        Assert.Contains("-1", Assert.Throws<LaspException>(() => GradientClipping.Factor(one, one, -1)).Message, StringComparison.Ordinal);
    }

    [Theory]
    [InlineData(double.NaN, 1)]
    [InlineData(double.PositiveInfinity, 1)]
    [InlineData(1, double.NaN)]
    [InlineData(1, double.NegativeInfinity)]
    public void A_norm_or_a_loss_that_is_not_finite_leaves_everything_as_it_is(double squaredNorm, double lossValue)
    {
        using Variable w = Parameter(DType.BF16, 1);
        using var optimizer = new AdamW([new("w", w, Decays: true)], s_options);
        SetGradient(w, 2);
        optimizer.Step(0.01);
        double[][] before = [w.Value.ToDoubles(), .. optimizer.ExportState().Select(t => t.Tensor.ToDoubles())];
        SetGradient(w, 3);
        using Tensor squares = Number(DType.F32, squaredNorm), loss = Number(DType.F32, lossValue), factor = GradientClipping.Factor(squares, loss, 0);
        optimizer.Step(0.01, factor);
        Assert.Equal(before, [w.Value.ToDoubles(), .. optimizer.ExportState().Select(t => t.Tensor.ToDoubles())]);
    }
}
