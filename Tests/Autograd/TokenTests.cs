using LaspNative.Autograd;
using LaspNative.Runtime;
using Xunit;

namespace LaspNative.Tests.Autograd;

/// <summary>Tokens order two functions that share an exchange: the later one's backward runs first, what lies between them in the middle.</summary>
public sealed class TokenTests
{
    private readonly List<string> _log = [];

    [Fact]
    public void Backward_runs_second_then_between_then_first()
    {
        using Device device = Device.Open("cpu:1");
        using Variable x = Variable.Parameter(Tensor.FromSpan([1.0], [1], device));
        using (Variable token = new First(_log).Begin(x))
        using (Variable between = new Between(_log).Apply(x))
        using (Variable y = new Second(_log, reaches: true).Finish(between, token)) y.Backward();
        Assert.Equal(["second", "between", "first", "first released"], _log);
        Assert.Equal([2.0], x.Gradient!.ToDoubles());
        x.ZeroGradient();
        Assert.Equal(1, device.Memory.LiveCount);
    }

    [Fact]
    public void A_token_that_was_not_reached_runs_nothing()
    {
        using Device device = Device.Open("cpu:1");
        using Variable x = Variable.Parameter(Tensor.FromSpan([1.0], [1], device));
        using (Variable token = new First(_log).Begin(x))
        using (Variable y = new Second(_log, reaches: false).Finish(x, token)) y.Backward();
        Assert.Equal(["second", "first released"], _log);
    }

    [Fact]
    public void A_token_has_no_value()
    {
        using Device device = Device.Open("cpu:1");
        using Variable x = Variable.Parameter(Tensor.FromSpan([1.0], [1], device));
        using Variable token = new First(_log).Begin(x);
        Assert.Throws<InvalidOperationException>(() => token.Value);
    }

    private sealed class First(List<string> log) : Function
    {
        public Variable Begin(Variable x) => RecordToken([x]);

        protected internal override void Backward(BackwardPass pass)
        {
            log.Add("first");
            Tensor dx = pass.Empty(0);
            dx.Device.Backend.Fill(1, dx);
            pass.Give(0, dx);
        }

        protected internal override void Release()
        {
            base.Release();
            log.Add("first released");
        }
    }

    private sealed class Between(List<string> log) : Function
    {
        public Variable Apply(Variable x) => Record([x], x.Value.Share());

        protected internal override void Backward(BackwardPass pass)
        {
            log.Add("between");
            pass.Give(0, pass.RequiredOutput(0).Share());
        }
    }

    private sealed class Second(List<string> log, bool reaches) : Function
    {
        public Variable Finish(Variable x, Variable token) => Record([x, token], x.Value.Share());

        protected internal override void Backward(BackwardPass pass)
        {
            log.Add("second");
            pass.Give(0, pass.RequiredOutput(0).Share());
            if (reaches) pass.Reach(1);
        }
    }
}
