using LaspNative.Runtime;

namespace LaspNative.Autograd;

/// <summary>
/// Rotary position embedding of x [B, N, H, D]: the pair (x[d], x[d + D/2]) of token n turns by (firstPosition + n) theta^(-2d/D).
/// A rotation's transpose is its inverse, so backward turns dy back and nothing is saved.
/// </summary>
public sealed class Rope : Function
{
    private readonly long _firstPosition;
    private readonly double _theta;

    private Rope(long firstPosition, double theta)
    {
        _firstPosition = firstPosition;
        _theta = theta;
    }

    /// <param name="firstPosition">Global position of the first token: where this rank's chunk starts.</param>
    public static Variable Apply(Variable x, long firstPosition, double theta)
    {
        ArgumentNullException.ThrowIfNull(x);
        if (x.Shape.Rank != 4 || x.Shape[-1] % 2 != 0) throw new LaspException($"rotary embedding takes [B, N, H, D] with an even D, got {x.Shape}");
        Tensor y = Tensor.Empty(x.Shape, x.DType, x.Device);
        x.Device.Backend.Rope(x.Value, firstPosition, theta, inverse: false, y);
        return new Rope(firstPosition, theta).Record([x], y);
    }

    protected internal override void Backward(BackwardPass pass)
    {
        Tensor dx = pass.Empty(0);
        dx.Device.Backend.Rope(pass.RequiredOutput(0), _firstPosition, _theta, inverse: true, dx);
        pass.Give(0, dx);
    }
}
