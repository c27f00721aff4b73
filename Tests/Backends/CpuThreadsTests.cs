using LaspNative.Runtime;
using LaspNative.Runtime.Cpu;
using Xunit;

namespace LaspNative.Tests.Backends;

/// <summary>The number of threads changes no bit of any op: work is split so that no sum's order depends on it.</summary>
public class CpuThreadsTests
{
    [Theory]
    [InlineData(DType.F32)]
    [InlineData(DType.BF16)]
    public void Linear_attention_and_its_gradients(DType dtype) => SameBits(device =>
    {
        const int b = 2, n = 150, h = 4, hk = 2, d = 24, e = 20;
        IBackend backend = device.Backend;
        var values = new Values(device, dtype);
        using Tensor q = values.Uniform([b, n, h, d]), k = values.Uniform([b, n, hk, d]), v = values.Uniform([b, n, hk, e]), dO = values.Uniform([b, n, h, e]);
        using Tensor decay = values.Decay(h), initial = values.State([b, h, d, e]), dFinal = values.State([b, h, d, e]);
        using Tensor o = values.Uniform([b, n, h, e]), state = values.State([b, h, d, e]), dState = values.State([b, h, d, e]), dDecay = values.Decay(h);
        using Tensor dq = values.Uniform([b, n, h, d]), dk = values.Uniform([b, n, hk, d]), dv = values.Uniform([b, n, hk, e]);
        backend.LinearAttentionState(k, v, decay, state);
        backend.LinearAttention(q, k, v, decay, initial, 0.2, o);
        backend.LinearAttentionBackwardState(q, dO, decay, 0.2, dState);
        backend.LinearAttentionBackwardQuery(k, v, dO, decay, initial, 0.2, dq);
        backend.LinearAttentionBackwardKeyValue(q, k, v, dO, decay, dFinal, 0.2, dk, dv);
        backend.LinearAttentionBackwardDecay(q, k, v, dO, decay, initial, dFinal, 0.2, dDecay);
        return Doubles(state, o, dState, dq, dk, dv, dDecay);
    });

    [Fact]
    public void Norms_embedding_and_loss() => SameBits(device =>
    {
        const int rows = 1500, width = 70;
        IBackend backend = device.Backend;
        var values = new Values(device, DType.F32);
        using Tensor x = values.Uniform([rows, width]), dy = values.Uniform([rows, width]), gate = values.Uniform([rows, width]), weight = values.Uniform([width]);
        using Tensor y = values.Uniform([rows, width]), dx = values.Uniform([rows, width]), dgate = values.Uniform([rows, width]);
        using Tensor inverse = values.Uniform([rows]), dWeight = values.Uniform([width]), table = values.Uniform([9, width]), losses = values.Uniform([rows]);
        using Tensor ids = Tensor.FromSpan(Enumerable.Range(0, rows).Select(r => r * 7 % 11).ToArray(), [rows], device);
        backend.GatedHeadNorm(x, weight, gate, 1e-5, y, inverse);
        backend.GatedHeadNormBackward(x, weight, gate, inverse, dy, dx, dgate, dWeight);
        backend.EmbeddingBackward(ids, dy, table);
        backend.CrossEntropyInPlace(x, ids, 0.1, losses);
        return Doubles(y, inverse, dx, dgate, dWeight, table, x, losses);
    });

    [Fact]
    public void Maps_and_sums_of_many_elements() => SameBits(device =>
    {
        const int count = 100_003;
        IBackend backend = device.Backend;
        var values = new Values(device, DType.F32);
        using Tensor x = values.Uniform([count]), y = values.Uniform([count]), z = values.Uniform([count]), w = values.Uniform([count]), sum = values.Uniform([1]), squares = values.Uniform([1]);
        backend.Silu(x, y);
        backend.SiluBackward(x, y, z);
        backend.AddScaled(z, 0.3, w);
        backend.Sum(w, sum);
        backend.AddSumOfSquares(w, squares);
        return Doubles(y, z, w, sum, squares);
    });

    private static void SameBits(Func<Device, double[]> run)
    {
        using var one = new CpuDevice(1);
        double[] expected = run(one);
        Assert.DoesNotContain(expected, double.IsNaN);
        foreach (int threads in (int[])[2, 3, 8])
        {
            using var many = new CpuDevice(threads);
            Assert.Equal(expected, run(many));
        }
    }

    private static double[] Doubles(params Tensor[] tensors) => [.. tensors.SelectMany(t => t.ToDoubles())];

    /// <summary>The same numbers for every device, by order of the requests.</summary>
    private sealed class Values(Device device, DType dtype)
    {
        private readonly Random _random = new(11);

        public Tensor Uniform(Shape shape) => Uniform(shape, dtype);

        public Tensor State(Shape shape) => Uniform(shape, dtype.Accumulator());

        public Tensor Decay(int heads) => Tensor.FromSpan(Enumerable.Range(0, heads).Select(h => -0.01f * (h + 1)).ToArray(), [heads], device);

        private Tensor Uniform(Shape shape, DType type)
        {
            using Tensor source = Tensor.FromSpan(Enumerable.Range(0, (int)shape.Count).Select(_ => (_random.NextSingle() * 2) - 1).ToArray(), shape, device);
            Tensor tensor = Tensor.Empty(shape, type, device);
            device.Backend.Cast(source, tensor);
            return tensor;
        }
    }
}
