using LaspNative.Runtime;

namespace LaspNative.Collectives;

/// <summary>
/// A way to compute softmax attention over a sequence whose chunks lie on the ranks of a group.
/// A strategy is one file: its equations, its wire pattern, its bytes. It makes a <see cref="SoftmaxExchange"/> per call.
/// </summary>
public abstract class SoftmaxParallel
{
    /// <summary>The name used on the command line and in reports.</summary>
    public abstract string Name { get; }

    /// <summary>Bytes that the calling rank sends for one layer, forward and backward, by the strategy's formula; 0 in a group of one.</summary>
    public abstract (long Forward, long Backward) PredictedBytesSent(SoftmaxCall call);

    /// <summary>The strategies that can be named.</summary>
    public static IReadOnlyList<SoftmaxParallel> All { get; } =
        [SoftmaxAllGather.Default, SoftmaxAllGather.BalancedQueries, SoftmaxRing.Default, SoftmaxZigzag.Default, SoftmaxUlysses.Default, SoftmaxSerial.Default];

    /// <summary>The strategy of a name; throws <see cref="LaspException"/> listing the known ones.</summary>
    public static SoftmaxParallel Parse(string name) =>
        All.FirstOrDefault(s => s.Name == name) ?? throw new LaspException($"unknown softmax strategy '{name}'; available: {string.Join(", ", All.Select(s => s.Name))}");

    /// <summary>Phase one of the forward pass: starts the message of keys and values. Waits for nothing. A group of one has no messages: there every strategy is the definition.</summary>
    internal SoftmaxExchange Begin(SoftmaxCall call, Tensor k, Tensor v) =>
        call.Group.Size == 1 ? new SoftmaxSerial.Exchange(call, k, v) : Start(call, k, v);

    /// <summary>As <see cref="Begin"/>, for two ranks or more.</summary>
    private protected abstract SoftmaxExchange Start(SoftmaxCall call, Tensor k, Tensor v);
}

/// <summary>
/// One softmax-attention call in flight, forward and backward. The four phases run in this order on every rank:
/// Begin (the constructor) - Finish - BackwardFinish - BackwardBegin; what lies between two phases hides the message started in the first.
/// </summary>
internal abstract class SoftmaxExchange(SoftmaxCall call) : CallInFlight
{
    public SoftmaxCall Call { get; } = call;

    protected IBackend Backend => Call.Device.Backend;

    /// <summary>Waits for keys and values and computes o [B, C, H, E]. Keeps what backward needs.</summary>
    public abstract Tensor Finish(Tensor q);

    /// <summary>
    /// Computes dq [B, C, H, D] and this rank's parts of dk and dv, and starts their message.
    /// <paramref name="continues"/> is false when neither k nor v wants a gradient: then there is no such message and no last phase.
    /// </summary>
    public abstract Tensor BackwardFinish(Tensor dO, bool continues);

    /// <summary>Waits for dk [B, C, Hk, D] and dv [B, C, Hk, E].</summary>
    public abstract (Tensor Key, Tensor Value) BackwardBegin();

    /// <summary>Memory for sums of a gradient over ranks: zeros of fp32 (fp64).</summary>
    protected Tensor GradientSum(Shape shape) => Tensor.Zeros(shape, Call.DType.Accumulator(), Call.Device);
}
