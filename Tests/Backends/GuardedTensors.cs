using System.Runtime.InteropServices;
using LaspNative.Runtime;
using Xunit;

namespace LaspNative.Tests.Backends;

/// <summary>
/// Test memory that gives faults away: a buffer is NaN before it is written, and bands of NaN lie before and behind it, so that what is read too much spoils the result
/// and what is written too much is found. Tensors may be placed one element off every alignment but their own.
/// </summary>
internal sealed class GuardedTensors(Device device, bool misaligned) : IDisposable
{
    private const int BandBytes = 256;

    /// <summary>As F64, F32 and (upper half) BF16 a NaN, as an integer far out of every range.</summary>
    private const uint Poison = 0xFFFF_DEAD;

    private readonly List<(Tensor Memory, int Start, int Length)> _buffers = [];

    /// <summary>A tensor with these values; poison where <paramref name="values"/> is null.</summary>
    public Tensor New(Shape shape, DType dtype, double[]? values)
    {
        int length = checked((int)shape.Count * dtype.Size());
        int start = BandBytes + (misaligned ? dtype.Size() : 0);
        var bytes = new byte[(start + length + BandBytes + 3) / 4 * 4];
        MemoryMarshal.Cast<byte, uint>(bytes.AsSpan()).Fill(Poison);
        if (values is not null) Encode(values, dtype).CopyTo(bytes, start);
        Tensor memory = Tensor.FromSpan(MemoryMarshal.Cast<byte, int>((ReadOnlySpan<byte>)bytes), [bytes.Length / 4], device);
        _buffers.Add((memory, start, length));
        return Tensor.WrapDevicePointer(memory.Pointer + start, shape, dtype, device);
    }

    public void AssertBandsUntouched()
    {
        foreach ((Tensor memory, int start, int length) in _buffers)
        {
            byte[] bytes = MemoryMarshal.AsBytes(memory.ToArray<int>().AsSpan()).ToArray();
            byte[] expected = [.. bytes];
            MemoryMarshal.Cast<byte, uint>(expected.AsSpan()).Fill(Poison);
            Assert.True(bytes.AsSpan(0, start).SequenceEqual(expected.AsSpan(0, start)), "written before the start of a buffer");
            Assert.True(bytes.AsSpan(start + length).SequenceEqual(expected.AsSpan(start + length)), "written behind the end of a buffer");
        }
    }

    private static byte[] Encode(double[] values, DType dtype) => dtype switch
    {
        DType.F64 => MemoryMarshal.AsBytes<double>(values).ToArray(),
        DType.F32 => MemoryMarshal.AsBytes<float>(Array.ConvertAll(values, x => (float)x)).ToArray(),
        DType.BF16 => MemoryMarshal.AsBytes<BF16>(Array.ConvertAll(values, x => (BF16)(float)x)).ToArray(),
        DType.I64 => MemoryMarshal.AsBytes<long>(Array.ConvertAll(values, x => (long)x)).ToArray(),
        _ => MemoryMarshal.AsBytes<int>(Array.ConvertAll(values, x => (int)x)).ToArray(),
    };

    public void Dispose()
    {
        foreach ((Tensor memory, _, _) in _buffers) memory.Dispose();
    }
}
