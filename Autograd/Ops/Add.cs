using LaspNative.Runtime;

namespace LaspNative.Autograd;

/// <summary>
/// y = a + b        da = dy, db = dy
/// The gradient is passed on as it is: both inputs share its memory until one of them must be written.
/// </summary>
public sealed class Add : Function
{
    private Add() { }

    public static Variable Apply(Variable a, Variable b)
    {
        ArgumentNullException.ThrowIfNull(a);
        ArgumentNullException.ThrowIfNull(b);
        if (a.Shape != b.Shape || a.DType != b.DType)
            throw new LaspException($"a sum takes two tensors of one shape and type, got {a.DType} {a.Shape} and {b.DType} {b.Shape}");
        Tensor y = Tensor.Empty(a.Shape, a.DType, a.Device);
        a.Device.Backend.Add(a.Value, b.Value, y);
        return new Add().Record([a, b], y);
    }

    protected internal override void Backward(BackwardPass pass)
    {
        Tensor dy = pass.RequiredOutput(0);
        pass.Give(0, dy.Share());
        pass.Give(1, dy.Share());
    }
}
