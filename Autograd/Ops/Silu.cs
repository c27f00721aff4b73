using LaspNative.Runtime;

namespace LaspNative.Autograd;

/// <summary>
/// y = x s(x)       s(x) = 1 / (1 + exp(-x))
/// dx = dy s(x) (1 + x (1 - s(x)))
/// </summary>
public sealed class Silu : Function
{
    private readonly Tensor _x;

    private Silu(Variable x) => _x = Save(x.Value);

    public static Variable Apply(Variable x)
    {
        ArgumentNullException.ThrowIfNull(x);
        Tensor y = Tensor.Empty(x.Shape, x.DType, x.Device);
        x.Device.Backend.Silu(x.Value, y);
        return new Silu(x).Record([x], y);
    }

    protected internal override void Backward(BackwardPass pass)
    {
        Tensor dx = pass.Empty(0);
        _x.Device.Backend.SiluBackward(_x, pass.RequiredOutput(0), dx);
        pass.Give(0, dx);
    }
}
