using LaspNative.Autograd;
using LaspNative.Runtime;
using Xunit;

namespace LaspNative.Tests.Autograd;

/// <summary>Who frees what, and when: every test ends with as many allocations as it began.</summary>
public sealed class TapeMemoryTests : IDisposable
{
    private readonly Device _device = Device.Open("cpu:1");
    private readonly Variable _x;
    private readonly long _baseline;

    public TapeMemoryTests()
    {
        _x = Variable.Parameter(Tensor.FromSpan([1.0, 2.0], [2], _device));
        _baseline = _device.Memory.LiveCount;
    }

    public void Dispose()
    {
        _x.ZeroGradient();
        Assert.Equal(_baseline, _device.Memory.LiveCount);
        _x.Dispose();
        Assert.Equal(0, _device.Memory.Current);
        _device.Dispose();
    }

    private Tensor Ones() => Tensor.FromSpan([1.0, 1.0], [2], _device);

    [Fact]
    public void An_explicit_tape_frees_what_nobody_disposed()
    {
        using var tape = new Tape();
        Variable y = Silu.Apply(Add.Apply(Silu.Apply(_x), tape.Constant(Ones())));
        using Tensor one = Ones();
        y.Backward(one);
    }

    [Fact]
    public void A_tape_that_never_ran_backwards_frees_what_it_saved()
    {
        using var tape = new Tape();
        Variable inner = Add.Apply(Silu.Apply(_x), tape.Constant(Ones()));
        Silu.Apply(inner).Dispose();
    }

    [Fact]
    public void An_implicit_tape_closes_with_its_last_value()
    {
        using (Variable a = Silu.Apply(_x))
        using (Variable b = Silu.Apply(a))
        {
            a.Dispose();
            Assert.True(_device.Memory.LiveCount > _baseline);
        }
        Assert.Equal(_baseline, _device.Memory.LiveCount);
    }

    [Fact]
    public void A_disposed_value_is_freed_at_once_unless_saved()
    {
        using var tape = new Tape();
        Variable constant = tape.Constant(Ones());
        Variable sum = Add.Apply(_x, constant);
        Variable y = Add.Apply(sum, constant);
        long live = _device.Memory.LiveCount;
        sum.Dispose(); // a sum saves nothing
        Assert.Equal(live - 1, _device.Memory.LiveCount);
        Variable z = Silu.Apply(y);
        y.Dispose(); // saved by silu
        Assert.Equal(live, _device.Memory.LiveCount);
        using Tensor one = Ones();
        z.Backward(one);
        Assert.NotNull(_x.Gradient);
    }

    [Fact]
    public void Backward_frees_what_it_is_done_with()
    {
        using Variable y = Silu.Apply(_x);
        using Variable z = Silu.Apply(y);
        y.Dispose();
        using Tensor one = Ones();
        z.Backward(one);
        Assert.Equal(_baseline + 3, _device.Memory.LiveCount); // z, the caller's gradient, x's gradient
    }

    [Fact]
    public void Steps_leave_memory_flat()
    {
        long after = 0;
        for (int step = 0; step < 50; step++)
        {
            using (var tape = new Tape())
            {
                Variable y = tape.Constant(Ones());
                for (int layer = 0; layer < 5; layer++) y = Add.Apply(Silu.Apply(_x), Silu.Apply(y));
                using Tensor one = Ones();
                y.Backward(one);
            }
            if (step == 0) after = _device.Memory.Current;
            Assert.Equal(after, _device.Memory.Current);
        }
    }

    [Fact]
    public void Functions_that_no_gradient_reached_are_freed_unrun()
    {
        using Variable used = Silu.Apply(_x);
        using Variable unused = Failing.Apply(used);
        using Variable y = Add.Apply(used, used);
        using Tensor one = Ones();
        y.Backward(one);
        Assert.NotNull(_x.Gradient);
    }

    [Fact]
    public void An_error_in_backward_frees_everything_and_comes_out_as_it_was()
    {
        using Variable a = Silu.Apply(_x);
        using Variable b = Failing.Apply(a);
        using Variable c = Silu.Apply(b);
        using Tensor one = Ones();
        Assert.Equal("as designed", Assert.Throws<InvalidOperationException>(() => c.Backward(one)).Message);
        Assert.Null(_x.Gradient);
        Assert.Equal(_baseline + 3, _device.Memory.LiveCount); // a (b is a view of it), c and the caller's gradient
    }

    [Fact]
    public void A_refused_function_frees_what_it_made()
    {
        using var tape = new Tape();
        using var other = new Tape();
        Variable a = Silu.Apply(Add.Apply(_x, tape.Constant(Ones())));
        Variable b = other.Constant(Ones());
        long live = _device.Memory.LiveCount;
        Assert.Contains("two tapes", Assert.Throws<LaspException>(() => Add.Apply(a, b)).Message, StringComparison.Ordinal);
        Assert.Throws<LaspException>(() => GatedLinearUnit.Apply(a, b, GateActivation.Silu));
        Assert.Equal(live, _device.Memory.LiveCount);
    }

    [Fact]
    public void A_function_whose_product_fails_frees_what_it_made()
    {
        using Variable rows = Variable.Parameter(Tensor.FromSpan([1.0, 2.0], [1, 2], _device)), weight = Variable.Parameter(Tensor.FromSpan([1.0, 2.0], [1, 2], _device));
        using Tensor label = Tensor.FromSpan([0], [1], _device);
        weight.Value.EvictMemory(); // it cannot be read
        long live = _device.Memory.LiveCount;
        Assert.Throws<InvalidOperationException>(() => Linear.Apply(rows, weight));
        Assert.Throws<InvalidOperationException>(() => GatedProjection.Apply(rows, rows, GateActivation.Silu, weight));
        Assert.Throws<InvalidOperationException>(() => LinearCrossEntropy.Apply(rows, weight, label, normalizer: 1));
        Assert.Equal(live, _device.Memory.LiveCount);
    }

    [Fact]
    public void What_is_made_from_nothing_is_a_constant_on_its_device()
    {
        using Variable one = Making.Apply(Ones());
        Assert.Equal((_device, false), (one.Device, one.RequiresGradient));
        using Variable sum = Add.Apply(_x, one);
        Assert.Equal([2.0, 3.0], sum.Value.ToDoubles());
    }

    /// <summary>y, of no inputs.</summary>
    private sealed class Making : Function
    {
        public static Variable Apply(Tensor y) => new Making().Record([], y);

        protected internal override void Backward(BackwardPass pass) => throw new InvalidOperationException("no input wants a gradient");
    }

    /// <summary>y = x whose backward fails.</summary>
    private sealed class Failing : Function
    {
        private Failing(Variable x) => Save(x.Value);

        public static Variable Apply(Variable x) => new Failing(x).Record([x], x.Value.Share());

        protected internal override void Backward(BackwardPass pass) => throw new InvalidOperationException("as designed");
    }
}
