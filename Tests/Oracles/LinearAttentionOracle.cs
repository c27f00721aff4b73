namespace LaspNative.Tests.Oracles;

/// <summary>
/// Linear attention token by token in fp64, one head of one document at a time, as the definition reads. Shares no code with the backends.
///   S_i = exp(g_i) . S_{i-1} + k_i^T v_i        o_i = scale q_i S_i        (not causal: o_i = scale q_i S_N, without decay)
/// Arrays are row-major: q [B,N,H,D], k [B,N,Hk,D], v [B,N,Hk,E]. Query head h reads key head h / (H/Hk).
/// States are [n,H,D,E] with n the number of documents: B, one per batch row, unless <see cref="CuSeqlens"/> packs several into one row.
/// </summary>
public sealed record LinearAttentionOracle(int B, int N, int H, int Hk, int D, int E)
{
    public required double[] Q { get; init; }

    public required double[] K { get; init; }

    public required double[] V { get; init; }

    /// <summary>Log decay, told apart by its length: per query head [H], per token [B,N,H], per channel [B,N,H,D]; null: none.</summary>
    public double[]? Decay { get; init; }

    public double[]? InitialState { get; init; }

    public required double Scale { get; init; }

    /// <summary>Where the documents of one row (B = 1) start, and N at the end: the state starts anew at each. Null: every row is one document.</summary>
    public long[]? CuSeqlens { get; init; }

    /// <summary>False: every token sees the whole document (and the initial state).</summary>
    public bool Causal { get; init; } = true;

    /// <summary>o [B,N,H,E] and the states after the last tokens [n,H,D,E].</summary>
    public sealed record Values(double[] Output, double[] FinalState);

    /// <summary>Shaped like what they belong to. The gradient of an initial state or a decay (per head) that was not given is what it would be at zero.</summary>
    public sealed record Gradients(double[] Query, double[] Key, double[] Value, double[] Decay, double[] InitialState);

    /// <summary>Tokens [Start, End) of batch row B.</summary>
    private readonly record struct Document(int Index, int B, int Start, int End)
    {
        public int Length => End - Start;
    }

    /// <summary>n: how many documents there are.</summary>
    public int DocumentCount => CuSeqlens is null ? B : CuSeqlens.Length - 1;

    private IEnumerable<Document> Documents => Enumerable.Range(0, DocumentCount).Select(n =>
        CuSeqlens is null ? new Document(n, n, 0, N) : new Document(n, 0, (int)CuSeqlens[n], (int)CuSeqlens[n + 1]));

    private int QueryRow(int b, int i, int h) => (b * N + i) * H + h;

    private int KeyRow(int b, int i, int h) => (b * N + i) * Hk + h / (H / Hk);

    /// <summary>Where the log decay of a position lies in <see cref="Decay"/>.</summary>
    public int DecayAt(int b, int i, int h, int d)
    {
        int length = Decay?.Length ?? H;
        return length == H ? h : length == B * N * H ? QueryRow(b, i, h) : QueryRow(b, i, h) * D + d;
    }

    private double Factor(int b, int i, int h, int d) => Math.Exp(Decay?[DecayAt(b, i, h, d)] ?? 0);

    public Values Forward()
    {
        var output = new double[B * N * H * E];
        var final = new double[DocumentCount * H * D * E];
        ForEachHead((document, h) =>
        {
            double[][] states = States(document, h);
            for (int i = 0; i < document.Length; i++)
            {
                int row = QueryRow(document.B, document.Start + i, h);
                double[] seen = Causal ? states[i + 1] : states[^1];
                for (int d = 0; d < D; d++)
                    for (int e = 0; e < E; e++) output[row * E + e] += Scale * Q[row * D + d] * seen[d * E + e];
            }
            states[^1].CopyTo(final, StateOf(document, h));
        });
        return new Values(output, final);
    }

    /// <summary>
    /// Walks the recurrence backwards through the stored states. With dS_i the gradient of S_i, its own output included:
    ///   dq_i = scale dO_i S_i^T     dk_i = dS_i v_i     dv_i = k_i dS_i     dg_i = exp(g_i) (S_{i-1} . dS_i)     dS_{i-1} = exp(g_i) . dS_i + scale q_{i-1}^T dO_{i-1}
    /// Not causal, all outputs belong to S_N: they enter its gradient before the walk.
    /// </summary>
    public Gradients Backward(double[] dOutput, double[]? dFinalState = null)
    {
        var g = new Gradients(new double[Q.Length], new double[K.Length], new double[V.Length], new double[Decay?.Length ?? H], new double[DocumentCount * H * D * E]);
        ForEachHead((document, h) =>
        {
            int head = StateOf(document, h);
            double[][] states = States(document, h);
            double[] dState = dFinalState?[head..(head + D * E)] ?? new double[D * E];
            for (int i = 0; i < document.Length && !Causal; i++) AddOutput(dState, QueryRow(document.B, document.Start + i, h), dOutput);
            for (int i = document.Length - 1; i >= 0; i--)
            {
                int row = QueryRow(document.B, document.Start + i, h);
                if (Causal) AddOutput(dState, row, dOutput);
                AddToken(g, document.B, document.Start + i, h, Causal ? states[i + 1] : states[^1], states[i], dState, dOutput);
                for (int at = 0; at < D * E; at++) dState[at] *= Factor(document.B, document.Start + i, h, at / E);
            }
            dState.CopyTo(g.InitialState, head);
        });
        return g;
    }

    /// <summary>dS += scale q^T dO of one query row.</summary>
    private void AddOutput(double[] dState, int row, double[] dOutput)
    {
        for (int at = 0; at < D * E; at++) dState[at] += Scale * Q[row * D + at / E] * dOutput[row * E + at % E];
    }

    /// <summary>The gradients of token i, which reads the state seen, found the state before, and left one with gradient dState.</summary>
    private void AddToken(Gradients g, int b, int i, int h, double[] seen, double[] before, double[] dState, double[] dOutput)
    {
        int query = QueryRow(b, i, h);
        int key = KeyRow(b, i, h);
        for (int d = 0; d < D; d++)
        {
            for (int e = 0; e < E; e++)
            {
                int at = d * E + e;
                g.Query[query * D + d] += Scale * dOutput[query * E + e] * seen[at];
                g.Key[key * D + d] += dState[at] * V[key * E + e];
                g.Value[key * E + e] += K[key * D + d] * dState[at];
                g.Decay[DecayAt(b, i, h, d)] += Factor(b, i, h, d) * before[at] * dState[at];
            }
        }
    }

    /// <summary>S_0 .. S_N of one head of one document, each [D, E].</summary>
    private double[][] States(Document document, int h)
    {
        if (!Causal && Decay is not null) throw new InvalidOperationException("attention that is not causal has no decay");
        var states = new double[document.Length + 1][];
        int head = StateOf(document, h);
        states[0] = InitialState?[head..(head + D * E)] ?? new double[D * E];
        for (int i = 0; i < document.Length; i++)
        {
            int key = KeyRow(document.B, document.Start + i, h);
            double[] next = states[i + 1] = new double[D * E];
            for (int at = 0; at < D * E; at++)
                next[at] = Factor(document.B, document.Start + i, h, at / E) * states[i][at] + K[key * D + at / E] * V[key * E + at % E];
        }
        return states;
    }

    private int StateOf(Document document, int h) => (document.Index * H + h) * D * E;

    private void ForEachHead(Action<Document, int> body)
    {
        foreach (Document document in Documents)
            for (int h = 0; h < H; h++) body(document, h);
    }
}
