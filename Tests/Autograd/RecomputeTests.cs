using LaspNative.Autograd;
using LaspNative.Runtime;
using Xunit;

namespace LaspNative.Tests.Autograd;

/// <summary>A region that runs twice: the same bits as one that runs once, only its inputs alive in between, and nothing left over whatever happens.</summary>
public sealed class RecomputeTests : IDisposable
{
    private const int Rows = 6, Width = 8;

    private readonly Device _device = Device.Open("cpu:1");
    private readonly Variable _x;
    private readonly Variable _weight;
    private readonly long _baseline;

    public RecomputeTests()
    {
        _x = Variable.Parameter(Random([Rows, Width], 1));
        _weight = Variable.Parameter(Random([Width, Width], 2));
        _baseline = _device.Memory.LiveCount;
    }

    public void Dispose()
    {
        ZeroGradients();
        Assert.Equal(_baseline, _device.Memory.LiveCount);
        _x.Dispose();
        _weight.Dispose();
        Assert.Equal(0, _device.Memory.Current);
        _device.Dispose();
    }

    private Tensor Random(Shape shape, int seed)
    {
        var random = new Random(seed);
        return Tensor.FromSpan(Enumerable.Range(0, (int)shape.Count).Select(_ => random.NextSingle() - 0.5f).ToArray(), shape, _device);
    }

    private void ZeroGradients()
    {
        _x.ZeroGradient();
        _weight.ZeroGradient();
    }

    /// <summary>Two layers and the input itself, so that the input's gradient is a sum: (W silu(W x), x + W x).</summary>
    private Variable[] Region(Variable x, RegionRun run)
    {
        using Variable first = Linear.Apply(x, _weight);
        using Variable activated = Silu.Apply(first);
        return [Linear.Apply(activated, _weight, run), Add.Apply(x, first)];
    }

    private (double[] Dx, double[] DWeight) Gradients(Func<Variable, Variable[]> region, bool wantsFirst = true)
    {
        ZeroGradients();
        using (var tape = new Tape())
        {
            Variable start = Silu.Apply(_x);
            Variable[] y = region(start);
            start.Dispose();
            using Tensor first = Random([Rows, Width], 3), second = Random([Rows, Width], 4);
            if (wantsFirst) Tape.Backward((y[0], first), (y[1], second));
            else Tape.Backward((y[1], second));
            Array.ForEach(y, v => v.Dispose());
        }
        return (_x.Gradient!.ToDoubles(), _weight.Gradient!.ToDoubles());
    }

    private Variable[] Twice(Variable x) => Recompute.Apply([x], (inputs, run) => Region(inputs[0], run));

    [Theory]
    [InlineData(true)]
    [InlineData(false)]
    public void Gradients_are_the_bits_of_one_run(bool wantsFirst)
    {
        (double[] dx, double[] dWeight) = Gradients(x => Region(x, RegionRun.Forward), wantsFirst);
        (double[] dxTwice, double[] dWeightTwice) = Gradients(Twice, wantsFirst);
        Assert.Equal(dx, dxTwice);
        Assert.Equal(dWeight, dWeightTwice);
    }

    [Fact]
    public void Regions_may_be_nested()
    {
        (double[] dx, double[] dWeight) = Gradients(x => Region(x, RegionRun.Forward));
        (double[] dxNested, double[] dWeightNested) = Gradients(x => Recompute.Apply([x], (inputs, _) => Twice(inputs[0])));
        Assert.Equal(dx, dxNested);
        Assert.Equal(dWeight, dWeightNested);
    }

    [Fact]
    public void Between_forward_and_backward_only_inputs_and_outputs_are_alive()
    {
        using var tape = new Tape();
        Variable start = tape.Constant(Random([Rows, Width], 5));
        long before = _device.Memory.LiveCount;
        Variable[] y = Twice(start);
        Assert.Equal(before + 2, _device.Memory.LiveCount); // the outputs; the input was there
        start.Dispose();
        Assert.Equal(before + 2, _device.Memory.LiveCount); // kept for the replay
        using Tensor dy = Random([Rows, Width], 3);
        y[0].Backward(dy);
        Assert.Equal(before + 3, _device.Memory.LiveCount); // the outputs, dy and the weight's gradient; the input is gone
        Assert.NotNull(_weight.Gradient);
    }

    [Fact]
    public void Parameters_are_reached_where_no_input_wants_a_gradient()
    {
        using Variable constant = Variable.Constant(Random([Rows, Width], 5));
        using Tensor dy = Random([Rows, Width], 3);
        double[] Once(Func<Variable[]> region)
        {
            ZeroGradients();
            Variable[] y = region();
            y[0].Backward(dy);
            Array.ForEach(y, v => v.Dispose());
            return _weight.Gradient!.ToDoubles();
        }
        Assert.Equal(Once(() => Region(constant, RegionRun.Forward)), Once(() => Twice(constant)));
    }

    /// <summary>A parameter of two regions is complete when the first of them, the last to run backwards, has run; the region's other uses of it do not count one by one.</summary>
    [Fact]
    public void Parameters_are_complete_once_after_their_last_region()
    {
        var seen = new List<double[]>();
        _weight.GradientCompleted = w => seen.Add(w.Gradient!.ToDoubles());
        (_, double[] dWeight) = Gradients(x =>
        {
            Variable[] inner = Twice(x), outer = Twice(inner[1]);
            Array.ForEach(inner, v => v.Dispose());
            return outer;
        });
        _weight.GradientCompleted = null;
        Assert.Equal(dWeight, Assert.Single(seen));
    }

    [Fact]
    public void A_tape_without_gradients_saves_nothing()
    {
        using Tape tape = Tape.WithoutGradients();
        Variable x = tape.Constant(Random([Rows, Width], 5));
        long before = _device.Memory.LiveCount;
        Variable[] y = Twice(x);
        Assert.Equal((0, false, before + 2), (tape.Count, y[0].RequiresGradient, _device.Memory.LiveCount));
    }

    [Fact]
    public void What_is_kept_is_freed_with_the_function_even_if_it_never_runs_backwards()
    {
        var kept = new Kept();
        using (var tape = new Tape())
        {
            Recompute.Apply([tape.Constant(Random([Rows, Width], 5))], (inputs, run) => Region(inputs[0], run), kept);
            Assert.False(kept.IsDisposed);
        }
        Assert.True(kept.IsDisposed);
    }

    [Theory]
    [InlineData(RegionRun.Forward)]
    [InlineData(RegionRun.Replay)]
    public void An_error_in_either_run_comes_out_as_it_was_and_leaves_nothing(RegionRun failing)
    {
        var kept = new Kept();
        using Tensor dy = Random([Rows, Width], 3);
        using (var tape = new Tape())
        {
            Variable x = tape.Constant(Random([Rows, Width], 5));
            string message = Assert.Throws<InvalidOperationException>(() => Recompute.Apply([x], FailIn, kept)[0].Backward(dy)).Message;
            Assert.Equal("as designed", message);
        }
        Assert.True(kept.IsDisposed);
        Assert.Equal(_baseline + 1, _device.Memory.LiveCount); // dy

        Variable[] FailIn(Variable[] inputs, RegionRun run)
        {
            Variable[] outputs = Region(inputs[0], run);
            return run == failing ? throw new InvalidOperationException("as designed") : outputs;
        }
    }

    private sealed class Kept : IDisposable
    {
        public bool IsDisposed { get; private set; }

        public void Dispose() => IsDisposed = true;
    }
}
