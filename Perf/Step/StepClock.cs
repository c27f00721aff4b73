using System.Diagnostics;
using LaspNative.Model;
using LaspNative.Runtime;
using LaspNative.Runtime.Cuda;

namespace LaspNative.Perf;

/// <summary>
/// One rank's marks between steps: events on the compute stream where the rank has a GPU, so that nothing waits for them; else the time of day. A step lasts from its mark to the next.
/// </summary>
internal sealed class StepClock : IStepProbe, IDisposable
{
    private readonly Device _device;
    private readonly Action<long> _before;
    private readonly List<CudaEvent> _events = [];
    private readonly List<long> _times = [];

    /// <param name="before">Told of each step, from 1, after its mark.</param>
    public StepClock(Device device, Action<long> before) => (_device, _before) = (device, before);

    public void Before(long step)
    {
        Mark();
        _before(step);
    }

    /// <summary>Milliseconds of every step. Call when the last step is queued.</summary>
    public double[] Finish()
    {
        Mark();
        _device.Synchronize();
        return _device is CudaDevice
            ? [.. _events.Zip(_events.Skip(1), (start, end) => (double)CudaEvent.ElapsedMilliseconds(start, end))]
            : [.. _times.Zip(_times.Skip(1), (start, end) => Stopwatch.GetElapsedTime(start, end).TotalMilliseconds)];
    }

    private void Mark()
    {
        if (_device is not CudaDevice gpu)
        {
            _times.Add(Stopwatch.GetTimestamp());
            return;
        }
        var mark = new CudaEvent(gpu.Context, timing: true);
        mark.Record(gpu.Stream);
        _events.Add(mark);
    }

    public void Dispose()
    {
        foreach (CudaEvent mark in _events) mark.Dispose();
    }
}
