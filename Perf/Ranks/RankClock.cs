using LaspNative.Collectives;
using LaspNative.Runtime.Cuda;

namespace LaspNative.Perf;

/// <summary>One rank's clock. A repetition takes as long as on the slowest rank; so does its waiting. Every rank calls the same.</summary>
internal sealed class RankClock(RankContext rank, Meeting meeting, TimedCommunicator group)
{
    private const int WantedRepeats = 20;
    private const int WarmRepeats = 3;

    /// <summary>A call slower than a twentieth of this is repeated less often, at least once.</summary>
    private const double PatienceMilliseconds = 2000;

    private readonly CudaDevice _device = (CudaDevice)rank.Device;

    /// <summary>Times, and the share of them in which the compute stream waited for messages, in percent.</summary>
    public (Times Times, double ExposedPercent) Time(Action<int> call)
    {
        double once = Slowest(Run(call, 0, 1).Times)[0];
        int repeats = (int)Math.Clamp(PatienceMilliseconds / Math.Max(once, 1e-3), 1, WantedRepeats);
        (double[] own, double[] ownWaits) = Run(call, repeats > WarmRepeats ? WarmRepeats : 0, repeats);
        double[] times = Slowest(own), waits = Slowest(ownWaits);
        return (Times.Of([.. times]), 100 * Times.Of([.. times.Zip(waits, (time, wait) => wait / time)]).Median);
    }

    private double[] Slowest(double[] own)
    {
        double[][] all = meeting.Share(rank, own);
        return [.. Enumerable.Range(0, own.Length).Select(i => all.Max(r => r[i]))];
    }

    /// <summary>Repetitions are queued one behind the other; the first ones are there for the host to get ahead.</summary>
    private (double[] Times, double[] Waits) Run(Action<int> call, int warm, int repeats)
    {
        CudaEvent[] marks = [.. Enumerable.Range(0, 2 * repeats).Select(_ => new CudaEvent(_device.Context, timing: true))];
        var waits = new List<(CudaEvent Start, CudaEvent End)>[repeats];
        for (int i = 0; i < warm; i++) call(i);
        Forget(group.TakeWaits());
        for (int i = 0; i < repeats; i++)
        {
            marks[2 * i].Record(_device.Stream);
            call(warm + i);
            marks[(2 * i) + 1].Record(_device.Stream);
            waits[i] = group.TakeWaits();
        }
        _device.Synchronize();
        double[] times = [.. Enumerable.Range(0, repeats).Select(i => (double)CudaEvent.ElapsedMilliseconds(marks[2 * i], marks[(2 * i) + 1]))];
        double[] waited = [.. waits.Select(w => w.Sum(e => (double)CudaEvent.ElapsedMilliseconds(e.Start, e.End)))];
        foreach (CudaEvent mark in marks) mark.Dispose();
        foreach (List<(CudaEvent Start, CudaEvent End)> list in waits) Forget(list);
        return (times, waited);
    }

    private static void Forget(List<(CudaEvent Start, CudaEvent End)> waits)
    {
        foreach ((CudaEvent start, CudaEvent end) in waits)
        {
            start.Dispose();
            end.Dispose();
        }
    }
}
