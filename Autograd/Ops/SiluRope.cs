using LaspNative.Runtime;

namespace LaspNative.Autograd;

/// <summary>
/// The feature map and the rotation of queries or keys x [B, N, H, D] in one pass, with R as in <see cref="Rope"/>:
/// y = R silu(x)        dx = silu'(x) R^-1 dy
/// Saves x; y is made again for its readers in backward. dx takes x's place.
/// </summary>
public sealed class SiluRope : Function
{
    private readonly SavedValue _x;
    private readonly IReadOnlyList<PositionRun> _runs;
    private readonly double _theta;

    private SiluRope(Variable x, IReadOnlyList<PositionRun> runs, double theta)
    {
        _x = Save(x);
        (_runs, _theta) = (runs, theta);
    }

    /// <param name="runs">The tokens' positions where they start anew, as those of packed documents do (then B = 1).</param>
    public static Variable Apply(Variable x, IReadOnlyList<PositionRun> runs, double theta)
    {
        ArgumentNullException.ThrowIfNull(x);
        ArgumentNullException.ThrowIfNull(runs);
        PositionRuns.Require(runs, x.Shape);
        var function = new SiluRope(x, runs, theta);
        return function.MakeAgain(function.Record([x], function.Make(x.Value)));
    }

    protected internal override Tensor MakeOutput() => Make(_x.Tensor);

    private Tensor Make(Tensor x)
    {
        Tensor y = Tensor.Empty(x.Shape, x.DType, x.Device);
        PositionRuns.ForEach(_runs, x, null, y, (from, _, to, position) => from.Device.Backend.SiluRope(from, position, _theta, to));
        return y;
    }

    protected internal override void Backward(BackwardPass pass)
    {
        Tensor dx = BackwardPass.InPlaceOf(_x);
        PositionRuns.ForEach(_runs, _x.Tensor, pass.RequiredOutput(0), dx, (x, dy, to, position) => x.Device.Backend.SiluRopeBackward(x, dy!, position, _theta, to));
        pass.Give(0, dx);
    }
}
