using LaspNative.Runtime;

namespace LaspNative.Tests.Oracles;

/// <summary>
/// "Naive bf16", the yardstick of bf16 kernels: linear attention as a left product on bf16 inputs with fp32 accumulation, P and dP rounded to bf16, outputs rounded to bf16. With E the decay from
/// after token j through token i:
///   P_ij = [i >= j] scale E (q_i . k_j)        o_i = sum_j P_ij v_j + scale exp(G_i) q_i S_0
///   dP_ij = dO_i . v_j        dq_i = sum_j Z_ij dP_ij k_j, dk_j = sum_i Z_ij dP_ij q_i, dv_j = sum_i P_ij dO_i with Z the factor of q.k in P
/// A decay per channel sits inside the dot product: there E . q_i and E . k_j are operands, and rounded to bf16. States are fp32 sums of products whose key (query) factor carries the decay and is
/// rounded to bf16. dg counts the paths that cross a position. A kernel may err twice as much as this.
/// </summary>
public sealed class NaiveBf16Attention(LinearAttentionOracle problem)
{
    private readonly int _n = problem.N;
    private readonly int _d = problem.D;
    private readonly int _e = problem.E;
    private float[] _dk = [];
    private float[] _dv = [];
    private readonly int _width = problem.Decay?.Length == problem.Q.Length ? problem.D : 1; // numbers of one decay

    public sealed record Results(double[] Output, double[] State, double[] BackwardState, double[] Query, double[] Key, double[] Value, double[] Decay);

    /// <summary>All results at once: o, M, dM, dq, dk, dv, dDecay, for the problem's initial state and this gradient of the final one.</summary>
    public Results Run(double[] dOutput, double[]? dFinalState)
    {
        LinearAttentionOracle p = problem;
        var r = new Results(
            new double[dOutput.Length], new double[p.B * p.H * _d * _e], new double[p.B * p.H * _d * _e],
            new double[p.Q.Length], new double[p.K.Length], new double[p.V.Length], new double[p.Decay?.Length ?? p.H]);
        (_dk, _dv) = (new float[p.K.Length], new float[p.V.Length]);
        for (int b = 0; b < p.B; b++)
            for (int h = 0; h < p.H; h++) Head(b, h, dOutput, dFinalState, r);
        r = r with { Key = Array.ConvertAll(_dk, x => (double)x), Value = Array.ConvertAll(_dv, x => (double)x) };
        foreach (double[] rounded in (double[][])[r.Output, r.Query, r.Key, r.Value])
            for (int i = 0; i < rounded.Length; i++) rounded[i] = Round((float)rounded[i]);
        return r;
    }

    /// <summary>Queries are taken from the last to the first, so that what crosses a position is what the later ones have left.</summary>
    private void Head(int b, int h, double[] dOutput, double[]? dFinalState, Results r)
    {
        LinearAttentionOracle p = problem;
        int hk = h / (p.H / p.Hk);
        float[][] q = Rows(p.Q, b, h, p.H, _d);
        float[][] k = Rows(p.K, b, hk, p.Hk, _d);
        float[][] v = Rows(p.V, b, hk, p.Hk, _e);
        float[][] dO = Rows(dOutput, b, h, p.H, _e);
        double[][] sums = DecaySums(b, h);
        int state = (b * p.H + h) * _d * _e;
        float[]? initial = p.InitialState?[state..(state + _d * _e)].Select(x => (float)x).ToArray();
        float[]? final = dFinalState?[state..(state + _d * _e)].Select(x => (float)x).ToArray();
        float scale = (float)p.Scale;
        var fromEntry = new float[_width]; // paths from the initial state to tokens from i on
        var fromToken = new float[_n][];   // paths from token j to tokens from i on
        for (int j = 0; j < _n; j++)
        {
            float[] leaving = Decayed(Between(sums, _n, j + 1), k[j]);
            AddOuter(r.State, state, leaving, v[j]);
            fromToken[j] = final is null ? new float[_width] : AddFinalState(b, j, hk, Between(sums, _n, j + 1), leaving, v[j], final, r);
        }
        if (initial is not null && final is not null) AddProducts(fromEntry, 1, Times(Between(sums, _n, 0), initial), final);
        for (int i = _n - 1; i >= 0; i--)
        {
            int row = (b * _n + i) * p.H + h;
            float[] entering = Decayed(Between(sums, i + 1, 0), q[i], scale);
            AddOuter(r.BackwardState, state, entering, dO[i]);
            float[] o = initial is null ? new float[_e] : RowTimes(entering, initial);
            float[] dq = new float[_d];
            if (initial is not null)
            {
                float[] read = TimesColumn(initial, dO[i]);
                AddProducts(fromEntry, 1, entering, read);
                RowMath.AddScaled<float>(scale, Times(Between(sums, i + 1, 0), read), dq);
            }
            for (int j = 0; j <= i; j++) AddPair(Between(sums, i + 1, j + 1), q[i], k[j], v[j], dO[i], o, dq, i == j ? null : fromToken[j], (b * _n + j) * p.Hk + hk, r);
            for (int e = 0; e < _e; e++) r.Output[row * _e + e] = o[e];
            for (int d = 0; d < _d; d++) r.Query[row * _d + d] = dq[d];
            AddDecay(b, i, h, fromEntry, fromToken, r);
        }
    }

    /// <summary>All that token j gives to query i and gets back.</summary>
    private void AddPair(float[] between, float[] q, float[] k, float[] v, float[] dO, float[] o, float[] dq, float[]? paths, int keyRow, Results r)
    {
        float z = (float)problem.Scale * (_width == 1 ? between[0] : 1);
        float[] query = _width == 1 ? q : Decayed(between, q);
        float[] key = _width == 1 ? k : Decayed(between, k);
        float score = Round(z * RowMath.Dot<float>(query, k));
        float gain = RowMath.Dot<float>(dO, v);
        float dScore = Round(z * gain);
        RowMath.AddScaled<float>(score, v, o);
        RowMath.AddScaled<float>(dScore, key, dq);
        RowMath.AddScaled<float>(dScore, query, _dk.AsSpan(keyRow * _d, _d));
        RowMath.AddScaled<float>(score, dO, _dv.AsSpan(keyRow * _e, _e));
        if (paths is null) return;
        if (_width == 1) paths[0] += score * Round(gain);
        else AddProducts(paths, dScore, query, k);
    }

    /// <summary>Adds dk_j, dv_j that come through the final state; returns the paths from token j to it.</summary>
    private float[] AddFinalState(int b, int j, int hk, float[] between, float[] leaving, float[] v, float[] final, Results r)
    {
        int row = (b * _n + j) * problem.Hk + hk;
        float[] read = TimesColumn(final, v);
        float[] dk = Times(between, read);
        float[] dv = RowTimes(leaving, final);
        RowMath.AddScaled<float>(1, dk, _dk.AsSpan(row * _d, _d));
        RowMath.AddScaled<float>(1, dv, _dv.AsSpan(row * _e, _e));
        var paths = new float[_width];
        AddProducts(paths, 1, leaving, read);
        return paths;
    }

    /// <summary>dg_i: the paths that cross position i, of all tokens before it and of the initial state.</summary>
    private void AddDecay(int b, int i, int h, float[] fromEntry, float[][] fromToken, Results r)
    {
        float[] sum = [.. fromEntry];
        for (int j = 0; j < i; j++) RowMath.AddScaled<float>(1, fromToken[j], sum);
        for (int d = 0; d < _width; d++)
        {
            int at = problem.DecayAt(b, i, h, d);
            r.Decay[at] = (float)r.Decay[at] + sum[d];
        }
    }

    /// <summary>G_0 .. G_N: the sums of the log decay of tokens before a position, one number or one per channel.</summary>
    private double[][] DecaySums(int b, int h)
    {
        var sums = new double[_n + 1][];
        sums[0] = new double[_width];
        for (int i = 0; i < _n; i++)
        {
            sums[i + 1] = [.. sums[i]];
            for (int d = 0; d < _width; d++) sums[i + 1][d] += problem.Decay?[problem.DecayAt(b, i, h, d)] ?? 0;
        }
        return sums;
    }

    /// <summary>exp(G_i - G_j).</summary>
    private float[] Between(double[][] sums, int i, int j)
    {
        var factors = new float[_width];
        for (int d = 0; d < _width; d++) factors[d] = MathF.Exp((float)(sums[i][d] - sums[j][d]));
        return factors;
    }

    /// <summary>scale E . x for x [D], as a bf16 operand.</summary>
    private float[] Decayed(float[] between, float[] x, float scale = 1) => Array.ConvertAll(Times(between, x), y => Round(scale * y));

    /// <summary>E . x for x [D] or [D, E].</summary>
    private float[] Times(float[] between, float[] x)
    {
        var y = new float[x.Length];
        for (int i = 0; i < x.Length; i++) y[i] = between[_width == 1 ? 0 : i / (x.Length / _d)] * x[i];
        return y;
    }

    /// <summary>y += alpha x z, summed over all but the channels of a decay that has them.</summary>
    private void AddProducts(float[] y, float alpha, float[] x, float[] z)
    {
        for (int i = 0; i < x.Length; i++) y[_width == 1 ? 0 : i / (x.Length / _d)] += alpha * x[i] * z[i];
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

    /// <summary>x S for S [D, E].</summary>
    private float[] RowTimes(float[] x, float[] s)
    {
        var y = new float[_e];
        for (int d = 0; d < _d; d++)
            for (int e = 0; e < _e; e++) y[e] += x[d] * s[d * _e + e];
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

    private void AddOuter(double[] state, int start, float[] row, float[] column)
    {
        for (int d = 0; d < _d; d++)
            for (int e = 0; e < _e; e++) state[start + d * _e + e] = (float)state[start + d * _e + e] + row[d] * column[e];
    }
}
