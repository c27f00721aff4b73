using LaspNative.Runtime;
using LaspNative.Runtime.Cpu;

namespace LaspNative.Perf;

/// <summary>
/// One linear-attention shape with enough sets of random inputs to exceed the L2, checked against the CPU backend in fp64 (which the tests hold to the naive definitions).
/// </summary>
internal sealed class AttentionProblem : IDisposable
{
    private const long RotateBytes = 256L << 20;
    private readonly Device _device;
    private readonly Tensor[][] _sets; // q, k, v, dO of each set, [1, N, H, D]
    private readonly Tensor _decay; // [H]
    private readonly Tensor _o;
    private readonly Tensor _dq;
    private readonly Tensor _dk;
    private readonly Tensor _dv;
    private readonly double _scale;

    public AttentionProblem(Device device, int tokens, int heads, int width)
    {
        _device = device;
        _scale = 1 / Math.Sqrt(width);
        Shape shape = [1, tokens, heads, width];
        TensorBytes = shape.Count * 2;
        int sets = (int)Math.Clamp(RotateBytes / TensorBytes, 1, 8);
        _sets = [.. Enumerable.Range(0, sets).Select(s => Enumerable.Range(0, 4).Select(i => GpuHarness.RandomTensor(device, shape, 10 * s + i)).ToArray())];
        _decay = Tensor.FromSpan(Enumerable.Range(0, heads).Select(h => -(float)Math.Pow(2, -8.0 * (h + 1) / heads)).ToArray(), [heads], device);
        _o = Tensor.Empty(shape, DType.BF16, device);
        _dq = Tensor.Empty(shape, DType.BF16, device);
        _dk = Tensor.Empty(shape, DType.BF16, device);
        _dv = Tensor.Empty(shape, DType.BF16, device);
    }

    /// <summary>Bytes of one of q, k, v, o.</summary>
    public long TensorBytes { get; }

    public void Forward(int iteration)
    {
        Tensor[] set = _sets[iteration % _sets.Length];
        _device.Backend.LinearAttention(set[0], set[1], set[2], _decay, null, _scale, _o);
    }

    public void ForwardBackward(int iteration)
    {
        Forward(iteration);
        Tensor[] set = _sets[iteration % _sets.Length];
        _device.Backend.LinearAttentionBackwardQuery(set[1], set[2], set[3], _decay, null, _scale, _dq);
        _device.Backend.LinearAttentionBackwardKeyValue(set[0], set[1], set[2], set[3], _decay, null, _scale, _dk, _dv);
    }

    public double ForwardError()
    {
        Forward(0);
        using CpuDevice cpu = new(Environment.ProcessorCount);
        using Wide wide = new(this, cpu);
        cpu.Backend.LinearAttention(wide.Q, wide.K, wide.V, wide.Decay, null, _scale, wide.A);
        return RelativeError(_o, wide.A);
    }

    public double BackwardError()
    {
        ForwardBackward(0);
        using CpuDevice cpu = new(Environment.ProcessorCount);
        using Wide wide = new(this, cpu);
        cpu.Backend.LinearAttentionBackwardQuery(wide.K, wide.V, wide.DO, wide.Decay, null, _scale, wide.A);
        double error = RelativeError(_dq, wide.A);
        cpu.Backend.LinearAttentionBackwardKeyValue(wide.Q, wide.K, wide.V, wide.DO, wide.Decay, null, _scale, wide.A, wide.B);
        return Math.Max(error, Math.Max(RelativeError(_dk, wide.A), RelativeError(_dv, wide.B)));
    }

    private static double RelativeError(Tensor actual, Tensor expected)
    {
        double[] a = actual.ToDoubles();
        Span<double> e = expected.Span<double>();
        double difference = 0, norm = 0;
        for (int i = 0; i < a.Length; i++)
        {
            difference += (a[i] - e[i]) * (a[i] - e[i]);
            norm += e[i] * e[i];
        }
        return Math.Sqrt(difference / norm);
    }

    public void Dispose()
    {
        foreach (Tensor tensor in _sets.SelectMany(s => s)) tensor.Dispose();
        foreach (Tensor tensor in new[] { _decay, _o, _dq, _dk, _dv }) tensor.Dispose();
    }

    /// <summary>The first input set in fp64 on the host, and room for two results.</summary>
    private sealed class Wide(AttentionProblem problem, Device cpu) : IDisposable
    {
        private readonly List<Tensor> _owned = [];

        private Tensor Widen(Tensor tensor)
        {
            Tensor wide = Tensor.FromSpan(tensor.ToDoubles(), tensor.Shape, cpu);
            _owned.Add(wide);
            return wide;
        }

        private Tensor? _q, _k, _v, _dO, _decay, _a, _b;

        public Tensor Q => _q ??= Widen(problem._sets[0][0]);
        public Tensor K => _k ??= Widen(problem._sets[0][1]);
        public Tensor V => _v ??= Widen(problem._sets[0][2]);
        public Tensor DO => _dO ??= Widen(problem._sets[0][3]);
        public Tensor Decay => _decay ??= Widen(problem._decay);
        public Tensor A => _a ??= Own(problem._o.Shape);
        public Tensor B => _b ??= Own(problem._o.Shape);

        private Tensor Own(Shape shape)
        {
            Tensor tensor = Tensor.Empty(shape, DType.F64, cpu);
            _owned.Add(tensor);
            return tensor;
        }

        public void Dispose() => _owned.ForEach(t => t.Dispose());
    }
}
