using System.Diagnostics;
using LaspNative.Collectives;
using LaspNative.Model;
using LaspNative.Runtime;
using LaspNative.Runtime.Cuda;

namespace LaspNative.Perf;

/// <summary>What one rank saw of a case. Times are of the steps after the warm-up, in milliseconds, and of all steps when a case was ended before that.</summary>
/// <param name="Exposed">Share of each of those steps in which the rank waited for messages.</param>
/// <param name="ProfiledMilliseconds">The step that was looked at more closely; 0: none was.</param>
/// <param name="PeakBytes">Most bytes at once, of the memory's categories at that moment in <paramref name="Memory"/>.</param>
/// <param name="ReservedBytes">What the driver holds for the rank; 0 on the CPU.</param>
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
    double SentBytes,
    double Launches,
    double ManagedBytes);

/// <summary>Takes the steps of a case on one rank and watches them.</summary>
internal sealed class StepOnRank(StepHarnessOptions harness, TrainOptions options, TokenStream tokens, RankContext rank, CancellationTokenSource limit) : ITrainingListener
{
    private readonly List<StepRecord> _records = [];
    private long _started; // of the first step
    private StepProfile? _profile;
    private long _sent, _launches, _managed; // when the first timed step began
    private double _sentPerStep, _launchesPerStep, _managedPerStep;

    private CudaDevice? Gpu => rank.Device as CudaDevice;

    private long LaunchCount => Gpu is { } gpu ? gpu.Kernels.LaunchCount + gpu.Blas.LaunchCount : 0;

    public RankOutcome Run()
    {
        using StepProfile? profile = _profile = harness.Breakdown && rank.Rank == 0 && Gpu is { } gpu ? new StepProfile(gpu) : null;
        using var clock = new StepClock(rank.Device, Before);
        using var trainer = new Trainer(options, tokens, rank, this, clock);
        long last = trainer.Run().LastStep;
        Count(last + 1);
        double[] all = clock.Finish();
        if (Gpu is { } device) device.Kernels.Observer = null;
        bool isWhole = all.Length == harness.AllSteps;
        int first = isWhole ? harness.Warmup : 0, count = isWhole ? harness.Steps : all.Length;
        MemoryLedger memory = rank.Device.Memory;
        double profiled = isWhole && harness.Breakdown ? all[^1] : 0;
        (IReadOnlyList<KernelShare> families, IReadOnlyList<KernelShare> kernels) = profiled > 0 && profile is not null ? Explain(profile, profiled) : ([], []);
        StepRecord[] timed = [.. _records.Skip(first).Take(count)];
        return new RankOutcome(
            all[first..(first + count)],
            [.. timed.Select(r => r.ExposedCommunication)],
            [.. _records.Select(r => r.Loss)],
            profiled,
            families,
            kernels,
            memory.Peak,
            Enum.GetValues<MemoryCategory>().ToDictionary(c => c, memory.AtPeakOf),
            Gpu?.ReservedBytes ?? 0,
            _sentPerStep,
            _launchesPerStep,
            _managedPerStep);
    }

    /// <summary>The families, the waiting, and what is left of the step.</summary>
    private (IReadOnlyList<KernelShare> Families, IReadOnlyList<KernelShare> Kernels) Explain(StepProfile profile, double milliseconds)
    {
        (IReadOnlyList<KernelShare> families, IReadOnlyList<KernelShare> kernels) = profile.Shares();
        double waited = _records[^1].ExposedCommunication * _records[^1].Seconds * 1e3;
        var waiting = new KernelShare(KernelFamilies.Waiting, waited, 0);
        var idle = new KernelShare(KernelFamilies.Idle, milliseconds - waited - families.Where(f => f.Kernel != KernelFamilies.MessagesName).Sum(f => f.Milliseconds), 0);
        return (waited > 0 ? [.. families, waiting, idle] : [.. families, idle], kernels);
    }

    private void Before(long step)
    {
        if (step == 1) _started = Stopwatch.GetTimestamp();
        if (step == harness.Warmup + 1)
        {
            rank.Device.Memory.ResetPeak();
            (_sent, _launches, _managed) = (rank.World.Counters.BytesSent, LaunchCount, GC.GetAllocatedBytesForCurrentThread());
        }
        else
        {
            Count(step);
        }
        if (_profile is not null && step > harness.Warmup + harness.Steps)
        {
            _profile.Restart();
            Gpu!.Kernels.Observer = _profile;
        }
        if (rank.Rank == 0 && Stopwatch.GetElapsedTime(_started) > harness.Limit) limit.Cancel();
    }

    /// <summary>What the timed steps before this one took on average.</summary>
    private void Count(long step)
    {
        double steps = step - harness.Warmup - 1;
        if (steps < 1 || steps > harness.Steps) return;
        (_sentPerStep, _launchesPerStep, _managedPerStep) =
            ((rank.World.Counters.BytesSent - _sent) / steps, (LaunchCount - _launches) / steps, (GC.GetAllocatedBytesForCurrentThread() - _managed) / steps);
    }

    public void Note(string line) { }

    public void Step(StepRecord record) => _records.Add(record);
}
