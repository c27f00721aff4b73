using LaspNative.Runtime;

namespace LaspNative.Autograd;

/// <summary>
/// y = x under another shape        dx = dy under x's shape
/// Neither direction moves a byte: value and gradient are views. What can make x again in backward makes y again too.
/// </summary>
public sealed class Reshape : Function
{
    private readonly Shape _shape;

    private Reshape(Shape shape) => _shape = shape;

    public static Variable Apply(Variable x, Shape shape)
    {
        ArgumentNullException.ThrowIfNull(x);
        var function = new Reshape(x.Shape);
        SavedValue? source = x.Source is null ? null : function.Save(x);
        Variable y = function.Record([x], x.Value.View(shape));
        return source is null ? y : MakeAgain(y, () => source.Tensor.View(shape));
    }

    protected internal override void Backward(BackwardPass pass) => pass.Give(0, pass.RequiredOutput(0).View(_shape));
}
