using LaspNative.Runtime;

namespace LaspNative.Autograd;

/// <summary>
/// y = x rounded (or widened) to another floating-point type        dx = dy in x's type
/// </summary>
public sealed class Cast : Function
{
    private Cast() { }

    public static Variable Apply(Variable x, DType dtype)
    {
        ArgumentNullException.ThrowIfNull(x);
        if (!x.DType.IsFloat() || !dtype.IsFloat()) throw new LaspException($"a cast goes between floating-point types, got {x.DType} to {dtype}");
        Tensor y = Tensor.Empty(x.Shape, dtype, x.Device);
        x.Device.Backend.Cast(x.Value, y);
        return new Cast().Record([x], y);
    }

    protected internal override void Backward(BackwardPass pass)
    {
        Tensor dx = pass.Empty(0);
        dx.Device.Backend.Cast(pass.RequiredOutput(0), dx);
        pass.Give(0, dx);
    }
}
