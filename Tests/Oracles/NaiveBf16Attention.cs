using LaspNative.Runtime;

namespace LaspNative.Tests.Oracles;

/// <summary>
/// "Naive bf16", the yardstick of bf16 kernels: linear attention as a left product on bf16 inputs with fp32 accumulation, P and dP rounded to bf16, outputs rounded to bf16.
///   P_ij = [i >= j] scale exp((i - j) g) (q_i . k_j)        o_i = sum_j P_ij v_j + scale exp(i g) q_i S_0
///   dP_ij = dO_i . v_j        dq_i = sum_j Z_ij dP_ij k_j, dk_j = sum_i Z_ij dP_ij q_i, dv_j = sum_i P_ij dO_i with Z the factor of q.k in P
/// States are fp32 sums of products whose key (query) factor carries the decay and is rounded to bf16. A kernel may err twice as much as this.
/// </summary>
public sealed class NaiveBf16Attention(LinearAttentionOracle problem)
{
    private readonly int _n = problem.N;
    private readonly int _d = problem.D;
    private readonly int _e = problem.E;

    public sealed record Results(double[] Output, double[] State, double[] BackwardState, double[] Query, double[] Key, double[] Value, double[] Decay);

    /// <summary>All results at once: o, M, dM, dq, dk, dv, dDecay, for the problem's initial state and this gradient of the final one.</summary>
    public Results Run(double[] dOutput, double[]? dFinalState)
    {
        LinearAttentionOracle p = problem;
        var r = new Results(
            new double[dOutput.Length], new double[p.B * p.H * _d * _e], new double[p.B * p.H * _d * _e],
            new double[p.Q.Length], new double[p.K.Length], new double[p.V.Length], new double[p.H]);
        for (int b = 0; b < p.B; b++)
            for (int h = 0; h < p.H; h++) Head(b, h, dOutput, dFinalState, r);
        foreach (double[] rounded in (double[][])[r.Output, r.Query, r.Key, r.Value])
            for (int i = 0; i < rounded.Length; i++) rounded[i] = Round((float)rounded[i]);
        return r;
    }

    private void Head(int b, int h, double[] dOutput, double[]? dFinalState, Results r)
    {
        LinearAttentionOracle p = problem;
        int hk = h / (p.H / p.Hk);
        float[][] q = Rows(p.Q, b, h, p.H, _d);
        float[][] k = Rows(p.K, b, hk, p.Hk, _d);
        float[][] v = Rows(p.V, b, hk, p.Hk, _e);
        float[][] dO = Rows(dOutput, b, h, p.H, _e);
        int state = (b * p.H + h) * _d * _e;
        float[]? initial = p.InitialState?[state..(state + _d * _e)].Select(x => (float)x).ToArray();
        float[]? final = dFinalState?[state..(state + _d * _e)].Select(x => (float)x).ToArray();
        float g = (float)(p.Decay?[h] ?? 0);
        float scale = (float)p.Scale;
        float dg = 0;
        for (int i = 0; i < _n; i++)
        {
            int qRow = ((b * _n + i) * p.H + h) * _d;
            int oRow = ((b * _n + i) * p.H + h) * _e;
            var o = new float[_e];
            var dq = new float[_d];
            for (int j = 0; j <= i; j++)
            {
                int kRow = ((b * _n + j) * p.Hk + hk) * _d;
                int vRow = ((b * _n + j) * p.Hk + hk) * _e;
                float z = scale * MathF.Exp((i - j) * g);
                float score = Round(z * Dot(q[i], k[j]));
                float dScore = Round(z * Dot(dO[i], v[j]));
                AddTo(o, score, v[j]);
                AddTo(dq, dScore, k[j]);
                for (int d = 0; d < _d; d++) r.Key[kRow + d] = (float)r.Key[kRow + d] + dScore * q[i][d];
                for (int e = 0; e < _e; e++) r.Value[vRow + e] = (float)r.Value[vRow + e] + score * dO[i][e];
                dg += (i - j) * score * Round(Dot(dO[i], v[j]));
            }
            float entering = scale * MathF.Exp((i + 1) * g);
            if (initial is not null)
            {
                float[] reached = RowTimes(q[i], initial, entering);
                AddTo(o, 1, reached);
                AddTo(dq, entering, TimesColumn(initial, dO[i]));
                dg += (i + 1) * Dot(reached, dO[i]);
            }
            float leaving = MathF.Exp((_n - 1 - i) * g);
            if (final is not null) dg += AddFinalState(b, i, hk, k[i], v[i], leaving, _n - 1 - i, final, r);
            AddOuter(r.State, state, k[i], leaving, v[i]);
            AddOuter(r.BackwardState, state, q[i], entering, dO[i]);
            for (int e = 0; e < _e; e++) r.Output[oRow + e] = o[e];
            for (int d = 0; d < _d; d++) r.Query[qRow + d] = dq[d];
        }
        if (initial is not null && final is not null) dg += _n * MathF.Exp(_n * g) * Dot(initial, final);
        r.Decay[h] += dg;
    }

    /// <summary>Adds dk_i, dv_i that come through the final state; returns its path's part of dg.</summary>
    private float AddFinalState(int b, int i, int hk, float[] k, float[] v, float leaving, int distance, float[] final, Results r)
    {
        int kRow = ((b * _n + i) * problem.Hk + hk) * _d;
        int vRow = ((b * _n + i) * problem.Hk + hk) * _e;
        float[] dk = TimesColumn(final, v);
        float[] dv = RowTimes(k, final, leaving);
        for (int d = 0; d < _d; d++) r.Key[kRow + d] = (float)r.Key[kRow + d] + leaving * dk[d];
        for (int e = 0; e < _e; e++) r.Value[vRow + e] = (float)r.Value[vRow + e] + dv[e];
        return distance * Dot(dv, v);
    }

    private float[][] Rows(double[] x, int b, int h, int heads, int width)
    {
        var rows = new float[_n][];
        for (int i = 0; i < _n; i++)
        {
            int start = ((b * _n + i) * heads + h) * width;
            rows[i] = Array.ConvertAll(x[start..(start + width)], value => (float)value);
        }
        return rows;
    }

    private static float Round(float x) => (BF16)x;

    private static float Dot(float[] a, float[] b)
    {
        float sum = 0;
        for (int i = 0; i < a.Length; i++) sum += a[i] * b[i];
        return sum;
    }

    private static void AddTo(float[] y, float alpha, float[] x)
    {
        for (int i = 0; i < y.Length; i++) y[i] += alpha * x[i];
    }

    /// <summary>alpha x S for S [D, E].</summary>
    private float[] RowTimes(float[] x, float[] s, float alpha)
    {
        var y = new float[_e];
        for (int d = 0; d < _d; d++)
            for (int e = 0; e < _e; e++) y[e] += Round(alpha * x[d]) * s[d * _e + e];
        return y;
    }

    /// <summary>S y^T for S [D, E].</summary>
    private float[] TimesColumn(float[] s, float[] y)
    {
        var x = new float[_d];
        for (int d = 0; d < _d; d++)
            for (int e = 0; e < _e; e++) x[d] += s[d * _e + e] * y[e];
        return x;
    }

    private void AddOuter(double[] state, int start, float[] row, float alpha, float[] column)
    {
        for (int d = 0; d < _d; d++)
        {
            float left = Round(alpha * row[d]);
            for (int e = 0; e < _e; e++) state[start + d * _e + e] = (float)state[start + d * _e + e] + left * column[e];
        }
    }
}
