using LaspNative.Runtime.Cuda;

namespace LaspNative.Perf;

/// <summary>Where the time of a call goes: events around each of its launches. They keep kernels from overlapping, so the shares may sum to more than the call.</summary>
internal sealed class KernelProfile(CudaDevice device) : ILaunchObserver
{
    /// <summary>Calls that a profile makes.</summary>
    public const int Repeats = 5;

    private readonly List<(string Kernel, CudaEvent Start, CudaEvent End)> _launches = [];
    private CudaEvent? _started;

    /// <summary>The kernels of a warm call, in the order of their first launch.</summary>
    public static IReadOnlyList<KernelShare> Of(CudaDevice device, Action<int> call)
    {
        var profile = new KernelProfile(device);
        device.Synchronize();
        device.Kernels.Observer = profile;
        try
        {
            for (int i = 0; i < Repeats; i++) call(i);
        }
        finally
        {
            device.Kernels.Observer = null;
        }
        return profile.Shares();
    }

    public void BeforeLaunch(CudaKernel kernel, CudaStream stream)
    {
        _started = new CudaEvent(device.Context, timing: true);
        _started.Record(stream);
    }

    public void AfterLaunch(CudaKernel kernel, CudaStream stream)
    {
        var ended = new CudaEvent(device.Context, timing: true);
        ended.Record(stream);
        _launches.Add((kernel.Name, _started!, ended));
    }

    private List<KernelShare> Shares()
    {
        device.Synchronize();
        List<KernelShare> shares = [.. _launches.GroupBy(l => l.Kernel, StringComparer.Ordinal)
            .Select(k => new KernelShare(k.Key, k.Sum(l => CudaEvent.ElapsedMilliseconds(l.Start, l.End)) / Repeats, (double)k.Count() / Repeats))];
        foreach ((_, CudaEvent start, CudaEvent end) in _launches)
        {
            start.Dispose();
            end.Dispose();
        }
        return shares;
    }
}
