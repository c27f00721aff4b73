using LaspNative.Runtime;

namespace LaspNative.Autograd;

/// <summary>
/// y = x under another shape        dx = dy under x's shape
/// Neither direction moves a byte: value and gradient are views.
/// </summary>
public sealed class Reshape : Function
{
    private readonly Shape _shape;

    private Reshape(Shape shape) => _shape = shape;

    public static Variable Apply(Variable x, Shape shape)
    {
        ArgumentNullException.ThrowIfNull(x);
        return new Reshape(x.Shape).Record([x], x.Value.View(shape));
    }

    protected internal override void Backward(BackwardPass pass) => pass.Give(0, pass.RequiredOutput(0).View(_shape));
}
