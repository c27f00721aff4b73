using LaspNative.Collectives;
using LaspNative.Runtime;
using LaspNative.Runtime.Cuda;
using Xunit;

namespace LaspNative.Tests.Collectives;

/// <summary>Who frees what belongs to the memory that copy engines write into.</summary>
[Trait("Category", "Gpu")]
public class PeerOwnershipTests
{
    private sealed class Part : IDisposable
    {
        public bool IsDisposed { get; private set; }

        public void Dispose() => IsDisposed = true;
    }

    [Fact]
    public void An_owner_that_cannot_be_made_leaves_nothing_behind()
    {
        using CudaDevice device = Gpu.Open();
        using var meeting = new ThreadMeeting(1, TestContext.Current.CancellationToken);
        Part first = new(), second = new();
        LaspException error = Assert.Throws<LaspException>(() => PeerMemory.Open<object>(device, 0, meeting, bytes: 1 << 20, flags: 2, series: 1, memory =>
        {
            memory.Keep(first);
            memory.Keep(second);
            Assert.True(device.Memory.CurrentOf(MemoryCategory.Communication) > 1 << 20);
            throw new LaspException("no stream is left");
        }));
        Assert.Equal("no stream is left", error.Message);
        Assert.True(first.IsDisposed && second.IsDisposed);
        Assert.Equal(0, device.Memory.Current);
        Assert.ThrowsAny<LaspException>(() => PeerMemory.Open<object>(device, 0, meeting, bytes: 1L << 50, flags: 2, series: 1, _ => throw new InvalidOperationException("there is no such memory")));
        Assert.Equal(0, device.Memory.Current);
    }
}
