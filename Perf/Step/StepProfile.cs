using LaspNative.Runtime.Cuda;

namespace LaspNative.Perf;

/// <summary>
/// Events around everything that is queued on the compute stream of a device while this looks on, and around messages on theirs. They are made beforehand and cost the GPU about a microsecond each;
/// they keep kernels from overlapping, so that a step takes a little longer than one that nobody looks at. Messages run beside kernels: their time is not a part of the step's.
/// </summary>
internal sealed class StepProfile : ILaunchObserver, IDisposable
{
    private readonly CudaDevice _device;
    private readonly List<CudaEvent> _events = [];
    private readonly List<(string Name, KernelFamily Family)> _calls = [];
    private int _used;
    private int _depth;

    public StepProfile(CudaDevice device, int expectedCalls = 1 << 13)
    {
        _device = device;
        while (_events.Count < 2 * expectedCalls) _events.Add(new CudaEvent(device.Context, timing: true));
    }

    /// <summary>Forgets what it has seen.</summary>
    public void Restart()
    {
        (_used, _depth) = (0, 0);
        _calls.Clear();
    }

    public void BeforeLaunch(CudaKernel kernel, CudaStream stream) => Begin(stream);

    public void AfterLaunch(CudaKernel kernel, CudaStream stream) => End(kernel.Name, KernelFamilies.Of(kernel), stream);

    public void BeforeOther(string name, CudaStream stream) => Begin(stream);

    public void AfterOther(string name, CudaStream stream) => End(name, KernelFamilies.OfOther(name), stream);

    /// <summary>What is queued as a part of something else, as a message's kernels are, is counted with it.</summary>
    private void Begin(CudaStream stream)
    {
        if (_depth++ == 0) Mark(stream);
    }

    private void End(string name, KernelFamily family, CudaStream stream)
    {
        if (--_depth > 0) return;
        Mark(stream);
        _calls.Add((name, stream == _device.Stream ? family : KernelFamily.Messages));
    }

    private void Mark(CudaStream stream)
    {
        if (_used == _events.Count) _events.Add(new CudaEvent(_device.Context, timing: true));
        _events[_used++].Record(stream);
    }

    /// <summary>Milliseconds and number of launches by family, and by kernel within each, the longest first. All must have run.</summary>
    public (IReadOnlyList<KernelShare> Families, IReadOnlyList<KernelShare> Kernels) Shares()
    {
        (string Name, KernelFamily Family, double Milliseconds)[] calls =
            [.. _calls.Select((call, i) => (call.Name, call.Family, (double)CudaEvent.ElapsedMilliseconds(_events[2 * i], _events[(2 * i) + 1])))];
        return (
            [.. Enum.GetValues<KernelFamily>().Select(f => (Family: f, Calls: calls.Where(c => c.Family == f).ToArray())).Where(f => f.Calls.Length > 0)
                .Select(f => new KernelShare(KernelFamilies.NameOf(f.Family), f.Calls.Sum(c => c.Milliseconds), f.Calls.Length))],
            [.. calls.GroupBy(c => c.Name, StringComparer.Ordinal).Select(k => new KernelShare(k.Key, k.Sum(c => c.Milliseconds), k.Count())).OrderByDescending(k => k.Milliseconds)]);
    }

    public void Dispose()
    {
        foreach (CudaEvent mark in _events) mark.Dispose();
    }
}
