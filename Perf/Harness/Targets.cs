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

    /// <summary>Time in which the compute stream stands waiting for a message, as a share of the call's.</summary>
    public const string ExposedPercent = "% exposed";

    /// <summary>What the call takes longer than the same call with messages that move nothing, as a share of its time.</summary>
    public const string SilentPercent = "% over silence";

    /// <summary>Time over that of the lasp2 strategy on the same inputs.</summary>
    public const string TimesLasp2 = "x lasp2";
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
    ];

    /// <summary>Elementwise ops all must reach the same, whatever their names.</summary>
    public static Target Elementwise(string row) => new(row, Units.CopyPercent, 85, AtLeast: true);

    public static IEnumerable<Target> Of(Measurement row)
    {
        IEnumerable<Target> named = All.Where(t => t.Row == row.Name);
        return row.Figures.ContainsKey(Units.CopyPercent) ? named.Append(Elementwise(row.Name)) : named;
    }

    /// <summary>lasp2 is faster than ring attention, and no more than 1% slower than lasp1.</summary>
    private static IEnumerable<Target> Strategies(int tokens) =>
        ((string[])["fwd", "fwd+bwd"]).SelectMany(what => (Target[])
        [
            new($"ring {what} N={tokens} W=2", Units.TimesLasp2, 1, AtLeast: true),
            new($"lasp1 {what} N={tokens} W=2", Units.TimesLasp2, 0.99, AtLeast: true),
        ]);

    private static IEnumerable<Target> Softmax(int tokens, string heads) =>
        ((string[])["fwd", "fwd+bwd"]).Select(what => new Target($"softmax {what} N={tokens} {heads}", Units.PeerPercent, 55, AtLeast: true));
}
