using LaspNative.Runtime;
using LaspNative.Runtime.Cuda;
using Xunit;

namespace LaspNative.Tests.Cuda;

/// <summary>cuBLASLt products against a plain loop in fp64 over the same (rounded) inputs.</summary>
public class GemmTests
{
    public static TheoryData<bool, bool, DType, DType> Cases()
    {
        var cases = new TheoryData<bool, bool, DType, DType>();
        foreach (bool ta in new[] { false, true })
            foreach (bool tb in new[] { false, true })
                foreach ((DType ab, DType c) in new[] { (DType.F32, DType.F32), (DType.BF16, DType.F32), (DType.BF16, DType.BF16) })
                    cases.Add(ta, tb, ab, c);
        return cases;
    }

    [Theory]
    [MemberData(nameof(Cases))]
    public void A_product_is_the_sum_over_k(bool transposeA, bool transposeB, DType ab, DType cType)
    {
        using CudaDevice device = Gpu.Open();
        foreach ((int m, int n, int k, int batch) in new[] { (64, 128, 256, 1), (33, 17, 65, 1), (1, 8, 5, 1), (48, 40, 24, 3), (7, 3, 1, 5) })
            Check(device, transposeA, transposeB, ab, cType, m, n, k, batch, alpha: 0.5f, beta: 0);
    }

    [Theory]
    [InlineData(DType.F32, DType.F32)]
    [InlineData(DType.BF16, DType.F32)]
    [InlineData(DType.BF16, DType.BF16)]
    public void Beta_adds_to_what_is_there(DType ab, DType cType)
    {
        using CudaDevice device = Gpu.Open();
        Check(device, true, false, ab, cType, 32, 48, 64, 2, alpha: 2, beta: 1);
        Check(device, false, true, ab, cType, 32, 48, 64, 1, alpha: 1, beta: -0.5f);
    }

    [Fact]
    public void Rows_that_start_anywhere_are_multiplied_too()
    {
        using CudaDevice device = Gpu.Open();
        foreach (int skip in new[] { 1, 2, 4, 8 })
            Check(device, false, true, DType.BF16, DType.F32, 16, 24, 40, 1, alpha: 1, beta: 0, skip);
    }

    [Fact]
    public void Empty_products_are_defined_and_a_problem_is_planned_once()
    {
        using CudaDevice device = Gpu.Open();
        using Tensor a = Tensor.FromSpan(new float[16], [4, 4], device);
        using Tensor c = Tensor.FromSpan([1f, 2f, 3f, 4f], [2, 2], device);
        device.Blas.Multiply(a.Pointer, false, a.Pointer, false, c.Pointer, 0, 2, 4, 1, DType.F32, DType.F32, 1, 0);
        device.Blas.Multiply(a.Pointer, false, a.Pointer, false, c.Pointer, 2, 2, 0, 1, DType.F32, DType.F32, 1, 1);
        Assert.Equal([1f, 2f, 3f, 4f], c.ToArray<float>());
        device.Blas.Multiply(a.Pointer, false, a.Pointer, false, c.Pointer, 2, 2, 0, 1, DType.F32, DType.F32, 1, 0);
        Assert.Equal([0f, 0f, 0f, 0f], c.ToArray<float>());
        Assert.Equal(0, device.Blas.LaunchCount);

        void Multiply() => device.Blas.Multiply(a.Pointer, false, a.Pointer, false, c.Pointer, 2, 2, 4, 1, DType.F32, DType.F32, 1, 0);
        Multiply();
        long before = GC.GetAllocatedBytesForCurrentThread();
        for (int i = 0; i < 100; i++) Multiply();
        Assert.Equal(0, GC.GetAllocatedBytesForCurrentThread() - before);
        Assert.Equal(101, device.Blas.LaunchCount);
    }

    [Theory]
    [InlineData(0, DType.BF16)]
    [InlineData(1, DType.BF16)]
    [InlineData(1, DType.F32)]
    public void A_measured_product_adds_once_and_gives_the_same_bits_wherever_the_choice_is_known(float beta, DType cType)
    {
        const int M = 1536, N = 2048, K = 1536;
        using CudaDevice device = Gpu.Open();
        DirectoryInfo folder = Directory.CreateTempSubdirectory("lasp-products-");
        try
        {
            var choices = new GemmChoices(folder.FullName, "this machine");
            var random = new Random(5);
            float[] a = Values(random, M * K, DType.BF16), b = Values(random, K * N, DType.BF16), c = Values(random, M * N, cType);
            double[] measured = Multiply(choices), known = Multiply(choices), usual = Multiply(null);
            Assert.Single(folder.GetFiles());
            Assert.Equal(measured, known);
            for (int i = 0; i < measured.Length; i++)
                Assert.True(Math.Abs(measured[i] - usual[i]) <= (cType == DType.BF16 ? 0.02 : 1e-4) * Math.Sqrt(K), $"element {i}: {measured[i]} against {usual[i]}");

            double[] Multiply(GemmChoices? known)
            {
                using var blas = new Blas(device, known);
                using Tensor ta = Upload(a, DType.BF16, device), tb = Upload(b, DType.BF16, device), tc = Upload(c, cType, device);
                blas.Multiply(ta.Pointer, false, tb.Pointer, true, tc.Pointer, M, N, K, 1, DType.BF16, cType, 1, beta);
                Assert.Equal(1, blas.LaunchCount);
                return tc.ToDoubles();
            }
        }
        finally
        {
            folder.Delete(recursive: true);
        }
    }

    private static void Check(
        CudaDevice device, bool transposeA, bool transposeB, DType ab, DType cType, int m, int n, int k, int batch, float alpha, float beta, int skip = 0)
    {
        var random = new Random((m * 31) + n);
        float[] a = Values(random, (batch * m * k) + skip, ab);
        float[] b = Values(random, (batch * k * n) + skip, ab);
        float[] c = Values(random, batch * m * n, cType);
        using Tensor ta = Upload(a, ab, device);
        using Tensor tb = Upload(b, ab, device);
        using Tensor tc = Upload(c, cType, device);
        int offset = skip * ab.Size();
        device.Blas.Multiply(ta.Pointer + offset, transposeA, tb.Pointer + offset, transposeB, tc.Pointer, m, n, k, batch, ab, cType, alpha, beta);
        double[] actual = tc.ToDoubles();

        double tolerance = cType == DType.BF16 ? 1.0 / 128 : 1e-5;
        for (int g = 0; g < batch; g++)
            for (int i = 0; i < m; i++)
                for (int j = 0; j < n; j++)
                {
                    double sum = 0, magnitude = 0;
                    for (int p = 0; p < k; p++)
                    {
                        double term = (double)a[skip + (g * m * k) + (transposeA ? (p * m) + i : (i * k) + p)] * b[skip + (g * k * n) + (transposeB ? (j * k) + p : (p * n) + j)];
                        sum += term;
                        magnitude += Math.Abs(term);
                    }
                    int at = (g * m * n) + (i * n) + j;
                    double expected = (alpha * sum) + (beta * c[at]);
                    double scale = Math.Abs(alpha) * magnitude + Math.Abs(beta * c[at]);
                    Assert.True(Math.Abs(actual[at] - expected) <= tolerance * scale, $"[{g},{i},{j}] of {m}x{n}x{k}: {actual[at]} against {expected}");
                }
    }

    private static float[] Values(Random random, int count, DType dtype)
    {
        var values = new float[count];
        foreach (ref float v in values.AsSpan())
        {
            v = (float)((random.NextDouble() * 2) - 1);
            if (dtype == DType.BF16) v = (BF16)v;
        }
        return values;
    }

    private static Tensor Upload(float[] values, DType dtype, Device device) => dtype == DType.BF16
        ? Tensor.FromSpan(Array.ConvertAll(values, v => (BF16)v), [values.Length], device)
        : Tensor.FromSpan(values, [values.Length], device);
}
