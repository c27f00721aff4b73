using LaspNative.Runtime;

namespace LaspNative.Autograd;

/// <summary>
/// The feature map and the rotation of queries or keys x [B, N, H, D] in one pass, with R as in <see cref="Rope"/>:
/// y = R silu(x)        dx = silu'(x) R^-1 dy
/// Saves x; silu is recomputed.
/// </summary>
public sealed class SiluRope : Function
{
    private readonly Tensor _x;
    private readonly IReadOnlyList<PositionRun> _runs;
    private readonly double _theta;

    private SiluRope(Variable x, IReadOnlyList<PositionRun> runs, double theta)
    {
        _x = Save(x.Value);
        (_runs, _theta) = (runs, theta);
    }

    /// <param name="runs">The tokens' positions where they start anew, as those of packed documents do (then B = 1).</param>
    public static Variable Apply(Variable x, IReadOnlyList<PositionRun> runs, double theta)
    {
        ArgumentNullException.ThrowIfNull(x);
        ArgumentNullException.ThrowIfNull(runs);
        PositionRuns.Require(runs, x.Shape);
        Tensor y = Tensor.Empty(x.Shape, x.DType, x.Device);
        PositionRuns.ForEach(runs, x.Value, null, y, (from, _, to, position) => from.Device.Backend.SiluRope(from, position, theta, to));
        return new SiluRope(x, runs, theta).Record([x], y);
    }

    protected internal override void Backward(BackwardPass pass)
    {
        Tensor dx = pass.Empty(0);
        PositionRuns.ForEach(_runs, _x, pass.RequiredOutput(0), dx, (x, dy, to, position) => x.Device.Backend.SiluRopeBackward(x, dy!, position, _theta, to));
        pass.Give(0, dx);
    }
}
