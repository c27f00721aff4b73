namespace LaspNative.Tests.Oracles;

/// <summary>
/// Causal linear attention token by token in fp64, one head at a time, as the definition reads. Shares no code with the backends.
///   S_i = exp(g) S_{i-1} + k_i^T v_i        o_i = scale q_i S_i
/// Arrays are row-major: q [B,N,H,D], k [B,N,Hk,D], v [B,N,Hk,E], decay [H] or null, initialState [B,H,D,E] or null. Query head h reads key head h / (H/Hk).
/// </summary>
public sealed record LinearAttentionOracle(int B, int N, int H, int Hk, int D, int E)
{
    public required double[] Q { get; init; }

    public required double[] K { get; init; }

    public required double[] V { get; init; }

    /// <summary>Log decay per query head; null: none.</summary>
    public double[]? Decay { get; init; }

    public double[]? InitialState { get; init; }

    public required double Scale { get; init; }

    /// <summary>o [B,N,H,E] and the state after the last token [B,H,D,E].</summary>
    public sealed record Values(double[] Output, double[] FinalState);

    /// <summary>Shaped like what they belong to. The gradient of an initial state that was not given is what it would be at zero.</summary>
    public sealed record Gradients(double[] Query, double[] Key, double[] Value, double[] Decay, double[] InitialState);

    private double Factor(int h) => Math.Exp(Decay?[h] ?? 0);

    private int QueryRow(int b, int i, int h) => (b * N + i) * H + h;

    private int KeyRow(int b, int i, int h) => (b * N + i) * Hk + h / (H / Hk);

    public Values Forward()
    {
        var output = new double[B * N * H * E];
        var final = new double[B * H * D * E];
        ForEachHead((b, h) =>
        {
            double[][] states = States(b, h);
            for (int i = 0; i < N; i++)
            {
                int q = QueryRow(b, i, h) * D;
                int o = QueryRow(b, i, h) * E;
                for (int d = 0; d < D; d++)
                    for (int e = 0; e < E; e++) output[o + e] += Scale * Q[q + d] * states[i + 1][d * E + e];
            }
            states[N].CopyTo(final, (b * H + h) * D * E);
        });
        return new Values(output, final);
    }

    /// <summary>
    /// Walks the recurrence backwards through the stored states. With dS_i the gradient of S_i, its own output included:
    ///   dq_i = scale dO_i S_i^T     dk_i = dS_i v_i     dv_i = k_i dS_i     dg += exp(g) (S_{i-1} . dS_i)     dS_{i-1} = exp(g) dS_i + scale q_{i-1}^T dO_{i-1}
    /// </summary>
    public Gradients Backward(double[] dOutput, double[]? dFinalState = null)
    {
        var g = new Gradients(new double[Q.Length], new double[K.Length], new double[V.Length], new double[H], new double[B * H * D * E]);
        ForEachHead((b, h) =>
        {
            double[][] states = States(b, h);
            int head = (b * H + h) * D * E;
            double factor = Factor(h);
            double[] dState = dFinalState?[head..(head + D * E)] ?? new double[D * E];
            for (int i = N - 1; i >= 0; i--)
            {
                int q = QueryRow(b, i, h) * D;
                int o = QueryRow(b, i, h) * E;
                int k = KeyRow(b, i, h) * D;
                int v = KeyRow(b, i, h) * E;
                for (int d = 0; d < D; d++)
                {
                    for (int e = 0; e < E; e++)
                    {
                        int at = d * E + e;
                        dState[at] += Scale * Q[q + d] * dOutput[o + e];
                        g.Query[q + d] += Scale * dOutput[o + e] * states[i + 1][at];
                        g.Key[k + d] += dState[at] * V[v + e];
                        g.Value[v + e] += K[k + d] * dState[at];
                        g.Decay[h] += factor * states[i][at] * dState[at];
                    }
                }
                for (int at = 0; at < D * E; at++) dState[at] *= factor;
            }
            dState.CopyTo(g.InitialState, head);
        });
        return g;
    }

    /// <summary>S_0 .. S_N of one head, each [D, E].</summary>
    private double[][] States(int b, int h)
    {
        var states = new double[N + 1][];
        int head = (b * H + h) * D * E;
        states[0] = InitialState?[head..(head + D * E)] ?? new double[D * E];
        double factor = Factor(h);
        for (int i = 0; i < N; i++)
        {
            int k = KeyRow(b, i, h) * D;
            int v = KeyRow(b, i, h) * E;
            double[] next = states[i + 1] = new double[D * E];
            for (int d = 0; d < D; d++)
                for (int e = 0; e < E; e++) next[d * E + e] = factor * states[i][d * E + e] + K[k + d] * V[v + e];
        }
        return states;
    }

    private void ForEachHead(Action<int, int> body)
    {
        for (int b = 0; b < B; b++)
            for (int h = 0; h < H; h++) body(b, h);
    }
}
