using LaspNative.Runtime;
using LaspNative.Runtime.Cuda;
using Xunit;

namespace LaspNative.Tests.Backends;

/// <summary>Gradients of long runs, range by range: with a bound so low that the rows of the table have several ranges, or several groups of batch rows.</summary>
public class AttentionRangesTests(SharedGpu gpu) : IClassFixture<SharedGpu>
{
    private const int Multiprocessors = 132;
    private const long Heads = 4, Width = 64;

    /// <summary>Tokens times heads at a time: ranges of two sub-chunks, and of several segments.</summary>
    private static readonly long[] s_bounds = [256, 1400];

    /// <summary>The rows whose decay has tokens, long and wide enough for the kernels that keep states of chunks.</summary>
    public static TheoryData<string> Names =>
        [.. OpCases.Names.Select(row => row.Data).Where(name => name.StartsWith("linear attention", StringComparison.Ordinal) && name.Contains(" per ", StringComparison.Ordinal) && Extent(name, "N=") >= 300 && Extent(name, "D=") >= 64)];

    [Theory]
    [InlineData(16, 32_768)]
    [InlineData(16, 131_072)]
    [InlineData(1, 1_000)]
    public void What_is_within_the_bound_is_cut_as_without_one(long heads, long tokens)
    {
        AttentionRun run = Run(heads, tokens);
        Assert.Equal(run.CutFor(Multiprocessors), run.CutFor(Multiprocessors, heads * tokens));
        Assert.Equal(1, run.CutFor(Multiprocessors, heads * tokens).Ranges);
    }

    [Theory]
    [InlineData(16, 1 << 20, 1 << 21)]
    [InlineData(16, 131_073, 1 << 21)]
    [InlineData(200, 100_001, 1 << 21)]
    [InlineData(1, 5_000_000, 1 << 21)]
    [InlineData(2, 130, 256)]
    [InlineData(2, 64, 1)]
    public void Ranges_are_whole_segments_that_hold_every_token_once(long heads, long tokens, long bound)
    {
        AttentionRun run = Run(heads, tokens).CutFor(Multiprocessors, bound), first = run.Range(0);
        Assert.True(run.Ranges > 1 || tokens <= AttentionRun.Tile, "one range holds more than the bound");
        Assert.InRange(first.Tokens, 1, Math.Max(AttentionRun.Tile, (bound / heads) + (AttentionRun.Tile * (1 + first.Segments))));
        long at = 0, segments = 0;
        for (long i = 0; i < run.Ranges; i++)
        {
            AttentionRun range = run.Range(i);
            Assert.Equal((at, segments), (run.RangeStart(i), i * first.Segments));
            Assert.Equal(run.SegmentTokens, range.SegmentTokens);
            Assert.Equal(1, range.Ranges);
            Assert.True(range.Segments == first.Segments || i == run.Ranges - 1, $"range {i} has {range.Segments} segments, the first {first.Segments}");
            (at, segments) = (at + range.Tokens, segments + range.Segments);
        }
        Assert.Equal((run.Tokens, run.Segments), (at, segments));
    }

    [Theory]
    [MemberData(nameof(Names))]
    [Trait("Category", "Gpu")]
    public void BF16_in_ranges_errs_at_most_twice_the_naive_op(string name)
    {
        Device device = gpu.Open();
        OpCase row = OpCases.Get(name);
        foreach (long bound in s_bounds)
        {
            Bound(device, bound);
            row.AssertParity(device, DType.BF16);
        }
    }

    /// <summary>Twice the tokens take twice the segments' states, and nothing more. Other kernels than Hopper's hold fp32 states of every sub-chunk.</summary>
    [Theory]
    [InlineData(4)]
    [InlineData(2)]
    [Trait("Category", "Gpu")]
    public void The_workspace_does_not_grow_with_the_chunks(int keyHeads)
    {
        const long Tokens = 65_536, AtOnce = 1 << 16;
        (long peak, long segments) = Workspace(keyHeads, Tokens, AtOnce);
        (long peakOfTwice, long segmentsOfTwice) = Workspace(keyHeads, 2 * Tokens, AtOnce);
        const long Alignment = 1024, StateBytes = Heads * Width * Width * sizeof(float), ChunkStates = 2L * 128 * 128 * 2;
        Assert.InRange(peakOfTwice - peak, 0, (2 * (segmentsOfTwice - segments) * StateBytes) + Alignment);
        Assert.True(peakOfTwice < Tokens * Heads / AttentionRun.Tile * ChunkStates, $"{peakOfTwice} bytes of workspace are as many as the states of all chunks take");
    }

    /// <summary>The most workspace that the gradients of one run take, asked for together and one by one, and the segments that their states are kept of.</summary>
    private static (long Bytes, long Segments) Workspace(long keyHeads, long tokens, long atOnce)
    {
        using CudaDevice device = Gpu.Open();
        if (device.Kernels.Architecture != "sm_90a") Assert.Skip($"skipped: the kernels are those of {device.Kernels.Architecture}, whose states of sub-chunks have no bound");
        Bound(device, atOnce);
        IBackend backend = device.Backend;
        var made = new List<Tensor>();
        Tensor New(double value, DType dtype, params ReadOnlySpan<long> extents)
        {
            Tensor x = Tensor.Empty(new Shape(extents), dtype, device);
            backend.Fill(value, x);
            made.Add(x);
            return x;
        }
        Tensor q = New(0.5, DType.BF16, 1, tokens, Heads, Width), k = New(0.25, DType.BF16, 1, tokens, keyHeads, Width), dq = New(0, DType.BF16, 1, tokens, Heads, Width);
        Tensor dk = New(0, DType.BF16, 1, tokens, keyHeads, Width), dv = New(0, DType.BF16, 1, tokens, keyHeads, Width);
        Tensor decay = New(-0.1, DType.F32, 1, tokens, Heads, Width), dDecay = New(0, DType.F32, 1, tokens, Heads, Width);
        const double Scale = 1.0 / Width;
        backend.LinearAttentionBackward(q, k, k, q, decay, null, null, Scale, dq, dk, dv, dDecay);
        backend.LinearAttentionBackwardQuery(k, k, q, decay, null, Scale, dq);
        backend.LinearAttentionBackwardKeyValueDecay(q, k, k, q, decay, null, null, Scale, dk, dv, dDecay);
        backend.LinearAttentionBackwardKeyValue(q, k, k, q, decay, null, Scale, dk, dv);
        backend.LinearAttentionBackwardDecay(q, k, k, q, decay, null, null, Scale, dDecay);
        Assert.Equal(0, backend.LinearAttentionPaths(q, k, k, q, decay));
        device.Synchronize();
        (long, long) result = (device.Memory.PeakOf(MemoryCategory.Workspace), backend.LinearAttentionSegments(1, tokens, Heads, Width, Width));
        foreach (Tensor x in made) x.Dispose();
        return result;
    }

    private static void Bound(Device device, long headTokens) => ((CudaBackend)device.Backend).HeadTokensAtOnce = headTokens;

    private static AttentionRun Run(long heads, long tokens) => new AttentionRun(1, tokens, heads, heads, 128, 128);

    private static long Extent(string row, string letter) => long.Parse(row.Split(letter)[1].Split(' ')[0], System.Globalization.CultureInfo.InvariantCulture);
}
