using System.Diagnostics;
using LaspNative.Collectives;
using LaspNative.Model;
using LaspNative.Runtime;
using LaspNative.Runtime.Cuda;

namespace LaspNative.Perf;

/// <summary>What one rank saw of a case. Times are of the timed steps, in milliseconds, and of all steps when a case was ended before those.</summary>
/// <param name="Exposed">Share of each of those steps in which the rank waited for messages.</param>
/// <param name="ProfiledMilliseconds">The step that was looked at more closely; 0: none was.</param>
/// <param name="PeakBytes">Most bytes at once, of the memory's categories at that moment in <paramref name="Memory"/>.</param>
/// <param name="ReservedBytes">What the driver holds for the rank; 0 on the CPU.</param>
/// <param name="GradientCarrier">As <see cref="Measurement.GradientCarrier"/>.</param>
/// <param name="SentBytes">Per step.</param>
/// <param name="Launches">Kernels and matrix products per step.</param>
/// <param name="ManagedBytes">Allocated on the rank's thread per step.</param>
internal sealed record RankOutcome(
    double[] Milliseconds,
    double[] Exposed,
    double[] Losses,
    double ProfiledMilliseconds,
    IReadOnlyList<KernelShare> Families,
    IReadOnlyList<KernelShare> Kernels,
    long PeakBytes,
    IReadOnlyDictionary<MemoryCategory, long> Memory,
    long ReservedBytes,
    string GradientCarrier,
    double SentBytes,
    double Launches,
    double ManagedBytes);

/// <summary>Takes the steps of a case on one rank and watches them.</summary>
internal sealed class StepOnRank(StepHarnessOptions harness, TrainOptions options, TokenStream tokens, RankContext rank, CancellationTokenSource limit, StepWatch watch) : ITrainingListener
{
    private readonly List<StepRecord> _records = [];
    private long _started; // of the first step
    private StepProfile? _profile;
    private Trainer? _trainer;
    private long _sent, _launches, _managed; // when the first timed step began
    private double _sentPerStep, _launchesPerStep, _managedPerStep;

    private CudaDevice? Gpu => rank.Device as CudaDevice;

    private long LaunchCount => Gpu is { } gpu ? gpu.Kernels.LaunchCount + gpu.Blas.LaunchCount : 0;

    public RankOutcome Run()
    {
        using StepProfile? profile = _profile = harness.Breakdown && rank.Rank == 0 && Gpu is { } gpu ? new StepProfile(gpu) : null;
        using var clock = new StepClock(rank.Device, Before);
        using Trainer trainer = _trainer = new Trainer(options, tokens, rank, this, clock);
        Count(trainer.Run().LastStep + 1);
        double[] all = clock.Finish();
        Observe(null);
        int first = all.Length >= harness.FirstTimed ? harness.FirstTimed - 1 : 0; // a case that was ended in its warm-up tells all it has
        int told = harness.FirstTimed - 2; // the second of the profiled steps
        bool isProfiled = profile is not null && all.Length > told;
        (IReadOnlyList<KernelShare> families, IReadOnlyList<KernelShare> kernels) = isProfiled ? Explain(profile!, all[told], _records[told]) : ([], []);
        MemoryLedger memory = rank.Device.Memory;
        return new RankOutcome(
            all[first..],
            [.. _records.Skip(first).Select(r => r.ExposedCommunication)],
            [.. _records.Select(r => r.Loss)],
            isProfiled ? all[told] : 0,
            families,
            kernels,
            memory.Peak,
            Enum.GetValues<MemoryCategory>().ToDictionary(c => c, memory.AtPeakOf),
            Gpu?.ReservedBytes ?? 0,
            trainer.GradientCarrier,
            _sentPerStep,
            _launchesPerStep,
            _managedPerStep);
    }

    /// <summary>The families, the waiting, and what is left of the step.</summary>
    private static (IReadOnlyList<KernelShare> Families, IReadOnlyList<KernelShare> Kernels) Explain(StepProfile profile, double milliseconds, StepRecord record)
    {
        (IReadOnlyList<KernelShare> families, IReadOnlyList<KernelShare> kernels) = profile.Shares();
        double waited = record.ExposedCommunication * record.Seconds * 1e3;
        var waiting = new KernelShare(KernelFamilies.Waiting, waited, 0);
        var idle = new KernelShare(KernelFamilies.Idle, milliseconds - waited - families.Where(f => f.Kernel != KernelFamilies.MessagesName).Sum(f => f.Milliseconds), 0);
        return (waited > 0 ? [.. families, waiting, idle] : [.. families, idle], kernels);
    }

    private void Before(long step)
    {
        watch.Begins(rank.Rank, step);
        if (step == 1) _started = Stopwatch.GetTimestamp();
        if (_profile is not null && step < harness.FirstTimed && step >= harness.FirstTimed - 2)
        {
            _profile.Restart();
            Observe(_profile);
        }
        if (step == harness.FirstTimed)
        {
            Observe(null);
            rank.Device.Memory.ResetPeak();
            (_sent, _launches, _managed) = (_trainer!.BytesSent, LaunchCount, GC.GetAllocatedBytesForCurrentThread());
        }
        else
        {
            Count(step);
        }
        if (rank.Rank == 0 && Stopwatch.GetElapsedTime(_started) > harness.Limit) limit.Cancel();
    }

    private void Observe(StepProfile? profile)
    {
        if (_profile is not null) Gpu!.Kernels.Observer = profile;
    }

    /// <summary>What the timed steps before this one took on average.</summary>
    private void Count(long step)
    {
        double steps = step - harness.FirstTimed;
        if (steps < 1) return;
        (_sentPerStep, _launchesPerStep, _managedPerStep) =
            ((_trainer!.BytesSent - _sent) / steps, (LaunchCount - _launches) / steps, (GC.GetAllocatedBytesForCurrentThread() - _managed) / steps);
    }

    public void Note(string line) { }

    public void Step(StepRecord record) => _records.Add(record);
}
