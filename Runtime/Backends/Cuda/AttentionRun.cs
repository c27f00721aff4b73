namespace LaspNative.Runtime.Cuda;

/// <summary>The extents of one linear-attention call, read off its tensors, and how the GPU cuts its tokens.</summary>
/// <param name="Heads">Query heads H; states and decays have as many.</param>
/// <param name="KeyHeads">Key and value heads Hk, a divisor of H.</param>
/// <param name="KeyWidth">D.</param>
/// <param name="ValueWidth">E.</param>
internal readonly record struct AttentionRun(long Batches, long Tokens, long Heads, long KeyHeads, long KeyWidth, long ValueWidth)
{
    /// <summary>Tokens of a sub-chunk, and columns of a slice: TILE of attention_tiles.cuh.</summary>
    public const long Tile = 64;

    public const long MaxWidth = 256;

    /// <summary>More segments are more states: they must gain this much.</summary>
    public const double WorthIt = 0.97;

    private const long SegmentsPerMultiprocessor = 4;

    /// <summary>Tokens of a segment, a multiple of 64. Segments run side by side, each entered with its own state.</summary>
    public long SegmentTokens { get; init; }

    /// <summary>Segments of a range, where the run is walked in ranges; 0: all.</summary>
    public long RangeSegments { get; init; }

    /// <summary>Several packed runs, which are cut each by itself.</summary>
    public PackedCut? Packed { get; init; }

    /// <summary>0 for a run without tokens.</summary>
    public long Segments => Packed is not null ? Packed.Segments : Tokens == 0 ? 0 : (Tokens + SegmentTokens - 1) / SegmentTokens;

    /// <summary>Segments that have a state; they are the first.</summary>
    public long States => Packed is not null ? Packed.States : Segments;

    /// <summary>Whether a segment is entered with what another leaves.</summary>
    public bool IsCut => Packed is not null ? Packed.IsCut : Segments > 1;

    /// <summary>Runs with initial and final states: batch rows, or packed ones.</summary>
    public long Runs => Packed is not null ? Packed.Documents : Batches;

    /// <summary>Elements of an initial or final state.</summary>
    public long EdgeElements => Runs * Heads * KeyWidth * ValueWidth;

    /// <summary>Ranges that a gradient which keeps states of chunks walks one after another; all but the last are as long as the first.</summary>
    public long Ranges => RangeSegments == 0 ? 1 : (Segments + RangeSegments - 1) / RangeSegments;

    /// <summary>States that hold what the segments leave: one each, and room for the decays over them, D per head (none for one segment, which needs none).</summary>
    public long StoredSegments => Segments <= 1 ? Segments : Segments + ((Segments + ValueWidth - 1) / ValueWidth);

    /// <summary>Elements of one state of every head: B*H*D*E.</summary>
    public long StateElements => Batches * Heads * KeyWidth * ValueWidth;

    /// <summary>64 x 64 tiles of one head's state.</summary>
    public long Tiles => Slices(KeyWidth) * Slices(ValueWidth);

    /// <summary>One of the <see cref="Ranges"/>, of the same segments.</summary>
    public AttentionRun Range(long index) => RangeSegments == 0 ? this : this with { Tokens = Math.Min(RangeSegments * SegmentTokens, Tokens - RangeStart(index)), RangeSegments = 0 };

    /// <summary>First token of a range.</summary>
    public long RangeStart(long index) => index * RangeSegments * SegmentTokens;

    /// <summary>Where the states of a range begin among those of all segments.</summary>
    public nint RangeStates(nint segments, long index) => segments + (nint)(index * RangeSegments * StateElements * sizeof(float));

    public static long Slices(long extent) => (extent + Tile - 1) / Tile;

    /// <summary>Reads q (or a tensor of its shape) [B,N,H,D], k [B,N,Hk,D] and v [B,N,Hk,E].</summary>
    public static AttentionRun Of(Tensor q, Tensor k, Tensor v)
    {
        if (q.Shape.Rank != 4 || k.Shape.Rank != 4 || v.Shape.Rank != 4) throw Mismatch(q, k, v);
        var run = new AttentionRun(q.Shape[0], q.Shape[1], q.Shape[2], k.Shape[2], q.Shape[3], v.Shape[3]);
        bool fits = k.Shape == [run.Batches, run.Tokens, run.KeyHeads, run.KeyWidth] && v.Shape == [run.Batches, run.Tokens, run.KeyHeads, run.ValueWidth];
        if (!fits || run.KeyHeads < 1 || run.Heads % run.KeyHeads != 0) throw Mismatch(q, k, v);
        return run.Checked();
    }

    /// <summary>Reads k [B,N,Hk,D] and v [B,N,Hk,E] where nothing has the shape of q; H comes from the state [B,H,D,E], of packed runs [runs,H,D,E], or else from the segments [..,H,D,E].</summary>
    public static AttentionRun OfState(Tensor k, Tensor v, Tensor? state, Tensor? segments, PackedRuns? runs)
    {
        Tensor states = state ?? segments ?? throw new LaspException("the state of a run of linear attention needs a place: state, segments or both");
        if (k.Shape.Rank != 4 || v.Shape.Rank != 4 || states.Shape.Rank < 4) throw Mismatch(k, v, states);
        var run = new AttentionRun(k.Shape[0], k.Shape[1], states.Shape[states.Shape.Rank - 3], k.Shape[2], k.Shape[3], v.Shape[3]);
        bool fits = v.Shape == [run.Batches, run.Tokens, run.KeyHeads, run.ValueWidth] && (state is null || state.Shape == [runs?.Count ?? run.Batches, run.Heads, run.KeyWidth, run.ValueWidth]);
        if (!fits || run.KeyHeads < 1 || run.Heads % run.KeyHeads != 0) throw Mismatch(k, v, states);
        return run.Checked();
    }

    private AttentionRun Checked()
    {
        if (KeyWidth is < 1 or > MaxWidth || ValueWidth is < 1 or > MaxWidth)
            throw new LaspException($"linear attention on a GPU takes heads of 1 to {MaxWidth} channels, got {KeyWidth} for keys and {ValueWidth} for values");
        return this with { SegmentTokens = Slices(Tokens) * Tile };
    }

    /// <summary>
    /// Cut so that the heads' segments, one block each, fill the multiprocessors in whole waves, at the least cost in steps of one sub-chunk. A run that is not cut is one walk per pass; a cut one is
    /// preceded by a pass for the segments' states and one that puts them in order.
    /// </summary>
    public AttentionRun CutFor(int multiprocessors)
    {
        long chunks = Slices(Tokens), heads = Math.Max(1, Batches * Heads), best = 1;
        double least = Cost(false, chunks * Waves(heads), 0);
        for (long segments = 2; segments <= Math.Min(chunks, SegmentsPerMultiprocessor * multiprocessors / heads); segments++)
        {
            double cost = Cost(true, (chunks + segments - 1) / segments * Waves(heads * segments), heads * segments);
            if (cost < WorthIt * least) (best, least) = (segments, cost);
        }
        return this with { SegmentTokens = Slices((Tokens + best - 1) / best) * Tile };

        long Waves(long blocks) => (blocks + multiprocessors - 1) / multiprocessors;
    }

    /// <summary>A single row that is longer than this, in tokens times heads, is cut into even ranges, and these as runs of their own would be.</summary>
    public AttentionRun CutFor(int multiprocessors, long headTokens)
    {
        long ranges = Batches == 1 ? ((Tokens * Heads) + headTokens - 1) / headTokens : 1;
        if (ranges <= 1) return CutFor(multiprocessors);
        AttentionRun range = (this with { Tokens = Slices((Tokens + ranges - 1) / ranges) * Tile }).CutFor(multiprocessors);
        return range with { Tokens = Tokens, RangeSegments = range.Segments };
    }

    /// <summary>
    /// What all passes of a call cost, forward and backward, in the time that a cut run takes for one sub-chunk, as measured on an H200: the sub-chunks that follow one another, and if anything is cut the
    /// passes that find the segments' states and put them in order.
    /// </summary>
    public static double Cost(bool isCut, double chunks, long states) => isCut ? chunks + 4 + (states / 64.0) : 0.8 * chunks;

    private static LaspException Mismatch(Tensor a, Tensor b, Tensor c) =>
        new($"linear attention takes q [B,N,H,D], k [B,N,Hk,D], v [B,N,Hk,E] and states [B,H,D,E] with H a multiple of Hk; got {a.Shape}, {b.Shape}, {c.Shape}");
}
