using LaspNative.Runtime;

namespace LaspNative.Tests.Oracles;

/// <summary>
/// "Naive bf16", the yardstick of bf16 kernels: softmax attention on bf16 inputs with fp32 accumulation, P and dS rounded to bf16, outputs rounded to bf16.
///   P_ij = bf16(softmax_j(scale q_i.k_j))    o_i = sum_j P_ij v_j    delta_i = o_i.dO_i    dS_ij = bf16(P_ij (dO_i.v_j - delta_i))
///   dq_i = scale sum_j dS_ij k_j    dk_j = scale sum_i dS_ij q_i    dv_j = sum_i P_ij dO_i
/// A kernel may err twice as much as this.
/// </summary>
public sealed class NaiveBf16SoftmaxAttention(SoftmaxAttentionOracle problem)
{
    public sealed record Results(double[] Output, double[] LogSumExp, double[] Delta, double[] Query, double[] Key, double[] Value);

    public Results Run(double[] dOutput)
    {
        SoftmaxAttentionOracle p = problem;
        int rows = p.B * p.C * p.H;
        var r = new Results(new double[rows * p.E], new double[rows], new double[rows], new double[p.Q.Length], new double[p.K.Length], new double[p.V.Length]);
        for (int b = 0; b < p.B; b++)
            for (int h = 0; h < p.H; h++)
                for (int i = 0; i < p.C; i++) Row(b, i, h, dOutput, r);
        foreach (double[] gradient in (double[][])[r.Query, r.Key, r.Value])
            for (int i = 0; i < gradient.Length; i++) gradient[i] = Round((float)gradient[i]);
        return r;
    }

    private void Row(int b, int i, int h, double[] dOutput, Results r)
    {
        SoftmaxAttentionOracle p = problem;
        int row = p.QueryRow(b, i, h);
        float scale = (float)p.Scale;
        int[] seen = [.. Enumerable.Range(0, p.M).Where(j => p.Sees(i, j))];
        r.LogSumExp[row] = double.NegativeInfinity;
        if (seen.Length == 0) return;
        float[] scores = Array.ConvertAll(seen, j => scale * Dot(p.Q, row, p.K, p.KeyRow(b, j, h), p.D));
        float max = scores.Max();
        float sum = 0;
        foreach (float score in scores) sum += MathF.Exp(score - max);
        r.LogSumExp[row] = max + MathF.Log(sum);
        float[] weights = Array.ConvertAll(scores, score => Round(MathF.Exp(score - max) / sum));
        for (int n = 0; n < seen.Length; n++) AddTo(r.Output, row, weights[n], p.V, p.KeyRow(b, seen[n], h), p.E);
        for (int e = 0; e < p.E; e++) r.Output[row * p.E + e] = Round((float)r.Output[row * p.E + e]);
        float delta = Dot(r.Output, row, dOutput, row, p.E);
        r.Delta[row] = delta;
        for (int n = 0; n < seen.Length; n++)
        {
            int key = p.KeyRow(b, seen[n], h);
            float ds = scale * Round(weights[n] * (Dot(dOutput, row, p.V, key, p.E) - delta));
            AddTo(r.Query, row, ds, p.K, key, p.D);
            AddTo(r.Key, key, ds, p.Q, row, p.D);
            AddTo(r.Value, key, weights[n], dOutput, row, p.E);
        }
    }

    private static float Round(float x) => (BF16)x;

    private static float Dot(double[] x, int xRow, double[] y, int yRow, int width)
    {
        float sum = 0;
        for (int i = 0; i < width; i++) sum += (float)x[xRow * width + i] * (float)y[yRow * width + i];
        return sum;
    }

    private static void AddTo(double[] y, int yRow, float alpha, double[] x, int xRow, int width)
    {
        for (int i = 0; i < width; i++) y[yRow * width + i] = (float)y[yRow * width + i] + alpha * (float)x[xRow * width + i];
    }
}
