using LaspNative.Runtime;
using Xunit;

namespace LaspNative.Tests.Diagnostics;

/// <summary>Memory that leaves under its tensors and comes back: the ledger sees both, and nobody reads it in between.</summary>
public class EvictedMemoryTests
{
    [Fact]
    public void Tensors_outlive_their_memory_and_get_it_back()
    {
        using Device device = Device.Open("cpu:1");
        using (Tensor whole = Tensor.Zeros([4, 8], DType.F32, device, MemoryCategory.Parameters))
        {
            using Tensor row = whole.Slice(2, 1);
            whole.EvictMemory();
            Assert.Equal(0, device.Memory.CurrentOf(MemoryCategory.Parameters));
            Assert.Throws<InvalidOperationException>(() => row.Pointer);
            Assert.Throws<InvalidOperationException>(whole.EvictMemory);
            whole.RestoreMemory();
            Assert.Throws<InvalidOperationException>(whole.RestoreMemory);
            Assert.Equal(128, device.Memory.CurrentOf(MemoryCategory.Parameters));
            device.Backend.Fill(3, whole);
            Assert.All(row.ToDoubles(), x => Assert.Equal(3, x));
        }
        Assert.Equal(0, device.Memory.Current);
        using (Tensor left = Tensor.Zeros([8], DType.F32, device)) left.EvictMemory();
        Assert.Equal((0, 0), (device.Memory.Current, device.Memory.LiveCount));
    }
}
