using LaspNative.Runtime;
using LaspNative.Runtime.Cpu;
using Xunit;

namespace LaspNative.Tests.Backends;

/// <summary>The CPU matrix product against three loops in fp64: transposes, edges of the blocking, alpha and beta, batches, element types, threads.</summary>
public class CpuGemmTests
{
    public static TheoryData<int, int, int> Extents => new()
    {
        { 1, 1, 1 }, { 12, 32, 16 }, { 13, 33, 17 }, { 5, 70, 300 }, { 64, 64, 64 }, { 127, 65, 257 }, { 250, 40, 7 }, { 3, 2100, 5 }, { 300, 96, 513 },
    };

    [Theory]
    [MemberData(nameof(Extents))]
    public void Every_transpose_equals_three_loops(int m, int n, int k)
    {
        foreach (DType dtype in (DType[])[DType.F64, DType.F32, DType.BF16])
            foreach ((bool ta, bool tb) in ((bool, bool)[])[(false, false), (true, false), (false, true), (true, true)])
                Check(new Case(1, m, n, k, ta, tb, 1, 0, dtype, dtype.Accumulator()));
    }

    [Theory]
    [InlineData(1.0, 1.0)]
    [InlineData(-0.5, 2.0)]
    [InlineData(0.25, 0.0)]
    public void Alpha_and_beta_scale_product_and_destination(double alpha, double beta)
    {
        foreach (DType dtype in (DType[])[DType.F64, DType.F32, DType.BF16])
        {
            Check(new Case(1, 45, 67, 530, false, true, alpha, beta, dtype, dtype));
            Check(new Case(1, 45, 67, 530, true, false, alpha, beta, dtype, dtype.Accumulator()));
        }
    }

    [Fact]
    public void Batches_are_independent_products()
    {
        Check(new Case(5, 17, 35, 23, false, false, 1, 0, DType.F32, DType.F32));
        Check(new Case(3, 17, 35, 23, true, true, 2, 1, DType.F64, DType.F64));
        Check(new Case(7, 64, 16, 64, false, true, 1, 0, DType.BF16, DType.BF16));
    }

    [Fact]
    public void An_empty_depth_leaves_beta_times_destination()
    {
        Check(new Case(1, 5, 6, 0, false, false, 1, 0, DType.F32, DType.F32));
        Check(new Case(1, 5, 6, 0, false, false, 1, 0.5, DType.F32, DType.F32));
    }

    [Theory]
    [InlineData(1, 331, 129, 515)]
    [InlineData(1, 20, 1500, 300)]
    [InlineData(6, 100, 90, 80)]
    public void The_number_of_threads_changes_no_bit(int batches, int m, int n, int k)
    {
        var problem = new Case(batches, m, n, k, false, true, 1, 0, DType.F32, DType.F32);
        double[] one = Run(problem, threads: 1).Result;
        foreach (int threads in (int[])[2, 3, 8]) Assert.Equal(one, Run(problem, threads).Result);
    }

    [Fact]
    public void Extents_that_do_not_fit_are_refused_in_one_line()
    {
        using var device = new CpuDevice(1);
        using Tensor a = Tensor.Zeros([3, 4], DType.F32, device), b = Tensor.Zeros([5, 6], DType.F32, device), c = Tensor.Zeros([3, 6], DType.F32, device);
        LaspException error = Assert.Throws<LaspException>(() => device.Backend.Gemm(a, false, b, false, 1, 0, c));
        Assert.Contains("[5, 6]", error.Message, StringComparison.Ordinal);
        Assert.DoesNotContain('\n', error.Message);
    }

    private sealed record Case(int Batches, int M, int N, int K, bool TransposeA, bool TransposeB, double Alpha, double Beta, DType Source, DType Destination);

    private static void Check(Case problem)
    {
        (double[] result, double[] expected) = Run(problem, threads: 2);
        double error = 0, norm = 0;
        for (int i = 0; i < result.Length; i++)
        {
            error += (result[i] - expected[i]) * (result[i] - expected[i]);
            norm += expected[i] * expected[i];
        }
        double tolerance = problem.Destination switch { DType.F64 => 1e-14, DType.F32 => 1e-6, _ => 4e-3 };
        Assert.True(Math.Sqrt(error) <= tolerance * Math.Sqrt(norm), $"{problem}: relative error {Math.Sqrt(error / norm):e2}");
    }

    private static (double[] Result, double[] Expected) Run(Case p, int threads)
    {
        using var device = new CpuDevice(threads);
        using Tensor a = Uniform([p.Batches, p.TransposeA ? p.K : p.M, p.TransposeA ? p.M : p.K], p.Source, 1, device);
        using Tensor b = Uniform([p.Batches, p.TransposeB ? p.N : p.K, p.TransposeB ? p.K : p.N], p.Source, 2, device);
        using Tensor c = Uniform([p.Batches, p.M, p.N], p.Destination, 3, device);
        double[] expected = ThreeLoops(p, a.ToDoubles(), b.ToDoubles(), c.ToDoubles());
        if (p.Beta == 0) device.Backend.Fill(double.NaN, c);
        device.Backend.Gemm(a, p.TransposeA, b, p.TransposeB, p.Alpha, p.Beta, c);
        return (c.ToDoubles(), expected);
    }

    private static Tensor Uniform(Shape shape, DType dtype, int seed, Device device)
    {
        var random = new Random(seed);
        double[] values = [.. Enumerable.Range(0, (int)shape.Count).Select(_ => (random.NextDouble() * 2) - 1)];
        using Tensor source = Tensor.FromSpan(values, shape, device);
        Tensor tensor = Tensor.Empty(shape, dtype, device);
        device.Backend.Cast(source, tensor);
        return tensor;
    }

    private static double[] ThreeLoops(Case p, double[] a, double[] b, double[] c)
    {
        var result = new double[c.Length];
        for (int g = 0; g < p.Batches; g++)
        {
            for (int i = 0; i < p.M; i++)
            {
                for (int j = 0; j < p.N; j++)
                {
                    double sum = 0;
                    for (int x = 0; x < p.K; x++)
                    {
                        double left = a[(g * p.M * p.K) + (p.TransposeA ? (x * p.M) + i : (i * p.K) + x)];
                        double right = b[(g * p.K * p.N) + (p.TransposeB ? (j * p.K) + x : (x * p.N) + j)];
                        sum += left * right;
                    }
                    int at = (((g * p.M) + i) * p.N) + j;
                    result[at] = (p.Alpha * sum) + (p.Beta * c[at]);
                }
            }
        }
        return result;
    }
}
