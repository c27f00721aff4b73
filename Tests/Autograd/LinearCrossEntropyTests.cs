using LaspNative.Autograd;
using LaspNative.Runtime;
using LaspNative.Tests.Oracles;
using Xunit;

namespace LaspNative.Tests.Autograd;

/// <summary>The chunked loss against the whole one, and what it holds meanwhile.</summary>
public class LinearCrossEntropyTests
{
    private const int ManyRows = 4196; // three chunks in F64, two in BF16
    private const int Vocabulary = 4200;
    private const int Width = 3;

    [Theory]
    [InlineData(DType.F64, ManyRows, 1.0)]
    [InlineData(DType.F32, 50, 0.375)]
    [InlineData(DType.BF16, ManyRows, 1.0)]
    public void Chunks_give_the_loss_and_the_gradients_of_the_whole(DType dtype, int rows, double upstream)
    {
        double[] x = TestData.Rounded(TestData.Normal(rows * Width, 1), dtype);
        double[] w = TestData.Rounded(TestData.Normal(Vocabulary * Width, 2), dtype);
        int[] labels = [.. Enumerable.Range(0, rows).Select(r => r % 5 == 0 ? -100 : r * 31 % Vocabulary)];
        int counted = labels.Count(l => l >= 0);
        double[] logits = MatrixOracle.Gemm(x, transposeA: false, w, transposeB: true, 1, 0, [], 1, rows, Vocabulary, Width);
        (double[] losses, double[] dz) = MatrixOracle.CrossEntropy(logits, Array.ConvertAll(labels, l => (long)l), Vocabulary, upstream / counted);

        using Device device = Device.Open("cpu");
        using Variable xVariable = Variable.Parameter(TestData.Tensor(x, [rows, Width], dtype, device));
        using Variable weight = Variable.Parameter(TestData.Tensor(w, [Vocabulary, Width], dtype, device));
        using Tensor labelTensor = Tensor.FromSpan(labels, [rows], device);
        using Tensor? dLoss = upstream == 1 ? null : TestData.Tensor([upstream], [1], dtype.Accumulator(), device);
        device.Memory.ResetPeak();
        long before = device.Memory.Current;
        using Variable loss = LinearCrossEntropy.Apply(xVariable, weight, labelTensor, counted);
        loss.Backward(dLoss);

        double bf16 = dtype == DType.BF16 ? 4e-3 : 0; // dz is rounded before the products
        Errors.AssertClose(loss.Value.ToDoubles(), [losses.Sum() / counted], Tolerances.Of(dtype.Accumulator()), "loss");
        Errors.AssertClose(xVariable.Gradient!.ToDoubles(), MatrixOracle.Gemm(dz, transposeA: false, w, transposeB: false, 1, 0, [], 1, rows, Width, Vocabulary), Math.Max(bf16, Tolerances.Of(dtype.Accumulator())), "dx");
        Errors.AssertClose(weight.Gradient!.ToDoubles(), MatrixOracle.Gemm(dz, transposeA: true, x, transposeB: false, 1, 0, [], 1, Vocabulary, Width, rows), Math.Max(bf16, Tolerances.Of(dtype.Accumulator())), "dWeight");
        if (dtype == DType.F64) Assert.True(device.Memory.Peak - before < 0.6 * rows * Vocabulary * sizeof(double), $"{device.Memory.Peak - before} bytes at the peak");
    }

    /// <summary>However many rows there are, logits are alive for one chunk: 64 MiB of them, F32.</summary>
    [Theory]
    [InlineData(5000)]
    [InlineData(15000)]
    public void Logits_of_one_chunk_are_alive_however_long_the_sequence(int rows)
    {
        using Device device = Device.Open("cpu");
        using Variable x = Variable.Parameter(TestData.Tensor(TestData.Normal(rows * Width, 1), [rows, Width], DType.F32, device));
        using Variable weight = Variable.Parameter(TestData.Tensor(TestData.Normal(Vocabulary * Width, 2), [Vocabulary, Width], DType.F32, device));
        using Tensor labels = Tensor.FromSpan(new int[rows], [rows], device);
        using Variable loss = LinearCrossEntropy.Apply(x, weight, labels, rows);
        loss.Backward();
        long chunkRows = (64L << 20) / (Vocabulary * sizeof(float));
        Assert.Equal(chunkRows * Vocabulary * sizeof(float), device.Memory.PeakOf(MemoryCategory.Workspace));
        Assert.InRange(device.Memory.PeakOf(MemoryCategory.Activations), 0, ((2 * Width + 2) * rows + Vocabulary * Width) * sizeof(float) + 1024);
    }

    [Fact]
    public void Rows_without_tokens_give_zeros()
    {
        using Device device = Device.Open("cpu:1");
        using Variable x = Variable.Parameter(Tensor.Empty([0, 4], DType.F32, device));
        using Variable weight = Variable.Parameter(TestData.Tensor(TestData.Normal(12, 1), [3, 4], DType.F32, device));
        using Tensor labels = Tensor.FromSpan(Array.Empty<int>(), [0], device);
        using Variable loss = LinearCrossEntropy.Apply(x, weight, labels, normalizer: 8);
        loss.Backward();
        Assert.Equal([0.0], loss.Value.ToDoubles());
        Assert.Equal(new double[12], weight.Gradient!.ToDoubles());
    }

    [Fact]
    public void Without_gradients_only_the_loss_is_kept()
    {
        using Device device = Device.Open("cpu:1");
        using Variable x = Variable.Constant(TestData.Tensor(TestData.Normal(8, 1), [2, 4], DType.F32, device));
        using Variable weight = Variable.Constant(TestData.Tensor(TestData.Normal(12, 1), [3, 4], DType.F32, device));
        using Tensor labels = Tensor.FromSpan([0, 2], [2], device);
        long live = device.Memory.LiveCount;
        using Variable loss = LinearCrossEntropy.Apply(x, weight, labels, normalizer: 2);
        Assert.Equal(live + 1, device.Memory.LiveCount);
    }

    [Fact]
    public void Users_errors_are_named()
    {
        using Device device = Device.Open("cpu:1");
        using Variable x = Variable.Constant(Tensor.Zeros([2, 4], DType.F32, device));
        using Variable weight = Variable.Constant(Tensor.Zeros([3, 5], DType.F32, device));
        using Tensor labels = Tensor.FromSpan([0, 2], [2], device);
        Assert.Contains("[3, 5]", Assert.Throws<LaspException>(() => LinearCrossEntropy.Apply(x, weight, labels, 1)).Message, StringComparison.Ordinal);
        using Variable fitting = Variable.Constant(Tensor.Zeros([3, 4], DType.F32, device));
        Assert.Contains("above 0", Assert.Throws<LaspException>(() => LinearCrossEntropy.Apply(x, fitting, labels, 0)).Message, StringComparison.Ordinal);
    }
}
