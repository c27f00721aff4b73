namespace LaspNative.Runtime.Cuda;

/// <summary>Events that mark one thing after another. All are the pool's, also those that never come back. For one thread at a time.</summary>
internal sealed class EventPool(CudaContext context) : IDisposable
{
    private readonly List<CudaEvent> _all = [];
    private readonly Stack<CudaEvent> _idle = new();

    /// <summary>An event behind what is queued on <paramref name="stream"/> now.</summary>
    public CudaEvent Mark(CudaStream stream)
    {
        if (!_idle.TryPop(out CudaEvent? mark)) _all.Add(mark = new CudaEvent(context));
        mark.Record(stream);
        return mark;
    }

    /// <summary>The event may mark something else from now on: waits queued for it keep their mark.</summary>
    public void Return(CudaEvent mark) => _idle.Push(mark);

    public void Dispose()
    {
        foreach (CudaEvent mark in _all) mark.Dispose();
    }
}
