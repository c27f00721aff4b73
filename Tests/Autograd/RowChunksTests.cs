using LaspNative.Autograd;
using LaspNative.Runtime;
using LaspNative.Tests.Oracles;
using Xunit;

namespace LaspNative.Tests.Autograd;

/// <summary>A region computed for a chunk of rows at a time: the same values, the same gradients up to the order of sums, and memory for one chunk only.</summary>
public sealed class RowChunksTests : IDisposable
{
    private const int Rows = 22, Width = 8, Wide = 64;

    private readonly Device _device = Device.Open("cpu:1");

    public void Dispose() => _device.Dispose();

    private Variable Parameter(int seed, DType dtype, params long[] shape)
    {
        Shape extents = new(shape);
        return Variable.Parameter(TestData.Tensor(TestData.Normal(extents.Count, seed), extents, dtype, _device));
    }

    private (double[] Y, double[][] Gradients) Run(long? chunk, DType dtype)
    {
        using Variable x = Parameter(1, dtype, 2, Rows / 2, Width), up = Parameter(2, dtype, Wide, Width), down = Parameter(3, dtype, Width, Wide);
        Variable Region(Variable rows, RegionRun run)
        {
            using Variable wide = Linear.Apply(rows, up);
            using Variable activated = Silu.Apply(wide);
            return Linear.Apply(activated, down, run);
        }
        using Variable y = chunk is null ? Region(x, RegionRun.Forward) : RowChunks.Apply(x, chunk.Value, Region);
        using Tensor dy = TestData.Tensor(TestData.Normal(Rows * Width, 4), [2, Rows / 2, Width], dtype, _device);
        y.Backward(dy);
        return (y.Value.ToDoubles(), [x.Gradient!.ToDoubles(), up.Gradient!.ToDoubles(), down.Gradient!.ToDoubles()]);
    }

    [Theory]
    [InlineData(1, DType.F64, 1e-13)]
    [InlineData(5, DType.F64, 1e-13)]
    [InlineData(11, DType.F32, 1e-6)]
    [InlineData(22, DType.F32, 1e-6)]
    [InlineData(100, DType.F64, 1e-13)]
    public void Chunks_give_what_the_whole_gives(long chunk, DType dtype, double tolerance)
    {
        (double[] y, double[][] gradients) = Run(null, dtype);
        (double[] yChunked, double[][] chunked) = Run(chunk, dtype);
        Errors.AssertClose(yChunked, y, tolerance, "y");
        for (int i = 0; i < gradients.Length; i++) Errors.AssertClose(chunked[i], gradients[i], tolerance, $"gradient {i}");
    }

    /// <summary>The wide activations of 2 of 64 rows: the peak above what is there anyway stays below those of 8 rows, where the whole would make three times 64.</summary>
    [Fact]
    public void Wide_activations_are_there_for_one_chunk_only()
    {
        const int rows = 64, wide = 1024;
        using Variable x = Parameter(1, DType.F32, rows, Width), up = Parameter(2, DType.F32, wide, Width), down = Parameter(3, DType.F32, Width, wide);
        Variable Region(Variable part, RegionRun run)
        {
            using Variable hidden = Linear.Apply(part, up);
            using Variable activated = Silu.Apply(hidden);
            return Linear.Apply(activated, down, run);
        }
        long before = _device.Memory.CurrentOf(MemoryCategory.Activations);
        _device.Memory.ResetPeak();
        using Variable y = RowChunks.Apply(x, 2, Region);
        Assert.Equal(before + y.Value.Bytes, _device.Memory.CurrentOf(MemoryCategory.Activations));
        using Tensor dy = Tensor.Zeros(y.Shape, DType.F32, _device);
        y.Backward(dy);
        Assert.InRange(_device.Memory.PeakOf(MemoryCategory.Activations) - before, 2 * wide * sizeof(float), 8 * wide * sizeof(float) + 4 * y.Value.Bytes);
    }

    [Fact]
    public void Without_rows_parameters_get_zeros_and_are_complete_once()
    {
        using Variable x = Parameter(1, DType.F32, 0, Width), weight = Parameter(2, DType.F32, Width, Width);
        int completed = 0;
        weight.GradientCompleted = _ => completed++;
        using Variable y = RowChunks.Apply(x, 3, (rows, _) => Linear.Apply(rows, weight));
        using Tensor dy = Tensor.Zeros([0, Width], DType.F32, _device);
        y.Backward(dy);
        Assert.Equal(new double[Width * Width], weight.Gradient!.ToDoubles());
        Assert.Equal(1, completed);
    }

    [Fact]
    public void Wrong_chunks_and_regions_are_refused()
    {
        using Variable x = Parameter(1, DType.F32, 4, Width), wide = Parameter(2, DType.F32, Wide, Width);
        long live = _device.Memory.LiveCount;
        Assert.Contains("chunks of 0 rows", Assert.Throws<LaspException>(() => RowChunks.Apply(x, 0, (rows, _) => Silu.Apply(rows))).Message, StringComparison.Ordinal);
        Assert.Contains("must keep the shape", Assert.Throws<LaspException>(() => RowChunks.Apply(x, 2, (rows, _) => Linear.Apply(rows, wide))).Message, StringComparison.Ordinal);
        Assert.Equal(live, _device.Memory.LiveCount);
    }
}
