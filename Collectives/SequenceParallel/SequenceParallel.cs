using LaspNative.Autograd;
using LaspNative.Runtime;

namespace LaspNative.Collectives;

/// <summary>
/// A way to compute linear attention over a sequence whose chunks lie on the ranks of a group (a chunk is an affine map of the state: S_out = A S_in + M).
/// A strategy is one file: its equations, its wire pattern, its bytes. It makes an <see cref="AttentionExchange"/> per call.
/// </summary>
public abstract class SequenceParallel
{
    /// <summary>The name used on the command line and in reports.</summary>
    public abstract string Name { get; }

    /// <summary>Phase one of the forward pass: forms what this rank has to tell and starts the message. Waits for nothing. Takes k and v over.</summary>
    internal abstract AttentionExchange Begin(AttentionCall call, SavedValue k, SavedValue v, Tensor? decay, Tensor? initialState);

    /// <summary>Bytes that the calling rank sends for one layer, forward and backward, by the strategy's formula.</summary>
    public abstract (long Forward, long Backward) PredictedBytesSent(AttentionCall call, Tensor? decay);

    /// <summary>The strategies that can be named.</summary>
    public static IReadOnlyList<SequenceParallel> All { get; } = [Lasp1.Default, Lasp2.Default, ZeCo.Default, Ring.Default, Ulysses.Default, Serial.Default];

    /// <summary>The strategy of a name; throws <see cref="LaspException"/> listing the known ones.</summary>
    public static SequenceParallel Parse(string name) =>
        All.FirstOrDefault(s => s.Name == name) ?? throw new LaspException($"unknown strategy '{name}'; available: {string.Join(", ", All.Select(s => s.Name))}");
}

/// <summary>
/// One attention call in flight, forward and backward. The four phases run in this order on every rank:
/// Begin (the constructor) - Finish - BackwardFinish - BackwardBegin; what lies between two phases hides the message started in the first.
/// </summary>
internal abstract class AttentionExchange : CallInFlight
{
    private readonly SavedValue _k;
    private readonly SavedValue _v;

    protected AttentionExchange(AttentionCall call, SavedValue k, SavedValue v, Tensor? decay, Tensor? initialState)
    {
        Call = call;
        _k = Hold(k);
        _v = Hold(v);
        Decay = decay is null ? null : Hold(decay.Share());
        InitialState = initialState is null ? null : Hold(initialState.Share());
        Runs = Hold(new LocalRuns(call, k, v, Decay, InitialState));
    }

    public AttentionCall Call { get; }

    /// <summary>Whether the last phase will be asked for the gradient of a decay per token or channel.</summary>
    public bool LearnsDecay { get; set; }

    /// <summary>What <see cref="BackwardFinish"/> made besides dq, for an exchange that waits for nobody: then the last phase has only the initial states left.</summary>
    public KeySideGradients? Made { get; protected set; }

    /// <summary>The rank's own chunk, by document pieces.</summary>
    protected LocalRuns Runs { get; }

    /// <summary>[B, C, Hk, D]. Borrowed.</summary>
    protected Tensor K => _k.Tensor;

    /// <summary>[B, C, Hk, E]. Borrowed.</summary>
    protected Tensor V => _v.Tensor;

    /// <summary>[H], [B, C, H], [B, C, H, D] or none.</summary>
    protected Tensor? Decay { get; }

    /// <summary>[B or n, H, D, E], read where a document starts, or none.</summary>
    protected Tensor? InitialState { get; }

    protected IBackend Backend => Call.Device.Backend;

    /// <summary>Between the passes: keys and values that can be made again wait for backward without memory.</summary>
    public void Rest()
    {
        _k.Rest();
        _v.Rest();
    }

    /// <summary>Waits for the message and writes o [B, C, H, E], and where wanted the final states of the documents that end on this rank (zeros for the others).</summary>
    public abstract void Finish(Tensor q, Tensor o, Tensor? finalState);

    /// <summary>
    /// Forms this rank's part of the state gradient, starts its message, and writes dq. q and dO are kept for the last phase.
    /// <paramref name="continues"/> is false when no input of Begin wants a gradient: then there is no message and no last phase.
    /// </summary>
    public abstract void BackwardFinish(Tensor q, Tensor dO, Tensor? dFinalState, Tensor dq, bool continues);

    /// <summary>Waits for the message and writes dk, dv, and where wanted this rank's part of dDecay (shaped like the decay) and of dInitialState.</summary>
    public abstract void BackwardBegin(Tensor dk, Tensor dv, Tensor? dDecay, Tensor? dInitialState);
}

/// <summary>dk, dv and dDecay of a rank's chunk.</summary>
internal sealed record KeySideGradients(Tensor Key, Tensor Value, Tensor Decay) : IDisposable
{
    public void Dispose()
    {
        Key.Dispose();
        Value.Dispose();
        Decay.Dispose();
    }
}
