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
    private float[] _q = [], _k = [], _v = [], _dO = [], _o = [], _dq = [], _dk = [], _dv = [];

    public sealed record Results(double[] Output, double[] LogSumExp, double[] Delta, double[] Query, double[] Key, double[] Value);

    public Results Run(double[] dOutput)
    {
        SoftmaxAttentionOracle p = problem;
        int rows = p.B * p.C * p.H;
        (_q, _k, _v, _dO) = (Floats(p.Q), Floats(p.K), Floats(p.V), Floats(dOutput));
        (_o, _dq, _dk, _dv) = (new float[rows * p.E], new float[_q.Length], new float[_k.Length], new float[_v.Length]);
        var r = new Results(new double[rows * p.E], new double[rows], new double[rows], new double[p.Q.Length], new double[p.K.Length], new double[p.V.Length]);
        for (int b = 0; b < p.B; b++)
            for (int h = 0; h < p.H; h++)
                for (int i = 0; i < p.C; i++) Row(b, i, h, r);
        r = r with { Output = Doubles(_o), Query = Doubles(_dq), Key = Doubles(_dk), Value = Doubles(_dv) };
        foreach (double[] gradient in (double[][])[r.Query, r.Key, r.Value])
            for (int i = 0; i < gradient.Length; i++) gradient[i] = Round((float)gradient[i]);
        return r;
    }

    private void Row(int b, int i, int h, Results r)
    {
        SoftmaxAttentionOracle p = problem;
        int row = p.QueryRow(b, i, h);
        float scale = (float)p.Scale;
        int[] seen = [.. Enumerable.Range(0, p.M).Where(j => p.Sees(i, j))];
        r.LogSumExp[row] = double.NegativeInfinity;
        if (seen.Length == 0) return;
        float[] scores = Array.ConvertAll(seen, j => scale * RowMath.Dot<float>(Of(_q, row, p.D), Of(_k, p.KeyRow(b, j, h), p.D)));
        float max = scores.Max();
        float sum = 0;
        foreach (float score in scores) sum += MathF.Exp(score - max);
        r.LogSumExp[row] = max + MathF.Log(sum);
        float[] weights = Array.ConvertAll(scores, score => Round(MathF.Exp(score - max) / sum));
        for (int n = 0; n < seen.Length; n++) RowMath.AddScaled(weights[n], Of(_v, p.KeyRow(b, seen[n], h), p.E), Of(_o, row, p.E));
        foreach (ref float x in Of(_o, row, p.E)) x = Round(x);
        float delta = RowMath.Dot<float>(Of(_o, row, p.E), Of(_dO, row, p.E));
        r.Delta[row] = delta;
        for (int n = 0; n < seen.Length; n++)
        {
            int key = p.KeyRow(b, seen[n], h);
            float ds = scale * Round(weights[n] * (RowMath.Dot<float>(Of(_dO, row, p.E), Of(_v, key, p.E)) - delta));
            RowMath.AddScaled(ds, Of(_k, key, p.D), Of(_dq, row, p.D));
            RowMath.AddScaled(ds, Of(_q, row, p.D), Of(_dk, key, p.D));
            RowMath.AddScaled(weights[n], Of(_dO, row, p.E), Of(_dv, key, p.E));
        }
    }

    private static Span<float> Of(float[] x, int row, int width) => x.AsSpan(row * width, width);

    private static float[] Floats(double[] x) => Array.ConvertAll(x, value => (float)value);

    private static double[] Doubles(float[] x) => Array.ConvertAll(x, value => (double)value);

    private static float Round(float x) => (BF16)x;
}
