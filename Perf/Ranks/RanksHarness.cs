using LaspNative.Collectives;
using LaspNative.Runtime;
using LaspNative.Runtime.Cuda;

namespace LaspNative.Perf;

/// <summary>
/// The rows over several GPUs, one rank each, over NCCL: the attention operator with every strategy, and a layer with its projections. Every row is checked first, as on one GPU.
/// A failing rank ends the run, since the others cannot go on without it; what was measured until then is kept.
/// </summary>
internal sealed class RanksHarness(HarnessOptions options, TextWriter text)
{
    private const int LayerTokens = 32_768;

    /// <summary>Ring attention's left product is quadratic: beyond this it takes minutes.</summary>
    private const int LongestRing = 65_536;

    private static readonly string[] s_linear = ["lasp2", "lasp1", "zeco", "ulysses"];
    private static readonly string[] s_quadratic = ["ring"];
    private readonly ResultTable _table = new(text);
    private readonly List<Measurement> _rows = [];

    private HarnessOptions Options => options;

    /// <summary>Runs what the options ask for and writes the record. True when no row was wrong.</summary>
    public bool Run()
    {
        PerformanceRecord? before = options.Compare is null ? null : PerformanceRecord.Read(options.Compare);
        var record = new PerformanceRecord(PerformanceRecord.DescribeMachine(), PerformanceRecord.DescribeCommit(), PerformanceRecord.Today(), 0, 0, _rows);
        text.WriteLine($"{record.Machine}; {record.Commit}; {options.Ranks} ranks");
        var meeting = new Meeting(options.Ranks);
        try
        {
            World.Run(new WorldOptions(DeviceKind.Cuda, options.Ranks), rank => new OnRank(this, rank, meeting).Run());
        }
        catch (LaspException e)
        {
            Add(new Measurement("the run over ranks", "") { Fault = e.Message });
        }
        record.Write(options.Out);
        if (before is not null) _table.Comparison(record, before);
        _table.Summary(record, options.Out);
        return _rows.TrueForAll(r => r.Fault is null);
    }

    private void Add(Measurement row)
    {
        _rows.Add(row);
        _table.Row(row);
    }

    /// <summary>One rank's way through all rows; rank 0 writes them down.</summary>
    private sealed class OnRank(RanksHarness harness, RankContext rank, Meeting meeting)
    {
        private readonly TimedCommunicator _group = new(rank.World);
        private readonly Dictionary<string, double> _lasp2 = new(StringComparer.Ordinal); // milliseconds by what was run at which length

        public void Run()
        {
            // A pool that grows while the other rank waits in a collective could keep both waiting.
            ((CudaDevice)rank.Device).Reserve(SystemProbe.Run().Gpus[0].MemoryBytes / 4);
            rank.World.Barrier();
            // Long ones first, for the clocks of a GPU that was idle are not those of one that works; what takes a thousand times as long comes last, so that a run which is cut short has the rest.
            int[] lengths = [.. harness.Options.LengthsOrDefault([16_384, 65_536, 262_144]).OrderDescending()];
            foreach (int tokens in lengths) Operators(tokens, s_linear);
            Layer();
            foreach (int tokens in lengths.Where(n => n <= LongestRing)) Operators(tokens, s_quadratic);
        }

        private void Operators(int tokens, string[] strategies)
        {
            string Name(string strategy, string what) => $"{strategy} {what} N={tokens} W={rank.Size}";
            string[] wanted = [.. strategies.Where(s => harness.Options.Wants(Name(s, "fwd")) || harness.Options.Wants(Name(s, "fwd+bwd")))];
            if (wanted.Length == 0) return;
            using var problem = new OperatorProblem(rank, meeting, tokens);
            foreach (string name in wanted)
            {
                SequenceParallel strategy = SequenceParallel.Parse(name);
                double error = problem.Error(strategy, _group);
                Measure(Name(name, "fwd"), OperatorProblem.Shape, error, _ => problem.Forward(strategy, _group));
                Measure(Name(name, "fwd+bwd"), OperatorProblem.Shape, error, _ => problem.ForwardBackward(strategy, _group));
            }
        }

        private void Layer()
        {
            string name = $"lasp2 layer fwd+bwd N={LayerTokens} W={rank.Size}";
            if (!harness.Options.Wants(name)) return;
            using var problem = new LayerProblem(rank, meeting, LayerTokens);
            SequenceParallel lasp2 = SequenceParallel.Parse("lasp2");
            double error = problem.Error(lasp2, SequenceParallel.Parse("lasp1"), _group);
            Measure(name, "hidden 2048, 16 heads of 128, output gate, bf16", error, _ => problem.ForwardBackward(lasp2, _group));
        }

        private void Measure(string name, string shape, double error, Action<int> call)
        {
            if (!harness.Options.Wants(name)) return;
            if (!(error <= Row.Bound))
            {
                Tell(new Measurement(name, shape) { Fault = $"relative error {error:g3} against fp64, at most {Row.Bound} is right: not timed" });
                return;
            }
            var clock = new RankClock(rank, meeting, _group);
            (Times times, double exposed, double waiting) = clock.Time(call);
            _group.Silent = true;
            double silent = clock.Time(call).Times.Median;
            _group.Silent = false;
            Tell(new Measurement(name, shape)
            {
                Milliseconds = times.Median,
                Fastest = times.Fastest,
                Slowest = times.Slowest,
                Repeats = times.Repeats,
                Error = error,
                Figures = Figures(name, times.Median, exposed, waiting, silent),
                Kernels = rank.Rank == 0 ? KernelProfile.Of((CudaDevice)rank.Device, call) : ProfiledElsewhere(call),
            });
        }

        private SortedDictionary<string, double> Figures(string name, double milliseconds, double exposed, double waiting, double silent)
        {
            var figures = new SortedDictionary<string, double>(StringComparer.Ordinal)
            {
                [Units.ExposedPercent] = exposed,
                [Units.WaitingPercent] = waiting,
                [Units.SilentPercent] = 100 * (milliseconds - silent) / milliseconds,
            };
            (string strategy, string what) = (name[..name.IndexOf(' ', StringComparison.Ordinal)], name[name.IndexOf(' ', StringComparison.Ordinal)..]);
            if (strategy == "lasp2") _lasp2[what] = milliseconds;
            else if (_lasp2.TryGetValue(what, out double lasp2)) figures[Units.TimesLasp2] = milliseconds / lasp2;
            return figures;
        }

        /// <summary>The other ranks take part in the repetitions that rank 0 profiles.</summary>
        private static List<KernelShare> ProfiledElsewhere(Action<int> call)
        {
            for (int i = 0; i < KernelProfile.Repeats; i++) call(i);
            return [];
        }

        private void Tell(Measurement row)
        {
            if (rank.Rank == 0) harness.Add(row);
        }
    }
}
