using LaspNative.Runtime;
using LaspNative.Runtime.Cuda;
using Xunit;

namespace LaspNative.Tests.Cuda;

/// <summary>Memory, streams, events and contexts on a real GPU.</summary>
public class CudaDeviceTests
{
    [Fact]
    public void A_device_describes_its_GPU()
    {
        using CudaDevice device = Gpu.Open();
        Assert.Equal("cuda:0", device.Name);
        Assert.True(device.ComputeCapability.Major >= 8);
        Assert.True(device.MultiprocessorCount > 0);
        Assert.True(device.MaxSharedBytes > 48 << 10);
        GpuReport report = SystemProbe.Run().Gpus[0];
        Assert.Equal(device.ComputeCapability, report.ComputeCapability);
        Assert.Equal(device.MultiprocessorCount, report.MultiprocessorCount);
        Assert.NotEmpty(report.Name);
        Assert.True(report.MemoryBytes > 1L << 30);
    }

    [Fact]
    public void A_GPU_that_does_not_exist_is_one_line()
    {
        Gpu.Require();
        LaspException e = Assert.Throws<LaspException>(() => Device.Open("cuda:99"));
        Assert.StartsWith("cuda:99 does not exist", e.Message);
    }

    [Theory]
    [InlineData(0)]
    [InlineData(1)]
    [InlineData(1000)]
    [InlineData(20_000_000)]
    public void Bytes_survive_the_way_there_and_back(int count)
    {
        using CudaDevice device = Gpu.Open();
        var values = new byte[count];
        new Random(count).NextBytes(values);
        byte[] expected = [.. values];
        using var source = new Buffer(device, count);
        using var copy = new Buffer(device, count);
        device.CopyFromHost(values, source.Pointer);
        values.AsSpan().Clear(); // the source may be reused at once
        device.Copy(source.Pointer, copy.Pointer, count);
        var read = new byte[count];
        device.CopyToHost(copy.Pointer, read);
        Assert.True(expected.AsSpan().SequenceEqual(read));
    }

    [Fact]
    public void Another_thread_may_take_the_device_over()
    {
        using CudaDevice device = Gpu.Open();
        using var buffer = new Buffer(device, 4);
        byte[] read = [0, 0, 0, 0];
        var thread = new Thread(() =>
        {
            device.CopyFromHost([1, 2, 3, 4], buffer.Pointer);
            device.CopyToHost(buffer.Pointer, read);
        });
        thread.Start();
        thread.Join();
        Assert.Equal([1, 2, 3, 4], read);
    }

    [Fact]
    public void Every_byte_is_booked_and_given_back()
    {
        using CudaDevice device = Gpu.Open();
        using (Tensor.Empty([1000], DType.F32, device, MemoryCategory.States))
        using (Tensor.Empty([10], DType.BF16, device, MemoryCategory.Communication))
        {
            Assert.Equal(4000, device.Memory.CurrentOf(MemoryCategory.States));
            Assert.Equal(20, device.Memory.CurrentOf(MemoryCategory.Communication));
            Assert.Equal(2, device.Memory.LiveCount);
        }
        Assert.Equal(0, device.Memory.Current);
        Assert.Equal(4020, device.Memory.Peak);
        device.Workspace(100);
        nint large = device.Workspace(5 << 20);
        Assert.Equal(large, device.Workspace(10));
        Assert.Equal(5 << 20, device.Memory.CurrentOf(MemoryCategory.Workspace));
    }

    [Fact]
    public void Freed_memory_is_kept_and_reused()
    {
        using CudaDevice device = Gpu.Open();
        device.Reserve(256 << 20);
        long reserved = device.ReservedBytes;
        Assert.True(reserved >= 256 << 20);
        for (int i = 0; i < 200; i++)
        {
            using Tensor a = Tensor.Empty([16 << 20], DType.F32, device);
            using Tensor b = Tensor.Empty([1 << 20], DType.F32, device);
        }
        device.Synchronize();
        Assert.Equal(reserved, device.ReservedBytes);
    }

    [Fact]
    public void Too_much_memory_is_one_line_and_the_device_lives_on()
    {
        using CudaDevice device = Gpu.Open();
        LaspException e = Assert.Throws<LaspException>(() => Tensor.Empty([1L << 42], DType.F32, device));
        Assert.StartsWith("cuda:0 is out of memory: ", e.Message);
        Assert.DoesNotContain('\n', e.Message);
        using Tensor small = Tensor.Empty([16], DType.F32, device);
        device.Synchronize();
        Assert.Equal(1, device.Memory.LiveCount);
    }

    [Fact]
    public void Events_order_streams_and_take_the_time()
    {
        using CudaDevice device = Gpu.Open();
        const int Bytes = 64 << 20;
        using var a = new Buffer(device, Bytes);
        using var b = new Buffer(device, Bytes);
        using var start = new CudaEvent(device.Context, timing: true);
        using var end = new CudaEvent(device.Context, timing: true);
        using var filled = new CudaEvent(device.Context, blocking: true);
        Assert.True(filled.IsComplete);
        start.Record(device.Stream);
        device.Stream.FillAsync(7, a.Pointer, Bytes);
        filled.Record(device.Stream);
        device.CommunicationStream.WaitFor(filled);
        device.CommunicationStream.CopyAsync(a.Pointer, b.Pointer, Bytes);
        end.Record(device.CommunicationStream);
        end.Synchronize();
        Assert.True(filled.IsComplete && end.IsComplete);
        Assert.InRange(CudaEvent.ElapsedMilliseconds(start, end), 1e-3f, 1000f);
        var read = new byte[Bytes];
        device.CopyToHost(b.Pointer, read);
        Assert.Equal(-1, read.AsSpan().IndexOfAnyExcept((byte)7));
    }

    [Fact]
    public void Pinned_memory_is_copied_in_stream_order()
    {
        using CudaDevice device = Gpu.Open();
        using var pinned = new PinnedBuffer(device.Context, 4096);
        using var buffer = new Buffer(device, 4096);
        pinned.Span(0, 4096).Fill(5);
        device.Stream.CopyAsync(pinned.Pointer, buffer.Pointer, 4096);
        device.Stream.FillAsync(6, buffer.Pointer + 100, 1);
        device.Stream.CopyAsync(buffer.Pointer, pinned.Pointer, 4096);
        device.Stream.Synchronize();
        Assert.Equal((byte[])[5, 6, 5], pinned.Span(99, 3).ToArray());
    }

    [Fact]
    public void A_hosts_context_and_stream_are_used_and_left_alive()
    {
        Gpu.Require();
        using CudaContext host = CudaContext.OpenPrimary(0);
        using var stream = new CudaStream(host);
        for (int i = 0; i < 2; i++)
        {
            using Device device = i == 0 ? Device.FromCudaContext(host.Handle) : CudaDevice.FromContext(host.Handle, CudaStream.FromHandle(stream.Handle));
            Assert.Equal("cuda:0", device.Name);
            using Tensor tensor = Tensor.FromSpan([1f, 2f, 3f], [3], device);
            Assert.Equal([1f, 2f, 3f], tensor.ToArray<float>());
        }
        host.MakeCurrent();
        stream.Synchronize();
    }

    [Fact]
    public void Devices_share_a_GPU_and_are_disposed_in_any_order_twice()
    {
        using CudaDevice first = Gpu.Open();
        using CudaDevice second = Gpu.Open();
        Tensor orphan = Tensor.FromSpan([1f], [1], first);
        using Tensor other = Tensor.FromSpan([2f], [1], second);
        first.Dispose();
        first.Dispose();
        orphan.Dispose();
        Assert.Equal([2f], other.ToArray<float>());
    }

    /// <summary>Raw bytes of device memory.</summary>
    private sealed class Buffer(CudaDevice device, long bytes) : IDisposable
    {
        private readonly Tensor _tensor = Tensor.Empty([(bytes + 3) / 4], DType.I32, device, MemoryCategory.Workspace);

        public nint Pointer => _tensor.Pointer;

        public void Dispose() => _tensor.Dispose();
    }
}
