using LaspNative.Autograd;
using LaspNative.Runtime;
using LaspNative.Runtime.Cuda;
using Xunit;

namespace LaspNative.Tests.Autograd;

/// <summary>Pinned memory beside a GPU: bytes survive the way out and back while the compute stream writes over their memory, chunks are used again, and a full host says so.</summary>
[Trait("Category", "Gpu")]
public class CudaHostMemoryTests
{
    private const long Chunk = 1 << 20;

    [Theory]
    [InlineData(1)]
    [InlineData(Chunk / 4)]
    [InlineData(Chunk / 4 * 3 + 5)]
    public void Tensors_come_back_as_they_left(long count)
    {
        using CudaDevice device = Gpu.Open();
        using var host = new CudaHostMemory(device, 4 * CudaHostMemory.BytesFor(1, 4 * count, Chunk), Chunk);
        for (int step = 0; step < 3; step++)
        {
            HostCopy[] copies = [.. Enumerable.Range(0, 4).Select(i => host.TryStore(Filled(device, count, step + i))!)];
            for (int i = 3; i >= 0; i--)
            {
                copies[i].StartReturn();
                Filled(device, count, -1).Dispose(); // takes the place of what left, if its memory was freed too early
                using Tensor back = copies[i].Return();
                copies[i].Dispose();
                Assert.All(back.ToArray<float>(), v => Assert.Equal(step + i, v));
            }
        }
        Assert.Equal(4 * CudaHostMemory.BytesFor(1, 4 * count, Chunk), host.Bytes);
    }

    /// <summary>The device holds what left last, no more, until the next one leaves or one comes back.</summary>
    [Fact]
    public void What_left_is_freed_by_the_next()
    {
        using CudaDevice device = Gpu.Open();
        using var host = new CudaHostMemory(device, 3 * Chunk, Chunk);
        long before = device.Memory.Current;
        HostCopy[] copies = [.. Enumerable.Range(0, 3).Select(i => host.TryStore(Filled(device, Chunk / 4, i))!)];
        Assert.Equal(before + Chunk, device.Memory.Current);
        copies[0].StartReturn();
        Assert.Equal(before + Chunk, device.Memory.Current);
        foreach (HostCopy copy in copies) copy.Dispose(); // also the one that is on its way back
        Assert.Equal(before, device.Memory.Current);
    }

    [Fact]
    public void A_full_host_takes_nothing_over()
    {
        using CudaDevice device = Gpu.Open();
        using var host = new CudaHostMemory(device, 2 * Chunk, Chunk);
        using HostCopy kept = host.TryStore(Filled(device, Chunk / 4 + 1, 1))!;
        using Tensor refused = Filled(device, 1, 7);
        Assert.Null(host.TryStore(refused));
        Assert.Equal([7f], refused.ToArray<float>());
    }

    private static Tensor Filled(CudaDevice device, long count, float value)
    {
        Tensor tensor = Tensor.Empty([count], DType.F32, device);
        device.Backend.Fill(value, tensor);
        return tensor;
    }
}
