using LaspNative.Collectives;
using LaspNative.Runtime;
using LaspNative.Runtime.Cuda;
using Xunit;

namespace LaspNative.Tests.Collectives;

/// <summary>Memory for copy engines, of a group of one: what can be seen without a second GPU.</summary>
[Trait("Category", "Gpu")]
public sealed class PeerMemoryTests
{
    private const int Bytes = 1 << 20, Flags = 6, Series = 2;

    /// <summary>Numbers of a series' table.</summary>
    private const int Numbers = 4096;

    [Theory]
    [InlineData(false)]
    [InlineData(true)]
    public void It_is_communication_memory_until_it_is_disposed_or_abandoned(bool isAbandoned)
    {
        using CudaDevice device = Gpu.Open();
        using var meeting = new ThreadMeeting(1, CancellationToken.None);
        PeerMemory memory = PeerMemory.Open(device, 0, meeting, Bytes, Flags, Series, opened => opened)!;
        Assert.Equal(Bytes + (sizeof(uint) * Series * (Flags + Numbers)), device.Memory.CurrentOf(MemoryCategory.Communication));
        for (int time = 0; time < 2; time++)
        {
            if (isAbandoned) memory.Abandon();
            else memory.Dispose();
            Assert.Equal((0, 0), (device.Memory.Current, device.Memory.LiveCount));
        }
        memory.Abort(series: 1, latest: 3); // comes too late, and says nothing
        device.Synchronize();
    }

    /// <summary>An owner fails when some of its parts are made, or there is no memory at all.</summary>
    [Fact]
    public void It_and_what_it_keeps_go_where_its_owner_could_not_be_made()
    {
        using CudaDevice device = Gpu.Open();
        using var meeting = new ThreadMeeting(1, CancellationToken.None);
        var failure = new LaspException("no stream is left");
        Part first = new(), second = new();
        Assert.Same(failure, Assert.Throws<LaspException>(() => PeerMemory.Open<PeerMemory>(device, 0, meeting, Bytes, Flags, Series, memory =>
        {
            memory.Keep(first);
            memory.Keep(second);
            throw failure;
        })));
        Assert.True(first.IsDisposed && second.IsDisposed);
        Assert.Equal((0, 0), (device.Memory.Current, device.Memory.LiveCount));
        Assert.ThrowsAny<LaspException>(() => PeerMemory.Open<PeerMemory>(device, 0, meeting, 1L << 50, Flags, Series, _ => throw new InvalidOperationException("there is no such memory")));
        Assert.Equal((0, 0), (device.Memory.Current, device.Memory.LiveCount));
    }

    private sealed class Part : IDisposable
    {
        public bool IsDisposed { get; private set; }

        public void Dispose() => IsDisposed = true;
    }
}
