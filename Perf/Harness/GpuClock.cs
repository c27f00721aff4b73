using LaspNative.Runtime;
using LaspNative.Runtime.Cuda;

namespace LaspNative.Perf;

/// <summary>GPU times of one call, in milliseconds.</summary>
internal readonly record struct Times(double Median, double Fastest, double Slowest, int Repeats)
{
    public static Times Of(double[] times)
    {
        Array.Sort(times);
        return new Times(times[times.Length / 2], times[0], times[^1], times.Length);
    }
}

/// <summary>
/// Times calls by CUDA events. Repetitions are queued behind copies that take longer than the host needs to queue them, as a training step queues its layers: the GPU never waits
/// for the host, so the time of a launch counts only where the GPU pays it.
/// </summary>
internal sealed class GpuClock : IDisposable
{
    private const int WantedRepeats = 20;
    private const int FewestRepeats = 5;

    /// <summary>A call slower than a twentieth of this is repeated less often.</summary>
    private const double PatienceMilliseconds = 3000;

    private const long LeadBytes = 256L << 20;
    private readonly CudaDevice _device;
    private readonly Tensor _source;
    private readonly Tensor _destination;

    public GpuClock(CudaDevice device)
    {
        _device = device;
        _source = Tensor.Zeros([LeadBytes / 4], DType.I32, device);
        _destination = Tensor.Empty([LeadBytes / 4], DType.I32, device);
    }

    /// <summary>Median of 20 after warming up; fewer when one call takes very long.</summary>
    public Times Time(Action<int> call)
    {
        double once = Run(call, repeats: 1, first: 0)[0];
        int repeats = (int)Math.Clamp(PatienceMilliseconds / Math.Max(once, 1e-3), FewestRepeats, WantedRepeats);
        return Times.Of(Run(call, repeats, first: 3));
    }

    private double[] Run(Action<int> call, int repeats, int first)
    {
        CudaEvent[] marks = [.. Enumerable.Range(0, 2 * repeats).Select(_ => new CudaEvent(_device.Context, timing: true))];
        try
        {
            Lead();
            for (int i = 0; i < first; i++) call(i);
            for (int i = 0; i < repeats; i++)
            {
                marks[2 * i].Record(_device.Stream);
                call(first + i);
                marks[(2 * i) + 1].Record(_device.Stream);
            }
            _device.Synchronize();
            return [.. Enumerable.Range(0, repeats).Select(i => (double)CudaEvent.ElapsedMilliseconds(marks[2 * i], marks[(2 * i) + 1]))];
        }
        finally
        {
            foreach (CudaEvent mark in marks) mark.Dispose();
        }
    }

    /// <summary>About a millisecond of work.</summary>
    private void Lead()
    {
        for (int i = 0; i < 8; i++) _device.Copy(_source.Pointer, _destination.Pointer, LeadBytes);
    }

    public void Dispose()
    {
        _source.Dispose();
        _destination.Dispose();
    }
}
