using LaspNative.Runtime;

namespace LaspNative.Autograd;

/// <summary>
/// y = x s(x)       s(x) = 1 / (1 + exp(-x))
/// dx = dy s(x) (1 + x (1 - s(x)))
/// Saves x; y is made again for its readers in backward. dx takes x's place.
/// </summary>
public sealed class Silu : Function
{
    private readonly SavedValue _x;

    private Silu(Variable x) => _x = Save(x);

    public static Variable Apply(Variable x)
    {
        ArgumentNullException.ThrowIfNull(x);
        var function = new Silu(x);
        return function.MakeAgain(function.Record([x], Make(x.Value)));
    }

    protected internal override Tensor MakeOutput() => Make(_x.Tensor);

    private static Tensor Make(Tensor x)
    {
        Tensor y = Tensor.Empty(x.Shape, x.DType, x.Device);
        x.Device.Backend.Silu(x, y);
        return y;
    }

    protected internal override void Backward(BackwardPass pass)
    {
        Tensor dx = BackwardPass.InPlaceOf(_x);
        dx.Device.Backend.SiluBackward(_x.Tensor, pass.RequiredOutput(0), dx);
        pass.Give(0, dx);
    }
}
