using LaspNative.Runtime;

namespace LaspNative.Autograd;

/// <summary>
/// Rotary position embedding of x [B, N, H, D]: the pair (x[d], x[d + D/2]) of a token at position p turns by p theta^(-2d/D).
/// A rotation's transpose is its inverse, so backward turns dy back and nothing is saved.
/// </summary>
public sealed class Rope : Function
{
    private readonly IReadOnlyList<PositionRun> _runs;
    private readonly double _theta;

    private Rope(IReadOnlyList<PositionRun> runs, double theta)
    {
        _runs = runs;
        _theta = theta;
    }

    /// <param name="firstPosition">Global position of the first token: where this rank's chunk starts.</param>
    public static Variable Apply(Variable x, long firstPosition, double theta)
    {
        ArgumentNullException.ThrowIfNull(x);
        return Apply(x, [new PositionRun(x.Shape.Rank > 1 ? x.Shape[1] : 0, firstPosition)], theta);
    }

    /// <param name="runs">The tokens' positions where they start anew, as those of packed documents do (then B = 1).</param>
    public static Variable Apply(Variable x, IReadOnlyList<PositionRun> runs, double theta)
    {
        ArgumentNullException.ThrowIfNull(x);
        ArgumentNullException.ThrowIfNull(runs);
        PositionRuns.Require(runs, x.Shape);
        Tensor y = Tensor.Empty(x.Shape, x.DType, x.Device);
        Rotate(x.Value, runs, theta, inverse: false, y);
        return new Rope(runs, theta).Record([x], y);
    }

    protected internal override void Backward(BackwardPass pass)
    {
        Tensor dx = pass.Empty(0);
        Rotate(pass.RequiredOutput(0), _runs, _theta, inverse: true, dx);
        pass.Give(0, dx);
    }

    private static void Rotate(Tensor x, IReadOnlyList<PositionRun> runs, double theta, bool inverse, Tensor y) =>
        PositionRuns.ForEach(runs, x, null, y, (from, _, to, position) => from.Device.Backend.Rope(from, position, theta, inverse, to));
}
