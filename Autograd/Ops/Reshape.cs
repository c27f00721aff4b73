using LaspNative.Runtime;

namespace LaspNative.Autograd;

/// <summary>
/// y = x under another shape        dx = dy under x's shape
/// Neither direction moves a byte: value and gradient are views. What can make x again in backward makes y again too.
/// </summary>
public sealed class Reshape : Function
{
    private readonly Shape _from;
    private readonly Shape _to;
    private readonly SavedValue? _source; // what can be made again

    private Reshape(Variable x, Shape to)
    {
        (_from, _to) = (x.Shape, to);
        _source = x.Source is null ? null : Save(x);
    }

    public static Variable Apply(Variable x, Shape shape)
    {
        ArgumentNullException.ThrowIfNull(x);
        Tensor view = x.Value.View(shape);
        var function = new Reshape(x, shape);
        Variable y = function.Record([x], view);
        return function._source is null ? y : function.MakeAgain(y);
    }

    protected internal override Tensor MakeOutput() => _source!.Tensor.View(_to);

    protected internal override void Backward(BackwardPass pass) => pass.Give(0, pass.RequiredOutput(0).View(_from));
}
