using LaspNative.Autograd;
using LaspNative.Runtime;
using Xunit;

namespace LaspNative.Tests.Autograd;

/// <summary>Which inputs leave the device and when they come back; that bytes come back as they left, and that nothing is left over.</summary>
public sealed class InputStashTests : IDisposable
{
    private const int Width = 25; // 100 bytes of fp32

    private readonly Device _device = Device.Open("cpu:1");

    public void Dispose()
    {
        Assert.Equal(0, _device.Memory.Current);
        _device.Dispose();
    }

    private Tensor Values(int start) => Tensor.FromSpan(Enumerable.Range(start, Width).Select(i => (float)i).ToArray(), [Width], _device);

    /// <summary>Five inputs are kept and taken from the last to the first; "out 0" is the copy out of the first, "back 0" its return.</summary>
    [Theory]
    [InlineData(1000, "take 4, take 3, take 2, take 1, take 0")]
    [InlineData(500, "take 4, take 3, take 2, take 1, take 0")]
    [InlineData(250, "out 0, out 1, out 2, take 4, back 2, take 3, back 1, take 2, back 0, take 1, take 0")]
    [InlineData(100, "out 0, out 1, out 2, out 3, take 4, back 3, take 3, back 2, take 2, back 1, take 1, back 0, take 0")]
    [InlineData(0, "out 0, out 1, out 2, out 3, out 4, take 4, back 4, back 3, take 3, back 2, take 2, back 1, take 1, back 0, take 0")]
    public void The_oldest_leave_and_the_next_to_be_taken_comes_back_ahead(long deviceBytes, string expected)
    {
        var log = new List<string>();
        using var stash = new InputStash(deviceBytes, new LoggedMemory(log));
        StashedInput[] inputs = [.. Enumerable.Range(0, 5).Select(i => stash.Keep(Values(i)))];
        Assert.True(stash.BytesOnDevice <= deviceBytes);
        Assert.Equal(stash.BytesOnDevice, _device.Memory.Current);
        for (int i = 4; i >= 0; i--)
        {
            log.Add($"take {i}");
            using Tensor taken = inputs[i].Take();
            Assert.Equal(Enumerable.Range(i, Width).Select(v => (double)v), taken.ToDoubles());
            Assert.True(stash.BytesOnDevice <= Math.Max(deviceBytes, 100));
        }
        Assert.Equal(expected, string.Join(", ", log));
        Assert.Equal(0, stash.Count);
    }

    [Fact]
    public void Buffers_are_used_again_and_freed_at_the_end()
    {
        var host = new CpuHostMemory();
        using (var stash = new InputStash(0, host))
        {
            for (int step = 0; step < 3; step++)
            {
                StashedInput first = stash.Keep(Values(1)), second = stash.Keep(Values(2));
                second.Take().Dispose();
                first.Take().Dispose();
                Assert.Equal(2 * 4 * Width, host.Bytes);
            }
        }
        Assert.Equal(0, host.Bytes);
    }

    [Fact]
    public void The_first_to_be_taken_may_come_back_early()
    {
        var log = new List<string>();
        using var stash = new InputStash(0, new LoggedMemory(log));
        StashedInput[] inputs = [stash.Keep(Values(0)), stash.Keep(Values(1))];
        stash.Prefetch();
        stash.Prefetch();
        foreach (int i in (int[])[1, 0])
        {
            log.Add($"take {i}");
            inputs[i].Take().Dispose();
        }
        Assert.Equal("out 0, out 1, back 1, take 1, back 0, take 0", string.Join(", ", log));
    }

    /// <summary>Where the host has no more room, the others stay on the device and everything comes back all the same.</summary>
    [Fact]
    public void A_full_host_leaves_the_newer_on_the_device()
    {
        var host = new CpuHostMemory(most: 4 * Width * 2);
        using var stash = new InputStash(100, host);
        StashedInput[] inputs = [.. Enumerable.Range(0, 5).Select(i => stash.Keep(Values(i)))];
        Assert.Equal((200, 300), (host.Bytes, stash.BytesOnDevice));
        for (int i = 4; i >= 0; i--)
        {
            using Tensor taken = inputs[i].Take();
            Assert.Equal(Enumerable.Range(i, Width).Select(v => (double)v), taken.ToDoubles());
        }
    }

    [Fact]
    public void A_tape_that_never_runs_backwards_empties_the_stash()
    {
        using var stash = new InputStash(100, new CpuHostMemory());
        using Variable x = Variable.Parameter(Values(0));
        using (var tape = new Tape())
        {
            for (int i = 0; i < 3; i++) Recompute.Apply([tape.Constant(Values(i))], (inputs, _) => [Add.Apply(inputs[0], x)], kept: null, stash);
            Assert.Equal((3, 100), (stash.Count, stash.BytesOnDevice));
        }
        Assert.Equal((0, 0), (stash.Count, stash.BytesOnDevice));
    }

    [Fact]
    public void A_negative_number_of_bytes_is_refused()
    {
        using var host = new CpuHostMemory();
        Assert.Contains("-1 bytes", Assert.Throws<LaspException>(() => new InputStash(-1, host)).Message, StringComparison.Ordinal);
    }

    /// <summary>The CPU's host memory, telling what it does; tensors are named by their first value.</summary>
    private sealed class LoggedMemory(List<string> log) : HostMemory
    {
        private readonly CpuHostMemory _memory = new();

        public override HostCopy? TryStore(Tensor tensor)
        {
            string name = $"{tensor.ToArray<float>()[0]}";
            log.Add($"out {name}");
            return new LoggedCopy(_memory.TryStore(tensor)!, name, log);
        }

        protected override void Dispose(bool disposing) => _memory.Dispose();
    }

    private sealed class LoggedCopy(HostCopy copy, string name, List<string> log) : HostCopy
    {
        public override void StartReturn()
        {
            log.Add($"back {name}");
            copy.StartReturn();
        }

        public override Tensor Return() => copy.Return();

        protected override void Dispose(bool disposing) => copy.Dispose();
    }
}
