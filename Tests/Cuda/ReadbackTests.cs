using LaspNative.Runtime;
using LaspNative.Runtime.Cuda;
using Xunit;

namespace LaspNative.Tests.Cuda;

/// <summary>Small transfers that hold nobody up: numbers on their way to the host, tables on their way to the device.</summary>
public class ReadbackTests
{
    private static void AssertArrivesAsItWas(Device device, DType dtype)
    {
        using Readback readback = device.OpenReadback();
        using Tensor numbers = Tensor.Empty([3], dtype, device);
        device.Backend.Fill(0.5, numbers);
        readback.Begin();
        readback.Start(numbers);
        device.Backend.Fill(7, numbers); // queued behind the copy
        var taken = new double[3];
        Assert.True(readback.Take(taken) >= TimeSpan.Zero);
        Assert.Equal([0.5, 0.5, 0.5], taken);
        readback.Start(numbers);
        readback.Take(taken);
        Assert.Equal([7, 7, 7], taken);
    }

    [Theory]
    [InlineData(DType.F32)]
    [InlineData(DType.F64)]
    public void Numbers_arrive_as_they_were_when_they_left(DType dtype)
    {
        using var device = Device.Open("cpu:1");
        AssertArrivesAsItWas(device, dtype);
    }

    [Fact]
    [Trait("Category", "Gpu")]
    public void Numbers_arrive_from_a_gpu_with_one_wait_each()
    {
        using CudaDevice device = Gpu.Open();
        long waits = device.HostWaits;
        AssertArrivesAsItWas(device, DType.F32);
        Assert.Equal(2, device.HostWaits - waits);
    }

    [Fact]
    public void What_cannot_be_read_back_is_refused()
    {
        using var device = Device.Open("cpu:1");
        using Readback readback = device.OpenReadback();
        using Tensor narrow = Tensor.Zeros([2], DType.BF16, device), large = Tensor.Zeros([1000], DType.F32, device);
        Assert.Contains("BF16", Assert.Throws<LaspException>(() => readback.Start(narrow)).Message, StringComparison.Ordinal);
        Assert.Contains("[1000]", Assert.Throws<LaspException>(() => readback.Start(large)).Message, StringComparison.Ordinal);
        using Tensor fitting = large.Slice(0, 3);
        readback.Start(fitting);
        Assert.Contains("2 places", Assert.Throws<LaspException>(() => readback.Take(new double[2])).Message, StringComparison.Ordinal);
    }

    [Fact]
    [Trait("Category", "Gpu")]
    public void Small_uploads_wait_for_nothing_and_arrive_in_order()
    {
        using CudaDevice device = Gpu.Open();
        using Tensor values = Tensor.Empty([10_000], DType.I32, device);
        long waits = device.HostWaits;
        for (int i = 0; i < values.Count; i++) device.CopyFromHost(BitConverter.GetBytes(i), values.Pointer + (4 * i));
        Assert.Equal(0, device.HostWaits - waits);
        Assert.Equal(Enumerable.Range(0, 10_000), values.ToArray<int>());
    }
}
