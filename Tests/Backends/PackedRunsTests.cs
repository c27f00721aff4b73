using System.Runtime.InteropServices;
using LaspNative.Runtime;
using LaspNative.Runtime.Cuda;
using Xunit;

namespace LaspNative.Tests.Backends;

/// <summary>Packed runs: what they are made of, and that a GPU needs no more launches for many than for a few. What they compute, rows of <see cref="OpCases"/> compare with the oracle.</summary>
public class PackedRunsTests
{
    [Fact]
    public void Boundaries_that_are_none_are_refused() =>
        Assert.All((long[][])[[], [0], [1, 2], [0, 3, 3, 4], [0, 4, 2]], boundaries => Assert.Throws<LaspException>(() => new PackedRuns(boundaries)));

    [Fact]
    public void A_run_is_its_part_of_every_tensor()
    {
        using Device device = Device.Open("cpu:1");
        using Tensor x = Tensor.FromSpan(Enumerable.Range(0, 12).Select(i => (float)i).ToArray(), [1, 6, 2], device), states = Tensor.FromSpan([7f, 8f, 9f], [3, 1], device);
        using var runs = new PackedRuns(0, 1, 4, 6);
        var seen = new List<double[]>();
        runs.ForEach(r => seen.Add([.. r.Tokens(x).ToDoubles(), .. r.State(states).ToDoubles()]));
        Assert.Equal([[0, 1, 7], [2, 3, 4, 5, 6, 7, 8], [8, 9, 10, 11, 9]], seen);
    }

    /// <summary>As the kernels read it: every token lies in one segment of its own run, and every state belongs to one segment; those with states come first.</summary>
    [Theory]
    [InlineData(false)]
    [InlineData(true)]
    public void A_cut_covers_every_run_once(bool everyState)
    {
        using Device device = Device.Open("cpu:1");
        int cuts = 0;
        for (int seed = 0; seed < 40; seed++)
        {
            var random = new Random(seed);
            int longest = 1 << random.Next(1, 16);
            var boundaries = new List<long> { 0 };
            for (int i = random.Next(1, 40); i > 0; i--) boundaries.Add(boundaries[^1] + random.Next(1, longest));
            using var runs = new PackedRuns([.. boundaries]);
            PackedCut cut = PackedCut.Of(runs, heads: random.Next(1, 17), blocksAtOnce: 132, everyState, device);
            CheckCut(runs, cut, everyState || !cut.IsCut);
            if (cut.IsCut) cuts++;
        }
        Assert.InRange(cuts, 5, 35); // of both kinds
    }

    /// <summary>Where cutting gains nothing a run stays whole, but for what a row can count.</summary>
    [Fact]
    public void No_segment_has_more_tokens_than_its_row_can_count()
    {
        using Device device = Device.Open("cpu:1");
        using var runs = new PackedRuns(0, (1L << 31) + 100, (1L << 31) + 164);
        PackedCut cut = PackedCut.Of(runs, heads: 1, blocksAtOnce: 1, everyState: false, device);
        CheckCut(runs, cut, everyState: false);
        Assert.InRange(cut.Segments, 3, 4);
    }

    private static void CheckCut(PackedRuns runs, PackedCut cut, bool everyState)
    {
        var rows = new (long First, int Tokens, int State)[cut.Segments];
        for (int i = 0; i < rows.Length; i++) rows[i] = (Word(cut.SegmentRows, 2 * i), (int)(Word(cut.SegmentRows, (2 * i) + 1) & uint.MaxValue), (int)(Word(cut.SegmentRows, (2 * i) + 1) >> 32));
        long at = 0;
        foreach ((long first, int tokens, _) in rows.OrderBy(r => r.First))
        {
            Assert.Equal(at, first);
            at += tokens;
        }
        Assert.Equal((runs.Tokens, runs.Count), (at, (int)cut.Documents));
        Assert.Equal(Enumerable.Range(0, (int)cut.States), rows.Take((int)cut.States).Select(r => r.State).Order());
        Assert.All(rows.Skip((int)cut.States), r => Assert.Equal(-1, r.State));
        var segments = rows.ToDictionary(r => r.First);
        var described = new HashSet<long>();
        for (int i = 0; i < cut.Runs; i++)
        {
            (long state, long run, long tokens, long length) = (Word(cut.RunRows, 4 * i), Word(cut.RunRows, (4 * i) + 1), Word(cut.RunRows, (4 * i) + 2), Word(cut.RunRows, (4 * i) + 3));
            Assert.True(described.Add(run) && tokens == runs.Length((int)run) && length % 64 == 0, $"run {run} of {tokens} tokens in segments of {length}");
            for (long start = 0; start < tokens; start += length)
                Assert.Equal((runs.Start((int)run) + start, (int)Math.Min(length, tokens - start), (int)(state + (start / length))), segments[runs.Start((int)run) + start]);
        }
        if (everyState) Assert.Equal(runs.Count, described.Count);
        else Assert.Equal(rows.Length - cut.States, runs.Count - described.Count); // the others are whole
    }

    private static long Word(nint table, int index) => Marshal.ReadInt64(table, index * sizeof(long));

    [Theory]
    [InlineData(DType.BF16)]
    [InlineData(DType.F32)]
    [Trait("Category", "Gpu")]
    public void Many_short_runs_take_one_launch_per_pass(DType dtype)
    {
        const int H = 16, D = 64, Tokens = 40;
        using CudaDevice device = Gpu.Open();
        foreach (int count in (int[])[2, 50])
        {
            Shape shape = [1, count * Tokens, H, D];
            using Tensor x = Tensor.Zeros(shape, dtype, device), dq = Tensor.Empty(shape, dtype, device), dk = Tensor.Empty(shape, dtype, device), dv = Tensor.Empty(shape, dtype, device);
            using Tensor decay = Tensor.Zeros([H], DType.F32, device);
            using var runs = new PackedRuns([.. Enumerable.Range(0, count + 1).Select(i => (long)i * Tokens)]);
            Assert.Equal(1, Launches(device, b => b.LinearAttention(x, x, x, decay, null, 1, dq, runs: runs)));
            Assert.Equal(1, Launches(device, b => b.LinearAttentionBackwardQuery(x, x, x, decay, null, 1, dq, runs: runs)));
            Assert.InRange(Launches(device, b => b.LinearAttentionBackwardKeyValue(x, x, x, x, decay, null, 1, dk, dv, runs: runs)), 1, 2);
        }
    }

    private static long Launches(CudaDevice device, Action<IBackend> call)
    {
        long before = device.Kernels.LaunchCount;
        call(device.Backend);
        return device.Kernels.LaunchCount - before;
    }
}
