namespace LaspNative.Tests.Oracles;

/// <summary>
/// Linear attention token by token in fp64, one head of one document at a time, as the definition reads. Shares no code with the backends.
///   S_i = exp(g_i) . S_{i-1} + k_i^T v_i        o_i = scale q_i S_i        (not causal: o_i = scale q_i S_N, without decay)
/// Arrays are row-major: q [B,N,H,D], k [B,N,Hk,D], v [B,N,Hk,E]. Query head h reads key head h / (H/Hk).
/// States are [n,H,D,E] with n the number of documents: B, one per batch row, unless <see cref="CuSeqlens"/> packs several into one row.
/// </summary>
public sealed record LinearAttentionOracle(int B, int N, int H, int Hk, int D, int E)
{
    /// <summary>Tokens whose states are held at once on the way back.</summary>
    private const int BlockTokens = 64;

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
            double[] state = InitialStateOf(document, h);
            for (int i = 0; i < document.Length; i++)
            {
                Advance(document, h, i, state);
                if (Causal) Read(document, h, i, state, output);
            }
            for (int i = 0; i < document.Length && !Causal; i++) Read(document, h, i, state, output);
            state.CopyTo(final, StateOf(document, h));
        });
        return new Values(output, final);
    }

    /// <summary>
    /// Walks the recurrence backwards through its states, which are made again for one block of tokens at a time. With dS_i the gradient of S_i, its own output included:
    ///   dq_i = scale dO_i S_i^T     dk_i = dS_i v_i     dv_i = k_i dS_i     dg_i = exp(g_i) (S_{i-1} . dS_i)     dS_{i-1} = exp(g_i) . dS_i + scale q_{i-1}^T dO_{i-1}
    /// Not causal, all outputs belong to S_N: they enter its gradient before the walk.
    /// </summary>
    public Gradients Backward(double[] dOutput, double[]? dFinalState = null)
    {
        var g = new Gradients(new double[Q.Length], new double[K.Length], new double[V.Length], new double[Decay?.Length ?? H], new double[DocumentCount * H * D * E]);
        ForEachHead((document, h) =>
        {
            int head = StateOf(document, h);
            double[][] before = [.. StatesBeforeBlocks(document, h)], states = [.. Enumerable.Range(0, BlockTokens + 1).Select(_ => new double[D * E])];
            double[] dState = dFinalState?[head..(head + D * E)] ?? new double[D * E];
            for (int i = 0; i < document.Length && !Causal; i++) AddOutput(dState, QueryRow(document.B, document.Start + i, h), dOutput);
            for (int i = document.Length - 1; i >= 0; i--)
            {
                int row = QueryRow(document.B, document.Start + i, h), place = i % BlockTokens;
                if (place == BlockTokens - 1 || i == document.Length - 1) Recall(document, h, i - place, i + 1, before[i / BlockTokens], states);
                if (Causal) AddOutput(dState, row, dOutput);
                AddToken(g, document.B, document.Start + i, h, Causal ? states[place + 1] : before[^1], states[place], dState, dOutput);
                for (int d = 0; d < D; d++) RowMath.Scale(Factor(document.B, document.Start + i, h, d), dState.AsSpan(d * E, E));
            }
            dState.CopyTo(g.InitialState, head);
        });
        return g;
    }

    /// <summary>dS += scale q^T dO of one query row.</summary>
    private void AddOutput(double[] dState, int row, double[] dOutput)
    {
        for (int d = 0; d < D; d++) RowMath.AddScaled(Scale * Q[row * D + d], dOutput.AsSpan(row * E, E), dState.AsSpan(d * E, E));
    }

    /// <summary>The gradients of token i, which reads the state seen, found the state before, and left one with gradient dState.</summary>
    private void AddToken(Gradients g, int b, int i, int h, double[] seen, double[] before, double[] dState, double[] dOutput)
    {
        int query = QueryRow(b, i, h);
        int key = KeyRow(b, i, h);
        for (int d = 0; d < D; d++)
        {
            ReadOnlySpan<double> gradients = dState.AsSpan(d * E, E);
            g.Query[query * D + d] += Scale * RowMath.Dot<double>(dOutput.AsSpan(query * E, E), seen.AsSpan(d * E, E));
            g.Key[key * D + d] += RowMath.Dot(gradients, V.AsSpan(key * E, E));
            RowMath.AddScaled(K[key * D + d], gradients, g.Value.AsSpan(key * E, E));
            g.Decay[DecayAt(b, i, h, d)] += Factor(b, i, h, d) * RowMath.Dot(before.AsSpan(d * E, E), gradients);
        }
    }

    private double[] InitialStateOf(Document document, int h)
    {
        if (!Causal && Decay is not null) throw new InvalidOperationException("attention that is not causal has no decay");
        int head = StateOf(document, h);
        return InitialState?[head..(head + D * E)] ?? new double[D * E];
    }

    /// <summary>S_{i-1}, in place, to S_i.</summary>
    private void Advance(Document document, int h, int i, double[] state)
    {
        int key = KeyRow(document.B, document.Start + i, h);
        for (int d = 0; d < D; d++)
        {
            Span<double> row = state.AsSpan(d * E, E);
            RowMath.Scale(Factor(document.B, document.Start + i, h, d), row);
            RowMath.AddScaled(K[key * D + d], V.AsSpan(key * E, E), row);
        }
    }

    /// <summary>The output of one token that reads a state.</summary>
    private void Read(Document document, int h, int i, double[] state, double[] output)
    {
        int row = QueryRow(document.B, document.Start + i, h);
        for (int d = 0; d < D; d++) RowMath.AddScaled(Scale * Q[row * D + d], state.AsSpan(d * E, E), output.AsSpan(row * E, E));
    }

    /// <summary>The states before every <see cref="BlockTokens"/> tokens of one head of one document, and the last.</summary>
    private IEnumerable<double[]> StatesBeforeBlocks(Document document, int h)
    {
        double[] state = InitialStateOf(document, h);
        for (int i = 0; i < document.Length; i++)
        {
            if (i % BlockTokens == 0) yield return [.. state];
            Advance(document, h, i, state);
        }
        yield return state;
    }

    /// <summary>S_first .. S_end from the state before them.</summary>
    private void Recall(Document document, int h, int first, int end, double[] before, double[][] states)
    {
        before.CopyTo(states[0], 0);
        for (int i = first; i < end; i++)
        {
            double[] next = states[i - first + 1];
            states[i - first].CopyTo(next, 0);
            Advance(document, h, i, next);
        }
    }

    private int StateOf(Document document, int h) => (document.Index * H + h) * D * E;

    private void ForEachHead(Action<Document, int> body)
    {
        foreach (Document document in Documents)
            for (int h = 0; h < H; h++) body(document, h);
    }
}
