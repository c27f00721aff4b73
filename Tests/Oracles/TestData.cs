using LaspNative.Runtime;

namespace LaspNative.Tests.Oracles;

/// <summary>The kinds of log decay: none, [H], [B,N,H], [B,N,H,D].</summary>
public enum DecayKind
{
    None,
    Head,
    Token,
    Channel,
}

/// <summary>
/// Seeded inputs. Values are normal; <see cref="Heads"/> gives every head a scale and a shift of its own, so that a head or rank read in another's place is an error
/// that shows.
/// </summary>
public static class TestData
{
    /// <summary>Standard normal values; the same for the same seed on every machine.</summary>
    public static double[] Normal(long count, int seed, double scale = 1)
    {
        var random = new Random(seed);
        var values = new double[count];
        for (int i = 0; i < values.Length; i++)
            values[i] = scale * Math.Sqrt(-2 * Math.Log(1 - random.NextDouble())) * Math.Cos(2 * Math.PI * random.NextDouble());
        return values;
    }

    /// <summary>[.., heads, width]: head h has deviation 0.5 + (h mod 4) / 4 and mean 0.1 (h + rank + 1) mod 1 with alternating sign.</summary>
    public static double[] Heads(long rows, int heads, int width, int seed, int rank = 0)
    {
        double[] values = Normal(rows * heads * width, seed * 31 + rank);
        for (int i = 0; i < values.Length; i++)
        {
            int h = i / width % heads;
            double mean = 0.1 * (1 + (h + rank) % 5) * (h % 2 == 0 ? 1 : -1);
            values[i] = values[i] * (0.5 + h % 4 / 4.0) + mean;
        }
        return values;
    }

    /// <summary>Log decays of heads, from slow to fast, all different: -rate / 2^(heads - 1 - h).</summary>
    public static double[] Decays(int heads, double rate = 0.5)
    {
        var decays = new double[heads];
        for (int h = 0; h < heads; h++) decays[h] = -rate / (1 << Math.Min(20, heads - 1 - h));
        return decays;
    }

    /// <summary>
    /// Log decays of any kind. Per token or channel each is <see cref="Decays(int, double)"/> of its head times a seeded number in [0, 1), so that neighbours differ; the higher the power that
    /// the number is raised to, the more of them hardly decay, beside a few that forget all.
    /// </summary>
    public static double[]? Decays(DecayKind kind, long b, long n, int h, int d, double rate = 0.5, int seed = 7, int power = 1)
    {
        double[] heads = Decays(h, rate);
        if (kind is DecayKind.None or DecayKind.Head) return kind == DecayKind.None ? null : heads;
        int width = kind == DecayKind.Token ? 1 : d;
        var random = new Random(seed);
        var decays = new double[b * n * h * width];
        for (int i = 0; i < decays.Length; i++) decays[i] = heads[i / width % h] * Math.Pow(random.NextDouble(), power);
        return decays;
    }

    /// <summary>
    /// Log decays of every strength from 0 to <paramref name="most"/> nats: some exactly 0, the others most * u^p with u in [0, 1) and p drawn per head, so that one head hardly forgets and the next forgets
    /// all, and both kinds of token lie side by side.
    /// </summary>
    public static double[]? MixedDecays(DecayKind kind, long b, long n, int h, int d, double most, int seed)
    {
        if (kind == DecayKind.None) return null;
        double[] powers = [1, 3, 8, 20];
        var random = new Random(seed);
        double[] ofHeads = [.. Enumerable.Range(0, h).Select(_ => powers[random.Next(powers.Length)])];
        int width = kind == DecayKind.Channel ? d : 1;
        var decays = new double[kind == DecayKind.Head ? h : b * n * h * width];
        for (long i = 0; i < decays.Length; i++) decays[i] = random.Next(8) == 0 ? 0 : -most * Math.Pow(random.NextDouble(), ofHeads[i / width % h]);
        return decays;
    }

    /// <summary>What is left of values once stored in a dtype: the inputs that an oracle must see.</summary>
    public static double[] Rounded(double[] values, DType dtype) => dtype switch
    {
        DType.F32 => Array.ConvertAll(values, x => (double)(float)x),
        DType.BF16 => Array.ConvertAll(values, x => (double)(float)(BF16)(float)x),
        _ => values,
    };

    /// <summary>The values as a tensor of any floating-point dtype.</summary>
    public static Tensor Tensor(double[] values, Shape shape, DType dtype, Device device) => dtype switch
    {
        DType.F64 => Runtime.Tensor.FromSpan(values, shape, device),
        DType.F32 => Runtime.Tensor.FromSpan(Array.ConvertAll(values, x => (float)x), shape, device),
        _ => Runtime.Tensor.FromSpan(Array.ConvertAll(values, x => (BF16)(float)x), shape, device),
    };
}
