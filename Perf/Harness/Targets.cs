using LaspNative.Runtime;

namespace LaspNative.Perf;

/// <summary>What figures are told in.</summary>
internal static class Units
{
    public const string Milliseconds = "ms";

    /// <summary>Time over the time that the fewest bytes take at the copy speed of the same run.</summary>
    public const string TimesFloor = "x floor";

    /// <summary>The fewest bytes over the time, as a share of the copy speed of the same run.</summary>
    public const string CopyPercent = "% of copy";

    public const string Teraflops = "TFLOP/s";

    /// <summary>Speed as a share of the peer's, timed on the same GPU.</summary>
    public const string PeerPercent = "% of peer";

    /// <summary>Most bytes held at once beyond inputs and results.</summary>
    public const string ExtraMebibytes = "MiB extra";

    /// <summary>What waiting for messages adds to a call, as a share of its time: on the slowest rank (RankClock), in training steps on the one that waits longest.</summary>
    public const string ExposedPercent = "% exposed";

    /// <summary>The largest share of a repetition in which a rank's compute stream waited, for messages or for a slower rank.</summary>
    public const string WaitingPercent = "% waiting";

    /// <summary>What the call takes longer than the same call with messages that move nothing, as a share of its time.</summary>
    public const string SilentPercent = "% over silence";

    /// <summary>Time over that of the lasp2 strategy on the same inputs.</summary>
    public const string TimesLasp2 = "x lasp2";

    /// <summary>Of one step, over all ranks.</summary>
    public const string Tokens = "tokens";

    public const string TokensPerSecond = "tokens/s";

    /// <summary>Model FLOPs per second as a share of what a large bf16 product reaches in the same run (on all GPUs).</summary>
    public const string GemmPercent = "% of GEMM";

    /// <summary>The same as a share of the data sheet's peak.</summary>
    public const string PeakPercent = "% of data sheet";

    /// <summary>Most bytes that tensors of one rank held at once in a step.</summary>
    public const string PeakGibibytes = "GiB peak";

    /// <summary>Bytes that the driver holds for one rank.</summary>
    public const string ReservedGibibytes = "GiB reserved";

    /// <summary>Per step and rank.</summary>
    public const string SentMebibytes = "MiB sent";

    /// <summary>Kernels and matrix products per step.</summary>
    public const string Launches = "launches";

    /// <summary>Managed memory that a step allocates on its rank's thread.</summary>
    public const string ManagedKibibytes = "KiB managed";

    public const string FirstLoss = "first loss";

    /// <summary>Tokens per second over W times those of one rank with the same number of tokens per rank.</summary>
    public const string WeakScalingPercent = "% weak scaling";

    /// <summary>Speed as a share of that of the same step with all inputs of blocks on the device.</summary>
    public const string OffloadPercent = "% of speed without offload";

    /// <summary>Peak memory of a rank over that of the same work per rank on one rank alone.</summary>
    public const string MemoryOfOneRank = "x memory of one rank";

    /// <summary>What a category held when the rank's memory was at its peak.</summary>
    public static string GibibytesOf(MemoryCategory category) => $"GiB {category.ToString().ToLowerInvariant()}";
}

/// <summary>One figure that a row must reach.</summary>
internal sealed record Target(string Row, string Unit, double Limit, bool AtLeast = false)
{
    public bool IsMet(double value) => AtLeast ? value >= Limit : value <= Limit;

    public override string ToString() => $"{(AtLeast ? ">=" : "<=")} {Limit:0.##}";
}

/// <summary>The targets, in one table. Rows are named by <see cref="Suite"/>.</summary>
internal static class Targets
{
    private const string Linear = "linear head";

    public static IReadOnlyList<Target> All { get; } =
    [
        new($"{Linear} fwd N=8192", Units.TimesFloor, 2.6),
        new($"{Linear} fwd+bwd N=8192", Units.TimesFloor, 3.0),
        new($"{Linear} fwd N=32768", Units.TimesFloor, 1.9),
        new($"{Linear} fwd+bwd N=32768", Units.TimesFloor, 2.3),
        new($"{Linear} fwd N=131072", Units.TimesFloor, 1.9),
        new($"{Linear} fwd+bwd N=131072", Units.TimesFloor, 2.3),
        new($"{Linear} fwd+bwd N=131072", Units.ExtraMebibytes, 128),
        new("linear token fwd N=32768", Units.TimesFloor, 3),
        new("linear token fwd+bwd N=32768", Units.TimesFloor, 3),
        new("linear channel fwd N=32768", Units.TimesFloor, 3),
        new("linear channel fwd N=32768", Units.Milliseconds, 0.8),
        new("linear channel fwd+bwd N=32768", Units.TimesFloor, 3),
        new("linear channel fwd+bwd N=32768", Units.Milliseconds, 3.4),
        .. Softmax(8192, "H=32 Hk=8"),
        .. Softmax(8192, "H=16 Hk=16"),
        .. Softmax(32768, "H=32 Hk=8"),
        .. Softmax(32768, "H=16 Hk=16"),
        new("lasp2 fwd N=262144 W=2", Units.Milliseconds, 1.0),
        new("lasp2 fwd+bwd N=262144 W=2", Units.Milliseconds, 3.2),
        new("lasp2 fwd N=262144 W=2", Units.ExposedPercent, 2),
        new("lasp2 fwd+bwd N=262144 W=2", Units.ExposedPercent, 2),
        .. Strategies(16_384),
        .. Strategies(65_536),
        .. Strategies(262_144),
        new("lasp2 layer fwd+bwd N=32768 W=2", Units.ExposedPercent, 5),
        .. Step("step linear-llama3-1b N=8192 W=1", 58_000, 62_000, gibibytes: null),
        .. Step("step linear-llama3-1b N=32768 W=1", 66_000, 71_000, 54),
        .. Step("step linear-llama3-1b N=131072 W=1 checkpointing=block", 54_000, 58_000, 42),
        new("step linear-llama3-1b N=65536 W=2 lasp2", Units.WeakScalingPercent, 97.5, AtLeast: true),
        new("step linear-llama3-1b N=65536 W=2 lasp2", Units.MemoryOfOneRank, 1.01),
        new("step linear-llama3-1b N=65536 W=2 lasp2 zero=1", Units.WeakScalingPercent, 97.5, AtLeast: true),
    ];

    /// <summary>Elementwise ops all must reach the same, whatever their names.</summary>
    public static Target Elementwise(string row) => new(row, Units.CopyPercent, 85, AtLeast: true);

    public static IEnumerable<Target> Of(Measurement row)
    {
        IEnumerable<Target> named = All.Where(t => t.Row == row.Name);
        if (row.Figures.ContainsKey(Units.CopyPercent)) named = named.Append(Elementwise(row.Name));
        if (row.Figures.ContainsKey(Units.OffloadPercent)) named = named.Append(new Target(row.Name, Units.OffloadPercent, 90, AtLeast: true));
        return named;
    }

    /// <summary>lasp2 is faster than ring attention, and no more than 1% slower than lasp1.</summary>
    private static IEnumerable<Target> Strategies(int tokens) =>
        ((string[])["fwd", "fwd+bwd"]).SelectMany(what => (Target[])
        [
            new($"ring {what} N={tokens} W=2", Units.TimesLasp2, 1, AtLeast: true),
            new($"lasp1 {what} N={tokens} W=2", Units.TimesLasp2, 0.99, AtLeast: true),
        ]);

    /// <summary>What a training step must reach, and what it should.</summary>
    private static IEnumerable<Target> Step(string row, double must, double should, double? gibibytes)
    {
        yield return new Target(row, Units.TokensPerSecond, must, AtLeast: true);
        yield return new Target(row, Units.TokensPerSecond, should, AtLeast: true);
        yield return new Target(row, Units.ManagedKibibytes, 256);
        if (gibibytes is { } most) yield return new Target(row, Units.PeakGibibytes, most);
    }

    private static IEnumerable<Target> Softmax(int tokens, string heads) =>
        ((string[])["fwd", "fwd+bwd"]).Select(what => new Target($"softmax {what} N={tokens} {heads}", Units.PeerPercent, 55, AtLeast: true));
}
