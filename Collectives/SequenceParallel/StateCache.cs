using LaspNative.Runtime;

namespace LaspNative.Collectives;

/// <summary>
/// LASP's KV-state cache (arXiv 2404.02882, section 3.5): what the other ranks told one linear-attention call, kept so that the same call can be made again without a message.
/// The first call that carries it leaves here the state P_t that entered the rank, [B, H, D, E] (without a mask: the state of the whole sequence), and the ranks' factors A where those
/// travelled; the next one takes them and sends nothing forward. Backward sends as always. Strategies whose messages are no states (ring, ulysses), and a causal group of one, leave nothing.
/// All ranks of a group must carry one, or none.
/// </summary>
public sealed class StateCache : IDisposable
{
    private Tensor? _entering;
    private Tensor? _factors;

    /// <summary>Whether a call has left its states here and no other has taken them.</summary>
    public bool IsFilled => _entering is not null;

    /// <summary>Bytes kept; booked as <see cref="MemoryCategory.States"/>.</summary>
    public long Bytes => (_entering?.Bytes ?? 0) + (_factors?.Bytes ?? 0);

    internal void Fill(Tensor entering, Tensor? factors = null)
    {
        Dispose();
        (_entering, _factors) = (entering.Share(), factors?.Share());
    }

    /// <summary>Hands over what is kept.</summary>
    internal (Tensor Entering, Tensor? Factors) Take()
    {
        Tensor entering = _entering ?? throw new InvalidOperationException("nothing is kept here to take");
        Tensor? factors = _factors;
        (_entering, _factors) = (null, null);
        return (entering, factors);
    }

    public void Dispose()
    {
        _entering?.Dispose();
        _factors?.Dispose();
        (_entering, _factors) = (null, null);
    }
}
