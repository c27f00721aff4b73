using System.Diagnostics;
using LaspNative.Cli;
using LaspNative.Collectives;
using LaspNative.Model;
using LaspNative.Runtime;
using LaspNative.Runtime.Cuda;

namespace LaspNative.Perf;

/// <summary>
/// Takes training steps of each case as `lasp train` does, on random tokens, and tells speed against the ceiling of the same run, memory by category and where the time went. A case that fails,
/// for want of memory or otherwise, is told, and the others go on.
/// </summary>
internal sealed class StepHarness(StepHarnessOptions options, TextWriter text)
{
    private static readonly TimeSpan s_patience = TimeSpan.FromSeconds(30);
    private readonly List<Measurement> _rows = [];
    private readonly StepTable _table = new(text);
    private readonly long _began = Stopwatch.GetTimestamp();
    private CancellationToken _interrupted;

    /// <summary>Runs the cases and writes the record. True when none failed.</summary>
    public bool Run(IReadOnlyList<StepCase> cases)
    {
        if (cases.Count == 0) throw new LaspException("no case is left to run; see --only");
        PerformanceRecord? before = options.Compare is null ? null : PerformanceRecord.Read(options.Compare);
        DeviceKind kind = cases[0].Options.World.Device;
        // A process that dies in the middle of a collective leaves its GPUs busy for a while: it ends after the step instead.
        using var interruption = new Interruption();
        _interrupted = interruption.Token;
        // Held to the end, or every case would make the GPU's context anew.
        using CudaContext? context = kind == DeviceKind.Cuda ? CudaContext.OpenPrimary(0) : null;
        Ceilings ceilings = CeilingsOf(kind);
        var record = new PerformanceRecord(
            PerformanceRecord.DescribeMachine(kind), PerformanceRecord.DescribeCommit(), PerformanceRecord.Today(), ceilings.CopyGigabytesPerSecond, ceilings.GemmTeraflops, _rows);
        _table.Head(record, kind);
        foreach (StepCase one in cases)
        {
            Measurement row = Measure(one, ceilings.GemmTeraflops);
            _rows.Add(row);
            _table.Row(row);
            record.Write(options.Out);
        }
        if (before is not null) new ResultTable(text).Comparison(record, before);
        new ResultTable(text).Summary(record, options.Out);
        return _rows.TrueForAll(r => r.Fault is null);
    }

    /// <summary>On a device of its own, whose memory is given back.</summary>
    private static Ceilings CeilingsOf(DeviceKind kind)
    {
        using Device device = Device.Open(kind == DeviceKind.Cuda ? "cuda:0" : "cpu");
        return device is CudaDevice gpu ? Ceilings.Of(gpu) : Ceilings.Of(device);
    }

    private Measurement Measure(StepCase one, double gemmTeraflops)
    {
        var row = new Measurement(one.Name, one.Shape);
        if (Stopwatch.GetElapsedTime(_began) > options.Budget) return row with { Skipped = FormattableString.Invariant($"the budget of {options.Budget.TotalSeconds:0} s is spent") };
        if (_interrupted.IsCancellationRequested) return row with { Skipped = "interrupted" };
        if (ExpectedSeconds(one) is { } expected && expected > options.Limit.TotalSeconds)
            return row with { Skipped = FormattableString.Invariant($"a step is expected to take {expected:0} s, over the limit of {options.Limit.TotalSeconds:0} s") };
        long started = Stopwatch.GetTimestamp();
        try
        {
            RankOutcome[] ranks = Train(one);
            row = row with { Seconds = Stopwatch.GetElapsedTime(started).TotalSeconds };
            if (WrongLoss(one, ranks[0]) is { } wrong) return row with { Fault = wrong };
            return Describe(row, one, ranks, gemmTeraflops);
        }
        catch (Exception e) // one case's failure is not the others'
        {
            return row with { Fault = e.Message };
        }
    }

    /// <summary>The left product of ring attention is quadratic: what a shorter sequence took says what this one would.</summary>
    private double? ExpectedSeconds(StepCase one)
    {
        if (one.Ranks == 1 || one.Options.Strategy is not Ring) return null;
        var shorter = _rows.Where(r => r.Figure(Units.Tokens) is not null && r.Name.StartsWith($"step {one.Model} ", StringComparison.Ordinal) && r.Name.Contains(" ring", StringComparison.Ordinal) && r.Figure(Units.Tokens) < one.Tokens).ToList();
        return shorter.Count == 0 ? null : shorter.Max(r => r.Milliseconds / 1e3 * Math.Pow(one.Tokens / r.Figure(Units.Tokens)!.Value, 2));
    }

    private RankOutcome[] Train(StepCase one)
    {
        TrainOptions run = one.Options with { LeavesNothing = true, Recipe = one.Options.Recipe with { Steps = options.AllSteps } };
        run.Validate();
        TokenStream tokens = RandomTokens(run.Config.VocabSize, one.Tokens + 1);
        using var limit = CancellationTokenSource.CreateLinkedTokenSource(_interrupted);
        using var watch = new StepWatch(one.Ranks, s_patience, Console.Error);
        var outcomes = new RankOutcome[one.Ranks];
        World.Run(run.World with { Ranks = one.Ranks }, rank => outcomes[rank.Rank] = new StepOnRank(options, run, tokens, rank, limit, watch).Run(), limit.Token);
        return outcomes;
    }

    /// <summary>All tokens of the vocabulary are as likely: the embedding's gradient meets many rows, and the loss has a known start.</summary>
    private static TokenStream RandomTokens(int vocabulary, long count)
    {
        var random = new Random(1);
        var tokens = new int[count];
        for (long i = 0; i < count; i++) tokens[i] = random.Next(vocabulary);
        return new TokenStream([tokens]);
    }

    /// <summary>An untrained model knows nothing of random tokens: ln(vocabulary), and half the variance of its logits, which is below 1.</summary>
    private static string? WrongLoss(StepCase one, RankOutcome outcome)
    {
        double expected = Math.Log(one.Options.Config.VocabSize);
        return outcome.Losses[0] > expected - 0.2 && outcome.Losses[0] < expected + 1
            ? null
            : FormattableString.Invariant($"the first loss is {outcome.Losses[0]:0.000}, but that of an untrained model on random tokens is near {expected:0.000}: not told");
    }

    private Measurement Describe(Measurement row, StepCase one, RankOutcome[] ranks, double gemmTeraflops)
    {
        // A step takes as long as on the slowest rank; ranks wait for one another in every step, so their times differ by little.
        Times times = Times.Of([.. Enumerable.Range(0, ranks.Min(r => r.Milliseconds.Length)).Select(i => ranks.Max(r => r.Milliseconds[i]))]);
        var figures = new SortedDictionary<string, double>(StringComparer.Ordinal);
        double tokensPerSecond = one.Tokens / times.Median * 1e3, teraflops = tokensPerSecond * one.FlopsPerToken / 1e12;
        int devices = one.Options.World is { Device: DeviceKind.Cuda, VirtualRanks: false } ? one.Ranks : 1;
        figures[Units.Tokens] = one.Tokens;
        figures[Units.TokensPerSecond] = tokensPerSecond;
        figures[Units.Teraflops] = teraflops;
        figures[Units.GemmPercent] = 100 * teraflops / (gemmTeraflops * devices);
        if (one.Options.World.Device == DeviceKind.Cuda && GpuPeak.OfFirst()?.PeakTeraFlops is { } peak) figures[Units.PeakPercent] = 100 * teraflops / (peak * devices);
        if (one.Ranks > 1) figures[Units.ExposedPercent] = 100 * ranks.Max(r => Times.Of([.. r.Exposed]).Median);
        AddMemory(figures, ranks.MaxBy(r => r.PeakBytes)!);
        figures[Units.SentMebibytes] = ranks.Max(r => r.SentBytes) / (1 << 20);
        figures[Units.Launches] = ranks.Max(r => r.Launches);
        figures[Units.ManagedKibibytes] = ranks.Max(r => r.ManagedBytes) / 1024;
        figures[Units.FirstLoss] = ranks[0].Losses[0];
        AddRelations(figures, one, times.Median, tokensPerSecond);
        return row with
        {
            Milliseconds = times.Median,
            Fastest = times.Fastest,
            Slowest = times.Slowest,
            Repeats = times.Repeats,
            Figures = figures,
            GradientCarrier = one.Ranks > 1 ? ranks[0].GradientCarrier : null,
            Families = ranks[0].Families,
            ProfiledMilliseconds = ranks[0].ProfiledMilliseconds,
            Kernels = ranks[0].Kernels,
        };
    }

    private static void AddMemory(SortedDictionary<string, double> figures, RankOutcome rank)
    {
        const double Gibibyte = 1L << 30;
        figures[Units.PeakGibibytes] = rank.PeakBytes / Gibibyte;
        if (rank.ReservedBytes > 0) figures[Units.ReservedGibibytes] = rank.ReservedBytes / Gibibyte;
        foreach ((MemoryCategory category, long bytes) in rank.Memory) figures[Units.GibibytesOf(category)] = bytes / Gibibyte;
    }

    /// <summary>What rows of this run say about one another.</summary>
    private void AddRelations(SortedDictionary<string, double> figures, StepCase one, double milliseconds, double tokensPerSecond)
    {
        if (one.Name != one.NameWithoutOffload && Find(one.NameWithoutOffload) is { } resident) figures[Units.OffloadPercent] = 100 * resident.Milliseconds / milliseconds;
        if (one.Ranks == 1) return;
        if (Find(one.NameOnOneRank) is { } alone)
        {
            figures[Units.WeakScalingPercent] = 100 * tokensPerSecond / (one.Ranks * alone.Figure(Units.TokensPerSecond)!.Value);
            figures[Units.MemoryOfOneRank] = figures[Units.PeakGibibytes] / alone.Figure(Units.PeakGibibytes)!.Value;
        }
        if (one.Name != one.NameWithLasp2 && Find(one.NameWithLasp2) is { } lasp2) figures[Units.TimesLasp2] = milliseconds / lasp2.Milliseconds;
    }

    /// <summary>The newest: GPUs grow warm, and their clocks fall, so rows next to each other compare best.</summary>
    private Measurement? Find(string name) => _rows.FindLast(r => r.Name == name && r.Figure(Units.Tokens) is not null);
}
