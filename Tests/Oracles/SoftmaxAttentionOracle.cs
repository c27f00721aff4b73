namespace LaspNative.Tests.Oracles;

/// <summary>
/// Softmax attention of C queries over M keys in fp64, row by row, as the definition reads. Shares no code with the backends.
///   p_ij = exp(scale q_i.k_j) / sum of the same over the visible j        o_i = sum_j p_ij v_j
/// Arrays are row-major: q [B,C,H,D], k [B,M,Hk,D], v [B,M,Hk,E]. Query head h reads key head h / (H/Hk). Query i sees the keys whose global index lies in
/// [Ranges[2 i], Ranges[2 i + 1]]; key j has global index FirstKey + j.
/// </summary>
public sealed record SoftmaxAttentionOracle(int B, int C, int M, int H, int Hk, int D, int E)
{
    public required double[] Q { get; init; }

    public required double[] K { get; init; }

    public required double[] V { get; init; }

    public required long[] Ranges { get; init; }

    public long FirstKey { get; init; }

    public required double Scale { get; init; }

    /// <summary>o [B,C,H,E] and logSumExp [B,C,H]; 0 and -infinity where a query sees no key.</summary>
    public sealed record Values(double[] Output, double[] LogSumExp);

    /// <summary>Shaped like what they belong to.</summary>
    public sealed record Gradients(double[] Query, double[] Key, double[] Value);

    /// <summary>Ranges of queries at global indices first, first + 1, ..: all up to the own index.</summary>
    public static long[] Causal(long first, int count) => [.. Enumerable.Range(0, count).SelectMany(i => (long[])[0, first + i])];

    /// <summary>Ranges of queries that see what belongs to their document: document n is [bounds[n], bounds[n + 1]).</summary>
    public static long[] Documents(long first, int count, long[] bounds, bool causal = true) => [.. Enumerable.Range(0, count).SelectMany(i =>
    {
        int document = Array.FindLastIndex(bounds, bound => bound <= first + i);
        return (long[])[bounds[document], causal ? first + i : bounds[document + 1] - 1];
    })];

    public int QueryRow(int b, int i, int h) => (b * C + i) * H + h;

    public int KeyRow(int b, int j, int h) => (b * M + j) * Hk + h / (H / Hk);

    public bool Sees(int i, int j) => Ranges[2 * i] <= FirstKey + j && FirstKey + j <= Ranges[2 * i + 1];

    public Values Forward()
    {
        var output = new double[B * C * H * E];
        var logs = new double[B * C * H];
        ForEachRow((b, i, h) =>
        {
            int row = QueryRow(b, i, h);
            (double[] p, logs[row]) = Weights(b, i, h);
            for (int j = 0; j < M; j++)
                if (Sees(i, j)) RowMath.AddScaled(p[j], V.AsSpan(KeyRow(b, j, h) * E, E), output.AsSpan(row * E, E));
        });
        return new Values(output, logs);
    }

    /// <summary>dp_ij = dO_i.v_j, ds_ij = p_ij (dp_ij - sum_l p_il dp_il); dq = scale ds k, dk = scale ds^T q, dv = p^T dO.</summary>
    public Gradients Backward(double[] dOutput)
    {
        var g = new Gradients(new double[Q.Length], new double[K.Length], new double[V.Length]);
        ForEachRow((b, i, h) =>
        {
            int row = QueryRow(b, i, h);
            (double[] p, _) = Weights(b, i, h);
            var dp = new double[M];
            for (int j = 0; j < M; j++)
                if (Sees(i, j)) dp[j] = RowMath.Dot<double>(dOutput.AsSpan(row * E, E), V.AsSpan(KeyRow(b, j, h) * E, E));
            double mean = p.Zip(dp, (x, y) => x * y).Sum();
            for (int j = 0; j < M; j++)
            {
                if (!Sees(i, j)) continue;
                int key = KeyRow(b, j, h);
                double ds = Scale * p[j] * (dp[j] - mean);
                RowMath.AddScaled(ds, K.AsSpan(key * D, D), g.Query.AsSpan(row * D, D));
                RowMath.AddScaled(ds, Q.AsSpan(row * D, D), g.Key.AsSpan(key * D, D));
                RowMath.AddScaled(p[j], dOutput.AsSpan(row * E, E), g.Value.AsSpan(key * E, E));
            }
        });
        return g;
    }

    /// <summary>p_i over all keys, zero for those not seen, and the log of the sum that it was divided by.</summary>
    private (double[] Weights, double LogSum) Weights(int b, int i, int h)
    {
        var scores = new double[M];
        for (int j = 0; j < M; j++)
            scores[j] = Sees(i, j) ? Scale * RowMath.Dot<double>(Q.AsSpan(QueryRow(b, i, h) * D, D), K.AsSpan(KeyRow(b, j, h) * D, D)) : double.NegativeInfinity;
        double max = M == 0 ? double.NegativeInfinity : scores.Max();
        if (double.IsNegativeInfinity(max)) return (new double[M], max);
        double[] p = Array.ConvertAll(scores, s => Math.Exp(s - max));
        double sum = p.Sum();
        return (Array.ConvertAll(p, x => x / sum), max + Math.Log(sum));
    }

    private void ForEachRow(Action<int, int, int> body)
    {
        for (int b = 0; b < B; b++)
            for (int i = 0; i < C; i++)
                for (int h = 0; h < H; h++) body(b, i, h);
    }
}
