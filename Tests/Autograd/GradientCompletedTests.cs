using LaspNative.Autograd;
using LaspNative.Runtime;
using Xunit;

namespace LaspNative.Tests.Autograd;

/// <summary>A parameter says when its gradient is complete: once per pass, after its last use, while the rest of the pass is still to run.</summary>
public class GradientCompletedTests
{
    private static Variable Parameter(Device device, float value) => Variable.Parameter(Tensor.FromSpan([value], [1, 1], device));

    [Fact]
    public void Each_parameter_is_complete_after_its_last_use_and_before_the_pass_ends()
    {
        using Device device = Device.Open("cpu:1");
        using Variable tied = Parameter(device, 2), inner = Parameter(device, 3), outer = Parameter(device, 5);
        var order = new List<string>();
        tied.GradientCompleted = v => order.Add($"tied {v.Gradient!.ToDoubles()[0]}");
        inner.GradientCompleted = v => order.Add($"inner {v.Gradient!.ToDoubles()[0]}");
        outer.GradientCompleted = v => order.Add($"outer {v.Gradient!.ToDoubles()[0]}, inner {(inner.Gradient is null ? "none" : "there")}");
        for (int pass = 0; pass < 2; pass++)
        {
            using var tape = new Tape();
            Variable x = tape.Constant(Tensor.FromSpan([1f], [1, 1], device));
            // y = x tied inner tied outer = 60, so dy/dtied = 2 * 2 * 15.
            Variable y = Linear.Apply(Linear.Apply(Linear.Apply(Linear.Apply(x, tied), inner), tied), outer);
            Assert.Equal(60, y.Value.ToDoubles()[0]);
            y.Backward();
            Assert.Equal(["outer 12, inner none", "inner 20", "tied 60"], order);
            order.Clear();
            foreach (Variable v in (Variable[])[tied, inner, outer]) v.ZeroGradient();
        }
    }

    /// <summary>y = x w w, with a tape for each product that lives in backward only.</summary>
    private sealed class TwoProducts(Variable w) : Function
    {
        public Variable Apply(Variable x) => Record([x], Tensor.Zeros([1, 1], DType.F32, x.Device));

        protected internal override void Backward(BackwardPass pass)
        {
            for (int i = 0; i < 2; i++)
            {
                using var tape = new Tape();
                Variable part = tape.Constant(Tensor.FromSpan([1f + i], [1, 1], w.Device));
                Linear.Apply(part, w).Backward(pass.RequiredOutput(0));
            }
        }
    }

    [Fact]
    public void A_function_with_tapes_of_its_own_completes_its_parameters_once_when_all_of_it_has_run()
    {
        using Device device = Device.Open("cpu:1");
        using Variable x = Parameter(device, 1), w = Parameter(device, 2);
        var order = new List<string>();
        w.GradientCompleted = v => order.Add($"w {v.Gradient!.ToDoubles()[0]}");
        x.GradientCompleted = v => order.Add("x");
        new TwoProducts(w).Apply(x).Backward();
        Assert.Equal(["w 3", "x"], order);
    }

    [Fact]
    public void A_tape_that_does_not_run_backwards_completes_nothing_and_the_next_one_does()
    {
        using Device device = Device.Open("cpu:1");
        using Variable w = Parameter(device, 2);
        int completed = 0;
        w.GradientCompleted = _ => completed++;
        using (var tape = new Tape()) Linear.Apply(tape.Constant(Tensor.FromSpan([1f], [1, 1], device)), w);
        Assert.Equal(0, completed);
        using (var tape = new Tape()) Linear.Apply(tape.Constant(Tensor.FromSpan([1f], [1, 1], device)), w).Backward();
        Assert.Equal(1, completed);
    }

    [Fact]
    public void Backward_runs_an_action_at_its_point_of_the_tape_and_drops_it_where_there_is_no_tape()
    {
        using Device device = Device.Open("cpu:1");
        using Variable a = Parameter(device, 2), b = Parameter(device, 3);
        var order = new List<string>();
        a.GradientCompleted = _ => order.Add("a");
        b.GradientCompleted = _ => order.Add("b");
        using (var tape = new Tape())
        {
            Variable x = tape.Constant(Tensor.FromSpan([1f], [1, 1], device));
            Tape.WhenBackward(x, () => order.Add("start"));
            Variable y = Linear.Apply(x, a);
            Tape.WhenBackward(y, () => order.Add("between"));
            Linear.Apply(y, b).Backward();
        }
        Assert.Equal(["b", "between", "a", "start"], order);
        Tape.WhenBackward(a, () => order.Add("never"));
        using (var tape = new Tape()) Tape.WhenBackward(tape.Constant(Tensor.FromSpan([1f], [1, 1], device)), () => order.Add("never"));
        Assert.Equal(4, order.Count);
    }

    /// <summary>
    /// table -> norm -> a, b -> c, with a and b postponed: the table is complete before them, though they read the norm that its gradient has gone through. All gradients are the bits of a pass that postpones nothing,
    /// and a pass that fails in between leaves nothing behind.
    /// </summary>
    [Theory]
    [InlineData(CheapValues.MadeAgain)]
    [InlineData(CheapValues.MadeForEach)]
    [InlineData(CheapValues.Kept)]
    public void Postponed_parameters_are_complete_last_with_the_same_bits(CheapValues cheapValues)
    {
        using Device device = Device.Open("cpu:1");
        var random = new Random(3);
        Variable Matrix() => Variable.Parameter(Tensor.FromSpan([.. Enumerable.Range(0, 15 * 15).Select(_ => random.NextSingle() - 0.5f)], [15, 15], device));
        using Variable table = Matrix(), a = Matrix(), b = Matrix(), c = Matrix();
        (string Name, Variable Variable)[] parameters = [(nameof(table), table), (nameof(a), a), (nameof(b), b), (nameof(c), c)];
        var order = new List<string>();
        foreach ((string name, Variable variable) in parameters) variable.GradientCompleted = _ => order.Add(name);

        double[][] Pass(bool postpones)
        {
            order.Clear();
            using var tape = new Tape { CheapValues = cheapValues };
            using Tensor dy = Tensor.FromSpan([.. Enumerable.Range(0, 60).Select(i => MathF.Sin(i))], [4, 15], device);
            (Variable sum, Variable normed) = AddRmsNorm.Apply(Embedding.Apply(tape.Constant(Tensor.FromSpan([3, 1, 3, 14], [4], device)), table), null, null, 1e-5);
            using Variable y = Add.Apply(Linear.Apply(normed, a), Linear.Apply(normed, b));
            sum.Dispose();
            normed.Dispose();
            if (postpones) Tape.PostponeParameters(y);
            Linear.Apply(y, c).Backward(dy);
            return [.. parameters.Select(p => p.Variable.DetachGradient()!.ToDoubles())];
        }

        double[][] expected = Pass(postpones: false);
        Assert.Equal(["c", "b", "a", "table"], order);
        Assert.Equal(expected, Pass(postpones: true));
        Assert.Equal(["c", "table", "b", "a"], order);
        long before = device.Memory.Current;
        table.GradientCompleted = _ => throw new LaspException("enough");
        Assert.Throws<LaspException>(() => Pass(postpones: true));
        foreach ((_, Variable variable) in parameters) variable.ZeroGradient();
        Assert.Equal(before, device.Memory.Current);
    }

    [Fact]
    public void A_gradient_is_taken_and_put_back_and_a_stranger_is_refused()
    {
        using Device device = Device.Open("cpu:1");
        using Variable w = Variable.Parameter(Tensor.FromSpan([1f, 2f], [2, 1], device));
        Assert.Null(w.DetachGradient());
        w.PutGradient(Tensor.FromSpan([3f, 4f], [2], device));
        Assert.Equal(new Shape([2, 1]), w.Gradient!.Shape);
        using Tensor taken = w.DetachGradient()!;
        Assert.Equal([3.0, 4.0], taken.ToDoubles());
        Assert.Null(w.Gradient);
        using Tensor narrow = Tensor.FromSpan([1f], [1], device);
        Assert.Throws<LaspException>(() => w.PutGradient(narrow));
        Assert.Throws<LaspException>(() => w.ReplaceValue(narrow));
    }
}
