using System.Runtime.InteropServices;
using LaspNative.Runtime;

namespace LaspNative.Perf;

/// <summary>Seeded inputs: never zeros, which GPUs multiply faster and cooler than numbers.</summary>
internal static class RandomTensors
{
    /// <summary>A prime: what repeats after it falls on another head and channel every time, so that a row read at another's place shows.</summary>
    private const int Period = 4_194_301;

    private static readonly Lazy<float[]> s_normal = new(MakeNormal);

    /// <summary>Standard normal bf16 values.</summary>
    public static Tensor Normal(Device device, Shape shape, int seed) => Fill(shape, DType.BF16, device, seed, x => (BF16)x);

    /// <summary>Log decays in fp32: -rate |x| of normal x, so that most tokens decay a little and some hardly or much.</summary>
    public static Tensor LogDecays(Device device, Shape shape, double rate, int seed) => Fill(shape, DType.F32, device, seed, x => -(float)rate * MathF.Abs(x));

    /// <summary>Positive fp32 values around 1.</summary>
    public static Tensor Positive(Device device, Shape shape, int seed) => Fill(shape, DType.F32, device, seed, x => MathF.Exp(0.3f * x));

    private static float[] MakeNormal()
    {
        var random = new Random(1);
        var values = new float[Period];
        for (int i = 0; i < values.Length; i++)
            values[i] = (float)(Math.Sqrt(-2 * Math.Log(1 - random.NextDouble())) * Math.Cos(2 * Math.PI * random.NextDouble()));
        return values;
    }

    /// <summary>The numbers over and over, from a place that the seed chooses.</summary>
    private static Tensor Fill<T>(Shape shape, DType dtype, Device device, int seed, Func<float, T> map) where T : unmanaged
    {
        const int Step = 611_953;
        int start = (int)((long)seed * Step % Period);
        float[] normal = s_normal.Value;
        var block = new T[Math.Min(shape.Count, Period)];
        Parallel.For(0, block.Length, i => block[i] = map(normal[(start + i) % Period]));
        Tensor tensor = Tensor.Empty(shape, dtype, device);
        for (long at = 0; at < tensor.Count; at += block.Length)
        {
            ReadOnlySpan<T> part = block.AsSpan(0, (int)Math.Min(block.Length, tensor.Count - at));
            device.CopyFromHost(MemoryMarshal.AsBytes(part), tensor.Pointer + (nint)(at * dtype.Size()));
        }
        return tensor;
    }
}
