using LaspNative.Runtime;

namespace LaspNative.Tests.Oracles;

/// <summary>
/// The left product between two runs, pair by pair in fp64: o_i = scale sum_j sum_d (wq_id q_id)(wk_jd k_jd) v_j, and its gradients per query head.
/// q [B,C,H,D], k [B,M,Hk,D], v [B,M,Hk,E], dO [B,C,H,E]; weights per token and head [B,.,H] or, with <see cref="PerChannel"/>, [B,.,H,D]; null: 1.
/// </summary>
public sealed record LinearAttentionBlockOracle(int B, int C, int M, int H, int Hk, int D, int E)
{
    public required double[] Q { get; init; }

    public required double[] K { get; init; }

    public required double[] V { get; init; }

    public required double[] DOutput { get; init; }

    public double[]? QueryWeights { get; init; }

    public double[]? KeyWeights { get; init; }

    public bool PerChannel { get; init; }

    public required double Scale { get; init; }

    /// <summary>The naive op in bf16 instead: weighted rows and the products of a pair are rounded to bf16, sums are not.</summary>
    public bool Bf16 { get; init; }

    public sealed record Results(double[] Output, double[] Query, double[] Key, double[] Value);

    public Results Run()
    {
        var r = new Results(new double[B * C * H * E], new double[B * C * H * D], new double[B * M * H * D], new double[B * M * H * E]);
        for (int b = 0; b < B; b++)
            for (int h = 0; h < H; h++)
                for (int i = 0; i < C; i++)
                    for (int j = 0; j < M; j++) AddPair(r, (b * C + i) * H + h, (b * M + j) * H + h, (b * M + j) * Hk + h / (H / Hk));
        return r;
    }

    private void AddPair(Results r, int query, int key, int storedKey)
    {
        double score = 0, gain = 0;
        for (int d = 0; d < D; d++) score += WeightedQuery(query, d) * WeightedKey(key, storedKey, d);
        for (int e = 0; e < E; e++) gain += DOutput[query * E + e] * V[storedKey * E + e];
        (score, gain) = (Scale * Round(score), Scale * Round(gain));
        for (int e = 0; e < E; e++)
        {
            r.Output[query * E + e] += score * V[storedKey * E + e];
            r.Value[key * E + e] += score * DOutput[query * E + e];
        }
        for (int d = 0; d < D; d++)
        {
            r.Query[query * D + d] += gain * Weight(QueryWeights, query, d) * WeightedKey(key, storedKey, d);
            r.Key[key * D + d] += gain * Weight(KeyWeights, key, d) * WeightedQuery(query, d);
        }
    }

    private double WeightedQuery(int query, int d) => Round(Weight(QueryWeights, query, d) * Q[query * D + d]);

    private double WeightedKey(int key, int storedKey, int d) => Round(Weight(KeyWeights, key, d) * K[storedKey * D + d]);

    private double Weight(double[]? weights, int row, int d) => weights is null ? 1 : weights[PerChannel ? row * D + d : row];

    private double Round(double x) => Bf16 ? (double)(float)(BF16)(float)x : x;
}
