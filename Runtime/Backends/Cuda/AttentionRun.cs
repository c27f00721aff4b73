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

    /// <summary>A shorter segment would cost more in states than it gains.</summary>
    private const long ShortestSegment = 256;

    /// <summary>Of the multiprocessors' time: a cut that uses this much is good enough, and fewer segments mean fewer states.</summary>
    private const double GoodUse = 0.94;

    /// <summary>Tokens of a segment, a multiple of 64. Segments run side by side, each entered with its own state.</summary>
    public long SegmentTokens { get; init; }

    /// <summary>0 for a run without tokens.</summary>
    public long Segments => Tokens == 0 ? 0 : (Tokens + SegmentTokens - 1) / SegmentTokens;

    /// <summary>States that hold what the segments leave: one each, and room for the decays over them, D per head (none for one segment, which needs none).</summary>
    public long StoredSegments => Segments <= 1 ? Segments : Segments + ((Segments + ValueWidth - 1) / ValueWidth);

    /// <summary>Elements of one state of every head: B*H*D*E.</summary>
    public long StateElements => Batches * Heads * KeyWidth * ValueWidth;

    /// <summary>64 x 64 tiles of one head's state.</summary>
    public long Tiles => Slices(KeyWidth) * Slices(ValueWidth);

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

    /// <summary>Reads k [B,N,Hk,D] and v [B,N,Hk,E] where nothing has the shape of q; H comes from the state [B,H,D,E].</summary>
    public static AttentionRun OfState(Tensor k, Tensor v, Tensor state)
    {
        if (k.Shape.Rank != 4 || v.Shape.Rank != 4 || state.Shape.Rank != 4) throw Mismatch(k, v, state);
        var run = new AttentionRun(k.Shape[0], k.Shape[1], state.Shape[1], k.Shape[2], k.Shape[3], v.Shape[3]);
        bool fits = v.Shape == [run.Batches, run.Tokens, run.KeyHeads, run.ValueWidth] && state.Shape == [run.Batches, run.Heads, run.KeyWidth, run.ValueWidth];
        if (!fits || run.KeyHeads < 1 || run.Heads % run.KeyHeads != 0) throw Mismatch(k, v, state);
        return run.Checked();
    }

    private AttentionRun Checked()
    {
        if (KeyWidth is < 1 or > MaxWidth || ValueWidth is < 1 or > MaxWidth)
            throw new LaspException($"linear attention on a GPU takes heads of 1 to {MaxWidth} channels, got {KeyWidth} for keys and {ValueWidth} for values");
        return this with { SegmentTokens = Slices(Tokens) * Tile };
    }

    /// <summary>Cut so that the heads' segments, one block each, fill the multiprocessors in whole waves; segments stay long enough to pay.</summary>
    public AttentionRun CutFor(int multiprocessors)
    {
        long heads = Math.Max(1, Batches * Heads), most = Math.Clamp(Tokens / ShortestSegment, 1, Math.Max(1, 4 * multiprocessors / heads));
        long best = 1;
        for (long segments = 1; segments <= most && Use(best) < GoodUse; segments++)
            if (Use(segments) > Use(best)) best = segments;
        return this with { SegmentTokens = Slices((Tokens + best - 1) / best) * Tile };

        double Use(long segments) => (double)(heads * segments) / ((heads * segments + multiprocessors - 1) / multiprocessors * multiprocessors);
    }

    private static LaspException Mismatch(Tensor a, Tensor b, Tensor c) =>
        new($"linear attention takes q [B,N,H,D], k [B,N,Hk,D], v [B,N,Hk,E] and states [B,H,D,E] with H a multiple of Hk; got {a.Shape}, {b.Shape}, {c.Shape}");
}
