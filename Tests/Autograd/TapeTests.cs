using LaspNative.Autograd;
using LaspNative.Runtime;
using LaspNative.Tests.Oracles;
using Xunit;

namespace LaspNative.Tests.Autograd;

/// <summary>The tape's arithmetic: fan-out, accumulation, merging, order; and what it refuses.</summary>
public sealed class TapeTests : IDisposable
{
    private readonly Device _device = Device.Open("cpu:1");

    public void Dispose() => _device.Dispose();

    private Variable Parameter(params double[] values) => Variable.Parameter(Tensor.FromSpan(values, [values.Length], _device));

    private Variable Constant(params double[] values) => Variable.Constant(Tensor.FromSpan(values, [values.Length], _device));

    private Tensor Ones(long count) => Tensor.FromSpan(Enumerable.Repeat(1.0, (int)count).ToArray(), [count], _device);

    [Fact]
    public void A_value_used_often_collects_all_its_gradients()
    {
        using Variable x = Parameter(0.5, -2);
        using Variable twice = Add.Apply(x, x);
        using Variable activated = Silu.Apply(twice);
        using Variable y = Add.Apply(activated, twice); // silu(2x) + 2x
        using Tensor one = Ones(2);
        y.Backward(one);
        Errors.AssertClose(x.Gradient!.ToDoubles(), [2 * ElementwiseOracle.SiluSlope(1) + 2, 2 * ElementwiseOracle.SiluSlope(-4) + 2], 1e-14, "dx");
    }

    [Fact]
    public void Leaves_accumulate_over_backward_passes_until_zeroed()
    {
        using Variable x = Parameter(1, 2);
        using Tensor one = Ones(2);
        for (int pass = 1; pass <= 3; pass++)
        {
            using Variable y = Add.Apply(x, x);
            y.Backward(one);
            Assert.Equal([2.0 * pass, 2.0 * pass], x.Gradient!.ToDoubles());
        }
        x.ZeroGradient();
        Assert.Null(x.Gradient);
    }

    [Fact]
    public void Leaves_that_were_given_one_gradient_do_not_share_its_memory()
    {
        using Variable a = Parameter(1, 2);
        using Variable b = Parameter(3, 4);
        using Tensor one = Ones(2);
        using (Variable y = Add.Apply(a, b)) y.Backward(one);
        _device.Backend.Fill(7, a.Gradient!);
        Assert.Equal([1.0, 1.0], b.Gradient!.ToDoubles());
        Assert.Equal([1.0, 1.0], one.ToDoubles());
    }

    [Fact]
    public void Gradients_of_bf16_leaves_are_fp32()
    {
        using Variable x = Variable.Parameter(TestData.Tensor([1, 2, 3], [3], DType.BF16, _device));
        using Tensor dy = TestData.Tensor([1, 2, 3], [3], DType.BF16, _device);
        using (Variable y = Silu.Apply(x)) y.Backward(dy);
        Assert.Equal(DType.F32, x.Gradient!.DType);
    }

    [Fact]
    public void A_weight_computed_in_bf16_collects_sums_in_fp32()
    {
        double[] master = TestData.Normal(5, 1);
        using Variable weight = Variable.Parameter(TestData.Tensor(master, [5], DType.F32, _device));
        using Variable x = Variable.Constant(TestData.Tensor(TestData.Normal(15, 2), [3, 5], DType.BF16, _device));
        using Tensor dy = TestData.Tensor(TestData.Normal(15, 3), [3, 5], DType.BF16, _device);
        using Variable rounded = Cast.Apply(weight, DType.BF16);
        using Variable y = RmsNorm.Apply(x, rounded, 1e-5);
        y.Backward(dy);
        var oracle = new NormalizationOracle(x.Value.ToDoubles(), 5, TestData.Rounded(master, DType.BF16), Gate: null, 1e-5);
        Errors.AssertClose(weight.Gradient!.ToDoubles(), oracle.Backward(dy.ToDoubles()).Weight, 4e-3, "dWeight");
    }

    [Theory]
    [InlineData(false)]
    [InlineData(true)]
    public void Tapes_merge_when_their_values_meet(bool reversed)
    {
        using Variable p = Parameter(0.3);
        using Variable q = Parameter(-0.7);
        using Variable a = Silu.Apply(p);
        using Variable b = Silu.Apply(q);
        using Variable a2 = Silu.Apply(a); // a's tape goes on after b's began
        using Variable y = reversed ? Add.Apply(b, a2) : Add.Apply(a2, b);
        using Variable z = Add.Apply(y, b);
        z.Backward();
        double inner = ElementwiseOracle.Silu(0.3);
        Assert.Equal(ElementwiseOracle.SiluSlope(inner) * ElementwiseOracle.SiluSlope(0.3), p.Gradient!.ToDoubles()[0], 1e-14);
        Assert.Equal(2 * ElementwiseOracle.SiluSlope(-0.7), q.Gradient!.ToDoubles()[0], 1e-14);
    }

    [Fact]
    public void Implicit_tapes_merge_into_an_explicit_one()
    {
        using Variable p = Parameter(0.3);
        long live = _device.Memory.LiveCount;
        using (var tape = new Tape())
        {
            Variable x = tape.Constant(Ones(1));
            Variable a = Silu.Apply(p); // begins a tape of its own
            Add.Apply(a, x).Backward();
        }
        Assert.Equal(ElementwiseOracle.SiluSlope(0.3), p.Gradient!.ToDoubles()[0], 1e-14);
        p.ZeroGradient();
        Assert.Equal(live, _device.Memory.LiveCount);
    }

    [Fact]
    public void Several_outputs_run_backwards_at_once()
    {
        using Variable p = Parameter(0.3);
        using var tape = new Tape();
        Variable x = tape.Constant(Ones(1));
        Variable a = Add.Apply(p, x);
        Variable b = Silu.Apply(a);
        using Tensor three = Tensor.FromSpan([3.0], [1], _device);
        Tape.Backward((a, three), (b, null));
        Assert.Equal(3 + ElementwiseOracle.SiluSlope(1.3), p.Gradient!.ToDoubles()[0], 1e-14);
    }

    [Fact]
    public void What_wants_no_gradient_is_not_recorded()
    {
        using Variable x = Constant(1, 2);
        using Variable y = Silu.Apply(x);
        Assert.True(y.IsLeaf);
        Assert.False(y.RequiresGradient);
        LaspException error = Assert.Throws<LaspException>(() => y.Backward());
        Assert.Contains("nothing before it wants a gradient", error.Message, StringComparison.Ordinal);
    }

    [Fact]
    public void A_chain_of_20000_functions_needs_no_recursion()
    {
        using Variable x = Parameter(1);
        long live = _device.Memory.LiveCount;
        Variable y = Add.Apply(x, x);
        for (int i = 1; i < 20_000; i++)
        {
            Variable next = Reshape.Apply(y, i % 2 == 0 ? [1] : [1, 1]);
            y.Dispose();
            y = next;
        }
        using Tensor one = Tensor.FromSpan([1.0], y.Shape, _device);
        y.Backward(one);
        y.Dispose();
        Assert.Equal([2.0], x.Gradient!.ToDoubles());
        x.ZeroGradient();
        one.Dispose();
        Assert.Equal(live, _device.Memory.LiveCount);
    }

    [Fact]
    public void A_tape_runs_backwards_once()
    {
        using Variable x = Parameter(1);
        using Variable y = Silu.Apply(x);
        y.Backward();
        double[] gradient = x.Gradient!.ToDoubles();
        Assert.Contains("already ran backwards", Assert.Throws<LaspException>(() => y.Backward()).Message, StringComparison.Ordinal);
        Assert.Contains("already ran backwards", Assert.Throws<LaspException>(() => Add.Apply(y, x)).Message, StringComparison.Ordinal);
        using Variable other = Silu.Apply(x);
        Assert.Throws<LaspException>(() => Add.Apply(other, y));
        Assert.Equal(gradient, x.Gradient!.ToDoubles());
    }

    [Fact]
    public void A_disposed_tape_records_no_more()
    {
        var tape = new Tape();
        tape.Dispose();
        using Tensor one = Ones(1);
        Assert.Contains("disposed", Assert.Throws<LaspException>(() => tape.Constant(one)).Message, StringComparison.Ordinal);
    }

    [Fact]
    public void Gradients_must_fit_what_they_belong_to()
    {
        using Variable x = Parameter(1, 2);
        using Variable y = Silu.Apply(x);
        using Tensor three = Ones(3);
        Assert.Contains("[3]", Assert.Throws<LaspException>(() => y.Backward(three)).Message, StringComparison.Ordinal);
        Assert.Contains("[2]", Assert.Throws<LaspException>(() => y.Backward()).Message, StringComparison.Ordinal);
        using Tensor two = Ones(2);
        y.Backward(two); // a refused call leaves the tape as it was
        Assert.NotNull(x.Gradient);
    }

    [Fact]
    public void Tied_weights_collect_both_gradients()
    {
        using Variable table = Variable.Parameter(Tensor.FromSpan(TestData.Normal(12, 1), [4, 3], _device));
        using Variable copy = Variable.Parameter(Tensor.FromSpan(table.Value.ToDoubles(), [4, 3], _device));
        NextTokenLoss(table, head: table);
        double[] tied = table.Gradient!.ToDoubles();
        table.ZeroGradient();
        NextTokenLoss(table, head: copy);
        Errors.AssertClose(tied, ElementwiseOracle.Map(table.Gradient!.ToDoubles(), copy.Gradient!.ToDoubles(), (t, c) => t + c), 1e-14, "tied gradient");
    }

    private void NextTokenLoss(Variable table, Variable head)
    {
        using var tape = new Tape();
        using Tensor labels = Tensor.FromSpan([1, 3], [2], _device);
        Variable ids = tape.Constant(Tensor.FromSpan([2, 0], [2], _device));
        LinearCrossEntropy.Apply(Embedding.Apply(ids, table), head, labels, normalizer: 2).Backward();
    }

    /// <summary>What block checkpointing needs: backward records the block again on a tape of its own and runs that.</summary>
    [Fact]
    public void A_function_may_recompute_its_inside_on_a_tape_of_its_own()
    {
        using Variable w = Parameter(0.3, -0.4);
        using Tensor one = Ones(2);
        using (Variable inner = Block(w, w))
        using (Variable outer = Block(inner, w)) outer.Backward(one);
        double[] expected = w.Gradient!.ToDoubles();
        w.ZeroGradient();
        using (Variable inner = Recomputed.Apply(w, w))
        using (Variable outer = Recomputed.Apply(inner, w)) outer.Backward(one);
        Assert.Equal(expected, w.Gradient!.ToDoubles());
        w.ZeroGradient();
        Assert.Equal(2, _device.Memory.LiveCount); // w and the caller's gradient
    }

    private static Variable Block(Variable x, Variable w)
    {
        using Variable activated = Silu.Apply(x);
        return GatedLinearUnit.Apply(activated, w, GateActivation.Silu);
    }

    private sealed class Recomputed : Function
    {
        private readonly Tensor _x;
        private readonly Variable _weight;

        private Recomputed(Variable x, Variable weight)
        {
            _x = Save(x.Value);
            _weight = weight;
        }

        public static Variable Apply(Variable x, Variable weight)
        {
            using Variable detached = Variable.Constant(x.Value.Share());
            using Variable constant = Variable.Constant(weight.Value.Share());
            using Variable y = Block(detached, constant);
            return new Recomputed(x, weight).Record([x, weight], y.Value.Share());
        }

        protected internal override void Backward(BackwardPass pass)
        {
            using Variable x = Variable.Parameter(_x.Share());
            using Variable y = Block(x, _weight);
            y.Backward(pass.RequiredOutput(0)); // adds to the weight's gradient by itself
            pass.Give(0, x.Gradient!.Share());
        }
    }
}
