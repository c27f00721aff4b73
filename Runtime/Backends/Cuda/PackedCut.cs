namespace LaspNative.Runtime.Cuda;

/// <summary>
/// How the GPU cuts packed runs, as the kernels read it: SegmentRow and RunRow of attention_tiles.cuh and linear_attention_state.cu. Each run is cut by itself, so that every pass is one launch for all
/// of them. A segment has a state of its own only where one enters it: a short run that starts from zero has none, whatever the number of runs.
/// </summary>
internal sealed class PackedCut : IDisposable
{
    /// <summary>Words of a SegmentRow and of a RunRow.</summary>
    private const int SegmentWords = 2, RunWords = 4;

    /// <summary>A SegmentRow counts tokens in 31 bits, and the segments of a run may be half as long again as was aimed at.</summary>
    private const long ShortestSegment = 256, LongestSegment = 1L << 30;

    private readonly Tensor _rows;
    private readonly long _states;

    private PackedCut(PackedRuns runs, long heads, int blocksAtOnce, bool everyState, Device device)
    {
        Documents = runs.Count;
        long segmentTokens = BestSegment(runs, heads, blocksAtOnce);
        var cuts = Enumerable.Range(0, runs.Count).Select(i => (Run: i, Tokens: runs.Length(i), Segment: EvenSegment(runs.Length(i), segmentTokens))).ToArray();
        IsCut = cuts.Any(c => c.Tokens > c.Segment);
        // Long segments first: those that start late should be short. Without cuts a state belongs to a run, so that initial states are what enters.
        var ordered = IsCut ? cuts.OrderByDescending(c => everyState || c.Tokens > c.Segment).ThenByDescending(c => c.Segment).ToArray() : [.. cuts.OrderByDescending(c => c.Tokens)];
        var segments = new List<long>();
        var runRows = new List<long>();
        foreach ((int run, long tokens, long segment) in ordered)
        {
            bool hasState = !IsCut || everyState || tokens > segment;
            long first = IsCut ? _states : run;
            if (hasState) runRows.AddRange([first, run, tokens, segment]);
            for (long at = 0; at < tokens; at += segment)
                segments.AddRange([runs.Start(run) + at, Math.Min(segment, tokens - at) | ((hasState ? first + (at / segment) : -1) << 32)]);
            if (hasState) _states += (tokens + segment - 1) / segment;
        }
        (Segments, Runs) = (segments.Count / SegmentWords, runRows.Count / RunWords);
        _rows = Tensor.FromSpan([.. segments, .. runRows], [segments.Count + runRows.Count], device, MemoryCategory.Workspace);
    }

    /// <summary>All runs, that is rows of initial and final states.</summary>
    public long Documents { get; }

    public long Segments { get; }

    /// <summary>Segments with a state; they come first.</summary>
    public long States => _states;

    /// <summary>Runs whose segments have states.</summary>
    public long Runs { get; }

    /// <summary>Whether any run has more than one segment.</summary>
    public bool IsCut { get; }

    public nint SegmentRows => _rows.Pointer;

    public nint RunRows => _rows.Pointer + (nint)(Segments * SegmentWords * sizeof(long));

    /// <summary>The cut of these runs on this device, which computes so many blocks at once, made once. <paramref name="everyState"/>: every segment has a state.</summary>
    public static PackedCut Of(PackedRuns runs, long heads, int blocksAtOnce, bool everyState, Device device) =>
        runs.Keep((device, heads, blocksAtOnce, everyState), () => new PackedCut(runs, heads, blocksAtOnce, everyState, device));

    /// <summary>The cut, of halves of halves of all tokens (or of as many as a segment may have), that costs least.</summary>
    private static long BestSegment(PackedRuns runs, long heads, int blocksAtOnce)
    {
        long longest = Math.Min(runs.Tokens, LongestSegment), best = longest;
        double least = double.PositiveInfinity;
        for (long segment = longest; segment >= ShortestSegment || segment == longest; segment /= 2)
        {
            double cost = CostOf(runs, segment, heads, blocksAtOnce);
            if (cost < AttentionRun.WorthIt * least) (best, least) = (segment, cost);
        }
        return best;
    }

    /// <summary>Blocks run in waves, the longest first; a wave lasts as long as its first block.</summary>
    private static double CostOf(PackedRuns runs, long segmentTokens, long heads, int blocksAtOnce)
    {
        var cuts = new (long Segment, long Count)[runs.Count];
        for (int i = 0; i < cuts.Length; i++)
        {
            long tokens = runs.Length(i), segment = EvenSegment(tokens, segmentTokens);
            cuts[i] = (segment, (tokens + segment - 1) / segment);
        }
        Array.Sort(cuts, (a, b) => b.Segment.CompareTo(a.Segment));
        double chunks = 0;
        long blocks = 0, waves = 0, states = 0;
        foreach ((long segment, long count) in cuts)
        {
            blocks += count * heads;
            long begun = (blocks + blocksAtOnce - 1) / blocksAtOnce; // so far
            chunks += (begun - waves) * (double)segment / AttentionRun.Tile;
            waves = begun;
            if (count > 1) states += count * heads;
        }
        return AttentionRun.Cost(states > 0, chunks, states);
    }

    /// <summary>About <paramref name="segmentTokens"/> tokens, a multiple of a sub-chunk, and as many for all segments of a run but the last.</summary>
    private static long EvenSegment(long tokens, long segmentTokens)
    {
        long parts = Math.Max(1, (long)Math.Round((double)tokens / segmentTokens));
        return AttentionRun.Slices((tokens + parts - 1) / parts) * AttentionRun.Tile;
    }

    public void Dispose() => _rows.Dispose();
}
