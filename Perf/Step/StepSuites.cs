namespace LaspNative.Perf;

/// <summary>Cases that are run together. Those of two GPUs take the half of themselves on one first, so that their scaling can be told.</summary>
internal static class StepSuites
{
    private const string OneBillion = "--preset linear-llama3-1b --batch 1";
    private const string LongCase = "--checkpointing block --mlp-chunk 32768";

    public static IReadOnlyList<string> Names { get; } = ["one", "two", "ablation"];

    public static IEnumerable<string> Of(string name) => name switch
    {
        "one" => One(),
        "two" => Two(),
        _ => Ablation(),
    };

    private static IEnumerable<string> One()
    {
        foreach (string gate in (string[])["off", "on"])
        {
            yield return $"{OneBillion} --output-gate {gate} --seq-len 8192";
            yield return $"{OneBillion} --output-gate {gate} --seq-len 32768";
            yield return $"{OneBillion} --output-gate {gate} --seq-len 131072 --checkpointing block";
        }
    }

    /// <summary>Weak scaling with and without divided optimizer states, the hybrid, and all strategies at two lengths; what matters most comes first, and ring attention, whose left product is quadratic, last.</summary>
    private static IEnumerable<string> Two()
    {
        yield return $"{OneBillion} --ranks 1 --seq-len 32768";
        yield return $"{OneBillion} --ranks 2 --seq-len 65536 --strategy lasp2";
        yield return $"{OneBillion} --ranks 2 --seq-len 65536 --strategy lasp2 --zero 1";
        yield return $"{OneBillion} --ranks 2 --seq-len 65536 --strategy lasp1";
        yield return "--preset linear-llama3-1b-hybrid4 --batch 1 --ranks 2 --seq-len 65536";
        foreach (string strategy in (string[])["zeco", "ulysses"]) yield return $"{OneBillion} --ranks 2 --seq-len 65536 --strategy {strategy}";
        foreach (string strategy in (string[])["lasp2", "lasp1", "zeco", "ulysses"]) yield return $"{OneBillion} --ranks 2 --seq-len 262144 --strategy {strategy} {LongCase}";
        yield return $"{OneBillion} --ranks 2 --seq-len 65536 --strategy ring";
        yield return $"{OneBillion} --ranks 2 --seq-len 262144 --strategy ring {LongCase}";
    }

    /// <summary>
    /// LASP's ablation (arXiv 2404.02882, section 4.4) over two ranks: with blocks computed again, so that a state which is not kept is asked for twice, as there; kernel fusion is what
    /// <c>--separate-parts</c> takes away.
    /// </summary>
    private static IEnumerable<string> Ablation()
    {
        foreach (string fusion in (string[])["", " --separate-parts"])
            foreach (string cache in (string[])[" --keep-states", ""])
                yield return $"{OneBillion} --ranks 2 --seq-len 65536 --strategy lasp1 --checkpointing block{cache}{fusion}";
    }
}
