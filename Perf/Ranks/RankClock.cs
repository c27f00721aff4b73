using LaspNative.Collectives;
using LaspNative.Runtime;
using LaspNative.Runtime.Cuda;

namespace LaspNative.Perf;

/// <summary>
/// One rank's clock. A repetition takes as long as on the slowest rank. Exposed is what messages add to it: its time without the time in which the slowest rank computes; a rank that computes faster also
/// waits, for the slower one rather than for the message, and is told apart as waiting. Every rank calls the same.
/// Of each wait the time that two events with nothing between them measure is taken off (microseconds, as much as around the wait for a message that is there): it is the clock's, not the message's.
/// </summary>
internal sealed class RankClock(RankContext rank, Meeting meeting, TimedCommunicator group)
{
    private const int WantedRepeats = 20;
    private const int WarmRepeats = 3;

    /// <summary>A call slower than a twentieth of this is repeated less often, at least once.</summary>
    private const double PatienceMilliseconds = 2000;

    private readonly CudaDevice _device = (CudaDevice)rank.Device;
    private double? _emptyPair;

    /// <summary>Times; the share of them that messages add, and the largest share in which a compute stream waited, in percent.</summary>
    public (Times Times, double ExposedPercent, double WaitingPercent) Time(Action<int> call)
    {
        double once = Slowest(Run(call, 0, 1).Times)[0];
        int repeats = (int)Math.Clamp(PatienceMilliseconds / Math.Max(once, 1e-3), 1, WantedRepeats);
        (double[] own, double[] ownWaits) = Run(call, repeats > WarmRepeats ? WarmRepeats : 0, repeats);
        double[] times = Slowest(own), waits = Slowest(ownWaits), computing = Slowest([.. own.Zip(ownWaits, (time, wait) => time - wait)]);
        return (Times.Of([.. times]), Share(computing.Zip(times, (compute, time) => time - compute)), Share(waits));

        double Share(IEnumerable<double> parts) => 100 * Times.Of([.. times.Zip(parts, (time, part) => part / time)]).Median;
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
        double empty = _emptyPair ??= MeasureEmptyPair();
        double[] waited = [.. waits.Select(w => w.Sum(e => Math.Max(0, CudaEvent.ElapsedMilliseconds(e.Start, e.End) - empty)))];
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

    /// <summary>Milliseconds between two events in a busy stream.</summary>
    private double MeasureEmptyPair()
    {
        const int Pairs = 41;
        using Tensor work = Tensor.Empty([1 << 20], DType.F32, _device, MemoryCategory.Workspace);
        var pairs = new (CudaEvent Start, CudaEvent End)[Pairs];
        for (int i = 0; i < Pairs; i++)
        {
            pairs[i] = (new CudaEvent(_device.Context, timing: true), new CudaEvent(_device.Context, timing: true));
            _device.Backend.Fill(0, work);
            pairs[i].Start.Record(_device.Stream);
            pairs[i].End.Record(_device.Stream);
        }
        _device.Synchronize();
        double[] measured = [.. pairs.Select(p => (double)CudaEvent.ElapsedMilliseconds(p.Start, p.End)).Order()];
        Forget([.. pairs]);
        return measured[Pairs / 2];
    }
}
