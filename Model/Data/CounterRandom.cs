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
    /// Fills with independent normal values of standard deviation <paramref name="sigma"/> (Box-Muller), in parallel: those from <paramref name="first"/> on, which is even, of the sequence. Any cut of the
    /// sequence gives the same values.
    /// </summary>
    public void FillNormal(float[] values, double sigma, long first = 0)
    {
        if (first % 2 != 0) throw new ArgumentOutOfRangeException(nameof(first), first, "normal numbers are drawn in pairs: begin with an even one");
        const int Block = 1 << 14;
        CounterRandom random = this;
        Parallel.For(0, (values.Length + Block - 1) / Block, block =>
        {
            int end = Math.Min(values.Length, (block + 1) * Block);
            for (int i = block * Block; i < end; i += 2)
            {
                var index = (ulong)(first + i);
                double radius = sigma * Math.Sqrt(-2 * Math.Log(1 - random.Uniform(index)));
                (double sin, double cos) = Math.SinCos(2 * Math.PI * random.Uniform(index + 1));
                values[i] = (float)(radius * cos);
                if (i + 1 < end) values[i + 1] = (float)(radius * sin);
            }
        });
    }
}
