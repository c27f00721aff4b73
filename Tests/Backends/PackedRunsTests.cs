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
