using LaspNative.Runtime;
using LaspNative.Runtime.Cpu;
using LaspNative.Tests.Oracles;
using Xunit;

namespace LaspNative.Tests.Backends;

/// <summary>What the table of ops does not show of softmax attention on the CPU: threads, refusals, and that keys no query sees are never read.</summary>
public class CpuSoftmaxAttentionTests
{
    private const int B = 2, C = 210, M = 300, H = 4, Hk = 2, D = 24, E = 17;

    [Fact]
    public void The_number_of_threads_changes_no_bit()
    {
        float[][] one = Run(threads: 1);
        foreach (int threads in (int[])[2, 3, 8]) Assert.Equal(one, Run(threads));
    }

    [Fact]
    public void Keys_that_no_query_sees_are_not_read()
    {
        float[][] finite = Run(threads: 1), poisoned = Run(threads: 1, invisible: float.NaN);
        Assert.Equal(finite, poisoned);
    }

    [Fact]
    public void Extents_that_do_not_fit_are_refused_in_one_line()
    {
        using var device = new CpuDevice(1);
        using Tensor q = Tensor.Zeros([1, 5, 4, 8], DType.F32, device), k = Tensor.Zeros([1, 5, 3, 8], DType.F32, device), rows = Tensor.Zeros([1, 5, 4], DType.F32, device);
        using Tensor ranges = Tensor.Zeros([5, 2], DType.I64, device), x = Tensor.Zeros([2, 3], DType.F32, device), y = Tensor.Zeros([2, 3], DType.F32, device);
        AssertRefused("Hk dividing H", () => device.Backend.SoftmaxAttention(q, k, k, ranges, 0, 1, q, rows));
        AssertRefused("[1, 0]", () => device.Backend.Permute(x, [1, 0], y));
        AssertRefused("each dimension once", () => device.Backend.Permute(x, [0, 0], y));
    }

    private static void AssertRefused(string part, Action call)
    {
        LaspException error = Assert.Throws<LaspException>(call);
        Assert.Contains(part, error.Message, StringComparison.Ordinal);
        Assert.DoesNotContain('\n', error.Message);
    }

    /// <summary>o, logSumExp, dq, dk, dv of causal attention at global index 40; the last 50 keys are in nobody's sight.</summary>
    private static float[][] Run(int threads, float invisible = 1)
    {
        using var device = new CpuDevice(threads);
        using Tensor q = Values([B, C, H, D], 1, device), k = Values([B, M, Hk, D], 2, device), v = Values([B, M, Hk, E], 3, device), dO = Values([B, C, H, E], 4, device);
        using Tensor ranges = Tensor.FromSpan(SoftmaxAttentionOracle.Causal(40, C), [C, 2], device);
        for (int b = 0; b < B; b++)
        {
            k.Span<float>().Slice(((b * M) + C + 40) * Hk * D, (M - C - 40) * Hk * D).Fill(invisible);
            v.Span<float>().Slice(((b * M) + C + 40) * Hk * E, (M - C - 40) * Hk * E).Fill(invisible);
        }
        using Tensor o = Tensor.Empty(dO.Shape, DType.F32, device), logSumExp = Tensor.Empty([B, C, H], DType.F32, device), delta = Tensor.Empty([B, C, H], DType.F32, device);
        using Tensor dq = Tensor.Zeros(q.Shape, DType.F32, device), dk = Tensor.Zeros(k.Shape, DType.F32, device), dv = Tensor.Zeros(v.Shape, DType.F32, device);
        device.Backend.SoftmaxAttention(q, k, v, ranges, 0, 0.2, o, logSumExp);
        device.Backend.SoftmaxDelta(o, dO, delta);
        device.Backend.SoftmaxAttentionBackward(q, k, v, dO, logSumExp, delta, ranges, 0, 0.2, dq, dk, dv);
        return [o.ToArray<float>(), logSumExp.ToArray<float>(), dq.ToArray<float>(), dk.ToArray<float>(), dv.ToArray<float>()];
    }

    private static Tensor Values(Shape shape, int seed, Device device) => TestData.Tensor(TestData.Normal(shape.Count, seed), shape, DType.F32, device);
}
