using LaspNative.Autograd;
using LaspNative.Runtime;

namespace LaspNative.Collectives;

/// <summary>
/// What an attention call keeps between its phases. Held by the pending handle and by the tape's two functions, and freed with the last of them.
/// </summary>
internal abstract class CallInFlight
{
    private readonly List<IDisposable> _held = [];
    private int _owners = 1;

    /// <summary>Keeps something until the call is over.</summary>
    protected T Hold<T>(T owned) where T : IDisposable
    {
        _held.Add(owned);
        return owned;
    }

    /// <summary>One owner more.</summary>
    public void Retain() => _owners++;

    public void Release()
    {
        if (--_owners > 0) return;
        Abandon();
        foreach (IDisposable held in _held) held.Dispose();
        _held.Clear();
    }

    /// <summary>Waits for messages that nobody has waited for, so that their buffers can be freed.</summary>
    protected virtual void Abandon() { }
}

/// <summary>An attention call between Begin and Finish: its message is in flight. Finish uses it up; disposing it without Finish abandons the call (on every rank alike).</summary>
public abstract class PendingCall : IDisposable
{
    private CallInFlight? _call;
    private bool _taken;

    private protected PendingCall(CallInFlight call, Variable token)
    {
        _call = call;
        Token = token;
    }

    internal Variable Token { get; }

    private protected CallInFlight TakeCall()
    {
        if (_taken || _call is null) throw new LaspException("Finish was already called for this attention call; Begin starts a new one");
        _taken = true;
        return _call;
    }

    public void Dispose()
    {
        Dispose(disposing: true);
        GC.SuppressFinalize(this);
    }

    protected virtual void Dispose(bool disposing)
    {
        if (!disposing || _call is null) return;
        _call.Release();
        _call = null;
        Token.Dispose();
    }
}
