using LaspNative.Runtime;

namespace LaspNative.Autograd;

/// <summary>Memory beside a device's own, and how tensors get there and back. On a GPU both ways run beside the device's work; this is the one class that a kind of device adds.</summary>
public abstract class HostMemory : IDisposable
{
    /// <summary>Starts copying a tensor out, takes it over, and frees it when its bytes have left the device. Null where there is no room: then it stays the caller's.</summary>
    public abstract HostCopy? TryStore(Tensor tensor);

    public void Dispose()
    {
        Dispose(disposing: true);
        GC.SuppressFinalize(this);
    }

    protected virtual void Dispose(bool disposing) { }
}

/// <summary>A tensor in host memory. Disposing it gives the memory back, after what is still being copied.</summary>
public abstract class HostCopy : IDisposable
{
    /// <summary>Allocates on the device and starts copying back. Called once.</summary>
    public abstract void StartReturn();

    /// <summary>The tensor, ordered before whatever is queued on the device next. The caller's. After <see cref="StartReturn"/>, once.</summary>
    public abstract Tensor Return();

    public void Dispose()
    {
        Dispose(disposing: true);
        GC.SuppressFinalize(this);
    }

    protected virtual void Dispose(bool disposing) { }
}

/// <summary>
/// Where the inputs of recomputed regions (<see cref="Recompute"/>) wait for backward: up to a number of bytes on the device, the rest in host memory. Backward takes the newest first, so the
/// oldest leave, as long as the host has room; when one is taken, the newest that are away start to come back: as many as fit, and always one, which is under way while the region before it runs backwards.
/// Used by one thread.
/// </summary>
public sealed class InputStash : IDisposable
{
    private readonly long _deviceBytes;
    private readonly HostMemory _host;
    private readonly List<StashedInput> _entries = []; // oldest first; those away are a prefix

    /// <param name="deviceBytes">Bytes that may wait on the device, 0 or more. What is on its way back counts; the one that is always brought back, and what the host has no room for, may exceed them.</param>
    /// <param name="host">Taken over.</param>
    public InputStash(long deviceBytes, HostMemory host)
    {
        ArgumentNullException.ThrowIfNull(host);
        if (deviceBytes < 0) throw new LaspException($"{deviceBytes} bytes cannot be kept on the device; use 0 or more");
        (_deviceBytes, _host) = (deviceBytes, host);
    }

    /// <summary>Inputs that wait, wherever they are.</summary>
    public int Count => _entries.Count;

    /// <summary>Bytes that wait on the device, or are on their way back to it.</summary>
    public long BytesOnDevice => _entries.Sum(e => e.IsAway ? 0 : e.Bytes);

    /// <summary>Takes a tensor over; the oldest leave the device where it gets too much.</summary>
    internal StashedInput Keep(Tensor tensor)
    {
        var entry = new StashedInput(tensor, this);
        _entries.Add(entry);
        foreach (StashedInput oldest in _entries)
        {
            if (BytesOnDevice <= _deviceBytes) break;
            if (!oldest.IsAway && !oldest.TryLeave(_host)) break;
        }
        return entry;
    }

    /// <summary>Stops keeping an input, and starts the return of those that backward takes next.</summary>
    internal void Remove(StashedInput entry)
    {
        _entries.Remove(entry);
        Prefetch();
    }

    /// <summary>Starts the return of the inputs that backward takes next: for whoever knows that it is about to come to them.</summary>
    public void Prefetch()
    {
        for (int i = _entries.Count - 1, ahead = 0; i >= 0; i--, ahead++)
        {
            StashedInput next = _entries[i];
            if (!next.IsAway) continue;
            if (ahead > 0 && BytesOnDevice + next.Bytes > _deviceBytes) return;
            next.StartReturn();
        }
    }

    /// <summary>Forgets an input that nobody will take.</summary>
    internal void Forget(StashedInput entry) => _entries.Remove(entry);

    public void Dispose() => _host.Dispose();
}

/// <summary>One input that waits for backward.</summary>
internal sealed class StashedInput(Tensor tensor, InputStash? stash) : IDisposable
{
    private Tensor? _tensor = tensor;
    private HostCopy? _copy;
    private bool _returns;

    public long Bytes { get; } = tensor.Bytes;

    /// <summary>In host memory, and not yet on its way back.</summary>
    public bool IsAway => _copy is not null && !_returns;

    /// <summary>False where the host has no room.</summary>
    public bool TryLeave(HostMemory host)
    {
        _copy = host.TryStore(_tensor!);
        if (_copy is not null) _tensor = null;
        return _copy is not null;
    }

    public void StartReturn()
    {
        _returns = true;
        _copy!.StartReturn();
    }

    /// <summary>The tensor, on the device; the caller's.</summary>
    public Tensor Take()
    {
        if (IsAway) StartReturn();
        Tensor taken = _copy?.Return() ?? _tensor!;
        _tensor = null;
        _copy?.Dispose();
        _copy = null;
        stash?.Remove(this);
        return taken;
    }

    public void Dispose()
    {
        stash?.Forget(this);
        _tensor?.Dispose();
        _copy?.Dispose();
        (_tensor, _copy) = (null, null);
    }
}
