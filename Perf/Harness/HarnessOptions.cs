using System.Globalization;
using LaspNative.Runtime;

namespace LaspNative.Perf;

/// <summary>What "gpu" may be told.</summary>
/// <param name="Out">Where the record goes.</param>
/// <param name="Compare">An earlier record.</param>
/// <param name="Peer">Times of a peer in milliseconds by row name (peer_sdpa.py).</param>
/// <param name="Only">Parts of names; a row is run when its name holds one of them. Empty: all rows.</param>
/// <param name="Lengths">Tokens; null: those of the table.</param>
/// <param name="Ranks">More than 1: the rows over several GPUs instead.</param>
internal sealed record HarnessOptions(string Out, string? Compare, string? Peer, IReadOnlyList<string> Only, IReadOnlyList<int>? Lengths, int Ranks)
{
    public const string Usage = "gpu [--out FILE.json] [--compare FILE.json] [--peer FILE.json] [--only NAME,...] [--lengths N,...] [--ranks W]";

    public static HarnessOptions Parse(ReadOnlySpan<string> arguments)
    {
        var options = new HarnessOptions("gpu-record.json", null, null, [], null, 1);
        for (int i = 0; i < arguments.Length; i += 2)
        {
            string name = arguments[i];
            string value = i + 1 < arguments.Length ? arguments[i + 1] : throw new LaspException($"{name} needs a value; usage: {Usage}");
            options = name switch
            {
                "--out" => options with { Out = value },
                "--compare" => options with { Compare = value },
                "--peer" => options with { Peer = value },
                "--only" => options with { Only = value.Split(',', StringSplitOptions.TrimEntries | StringSplitOptions.RemoveEmptyEntries) },
                "--lengths" => options with { Lengths = [.. value.Split(',').Select(n => Number(name, n))] },
                "--ranks" => options with { Ranks = Number(name, value) },
                _ => throw new LaspException($"unknown option {name}; usage: {Usage}"),
            };
        }
        return options;
    }

    public IReadOnlyList<int> LengthsOrDefault(IReadOnlyList<int> ofTheTable) => Lengths ?? ofTheTable;

    /// <summary>Whether a row is to be run.</summary>
    public bool Wants(string row) => Only.Count == 0 || Only.Any(part => row.Contains(part, StringComparison.OrdinalIgnoreCase));

    private static int Number(string option, string text) =>
        int.TryParse(text, NumberStyles.None, CultureInfo.InvariantCulture, out int n) && n > 0 ? n : throw new LaspException($"{option} takes positive whole numbers, got '{text}'");
}
