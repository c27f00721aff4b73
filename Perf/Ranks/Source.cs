using LaspNative.Autograd;
using LaspNative.Runtime;

namespace LaspNative.Perf;

/// <summary>
/// Stands for the layer before: hands out a tensor and takes its gradient in the tensor's own type, as a projection would. (A leaf would collect the gradient in fp32, which is another pass.)
/// </summary>
internal sealed class Source : Function, IDisposable
{
    private Source() { }

    /// <summary>What came back; null before the backward pass.</summary>
    public Tensor? Gradient { get; private set; }

    /// <param name="trigger">Any leaf that wants a gradient; it is given none.</param>
    public static (Variable Variable, Source Source) Of(Tensor value, Variable trigger)
    {
        var source = new Source();
        return (source.Record([trigger], value.Share()), source);
    }

    protected override void Backward(BackwardPass pass) => Gradient = pass.Output(0)?.Share();

    public void Dispose() => Gradient?.Dispose();
}
