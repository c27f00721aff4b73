using System.Runtime.Intrinsics;
using System.Text;

namespace LaspNative.Model;

/// <summary>
/// Random numbers by index instead of by sequence: number i of a key is a function of (key, i), so any part can be drawn anywhere, in any order, on any thread.
/// The generator is SplitMix64's finalizer over a Weyl sequence.
/// </summary>
public readonly struct CounterRandom(ulong key)
{
    private const ulong Weyl = 0x9E3779B97F4A7C15;

    private readonly ulong _key = Mix(key);

    /// <summary>The generator of one named tensor: FNV-1a of its name, keyed by the seed.</summary>
    public static CounterRandom Named(ulong seed, string name)
    {
        ulong hash = 14695981039346656037;
        foreach (byte b in Encoding.UTF8.GetBytes(name)) hash = (hash ^ b) * 1099511628211;
        return new CounterRandom(hash ^ Mix(seed));
    }

    /// <summary>A bijection of 64 bits that scatters neighbours.</summary>
    public static ulong Mix(ulong x)
    {
        x += Weyl;
        x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9;
        x = (x ^ (x >> 27)) * 0x94D049BB133111EB;
        return x ^ (x >> 31);
    }

    /// <summary>Uniform in [0, 1), 53 bits.</summary>
    public double Uniform(ulong index) => (Mix(_key + index * Weyl) >> 11) * (1.0 / (1L << 53));

    /// <summary>
    /// Fills with independent normal values of standard deviation <paramref name="sigma"/>, in parallel: those from <paramref name="first"/> on, which is even, of the sequence. Any cut of the sequence, any
    /// number of threads and any machine give the same bits (<see cref="NormalNumbers"/>).
    /// </summary>
    public void FillNormal(float[] values, double sigma, long first = 0)
    {
        if (first % 2 != 0) throw new ArgumentOutOfRangeException(nameof(first), first, "normal numbers are drawn in pairs: begin with an even one");
        const int Block = 1 << 14;
        CounterRandom random = this;
        Parallel.For(0, (values.Length + Block - 1) / Block, block =>
        {
            int end = Math.Min(values.Length, (block + 1) * Block);
            for (int i = block * Block; i < end; i += Vector512<float>.Count)
            {
                Vector512<float> sixteen = random.Normal((ulong)(first + i), sigma);
                if (end - i >= Vector512<float>.Count) sixteen.CopyTo(values, i);
                else
                    for (int j = i; j < end; j++) values[j] = sixteen[j - i];
            }
        });
    }

    /// <summary>Sixteen normal values from an even index on: pairs from the uniform numbers of two neighbours.</summary>
    private Vector512<float> Normal(ulong index, double sigma)
    {
        Vector512<ulong> even = Vector512.Create(_key + (index * Weyl)) + (Vector512<ulong>.Indices * Vector512.Create(unchecked(2 * Weyl)));
        (Vector512<double> first, Vector512<double> second) = NormalNumbers.FromUniform(Uniform(even), Uniform(even + Vector512.Create(Weyl)));
        Vector512<double> scale = Vector512.Create(sigma);
        Vector512<float> apart = Vector512.Narrow(first * scale, second * scale);
        return Vector512.Shuffle(apart, Vector512.Create(0, 8, 1, 9, 2, 10, 3, 11, 4, 12, 5, 13, 6, 14, 7, 15));
    }

    /// <summary>As the number of one index, for states of the Weyl sequence.</summary>
    private static Vector512<double> Uniform(Vector512<ulong> state)
    {
        Vector512<ulong> x = state + Vector512.Create(Weyl);
        x = (x ^ (x >> 30)) * Vector512.Create(0xBF58476D1CE4E5B9);
        x = (x ^ (x >> 27)) * Vector512.Create(0x94D049BB133111EB);
        return Vector512.ConvertToDouble((x ^ (x >> 31)) >> 11) * Vector512.Create(1.0 / (1L << 53));
    }
}
