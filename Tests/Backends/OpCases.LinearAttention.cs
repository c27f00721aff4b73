using LaspNative.Runtime;
using LaspNative.Tests.Oracles;

namespace LaspNative.Tests.Backends;

/// <summary>Linear attention: one row runs all its ops (o, M, dM, dq, dk, dv, dDecay) on one problem; then the decay of runs and Horner's rule.</summary>
public static partial class OpCases
{
    /// <param name="Decay">Nats per token of the fastest head (the others halve it); 0: none. Per token and per channel it is the most.</param>
    /// <param name="Uneven">Most tokens hardly decay, a few forget all: sums of the decay are large where their differences are small.</param>
    /// <param name="MixedSeed">Above 0: decays of every strength from none to <paramref name="Decay"/> beside each other, drawn from this seed.</param>
    /// <param name="States">Whether an initial state and a gradient of the final state are given, and what leaves at either end is asked for.</param>
    /// <param name="Together">Whether all gradients are asked for in one call, and where the device cuts the run what enters its segments is kept from the forward pass.</param>
    /// <param name="Documents">Boundaries of packed documents, each with states of its own; null: none.</param>
    /// <param name="Slow">
    /// Whether tokens hardly decay while values have a mean. All of the naive op's results are rounded to bf16 then, the decay's gradient as well, which every other row compares with one that stays fp32:
    /// so many paths add up with one sign there that what each of them was rounded by averages out, and roundings that a token's pairs share do not.
    /// </param>
    private sealed record AttentionShape(
        int N, int D, int E, int B = 1, int H = 2, int Hk = 2, double Decay = 0, bool States = false, DecayKind Kind = DecayKind.Head, bool Uneven = false, int MixedSeed = 0, bool Together = false,
        long[]? Documents = null, bool Slow = false)
    {
        public string Name => $"linear attention N={N} D={D} E={E} B={B} H={H} Hk={Hk} {(Uneven ? "uneven " : MixedSeed > 0 ? "mixed " : "")}decay={Decay}{KindName}{(States ? " with states" : "")}{(Together ? " together" : "")}{(Documents is null ? "" : $" in {Documents.Length - 1} documents")}{(Slow ? " slow" : "")}";

        private string KindName => Kind switch { DecayKind.Token => " per token", DecayKind.Channel => " per channel", _ => "" };

        public double[]? Decays => MixedSeed > 0 ? TestData.MixedDecays(Kind, B, N, H, D, Decay, MixedSeed) : Decay > 0 ? TestData.Decays(Kind, B, N, H, D, Decay, power: Uneven ? 5 : 1) : null;

        public Shape StateShape => [Documents is null ? B : Documents.Length - 1, H, D, E];

        public Shape DecayShape => Kind switch { DecayKind.Token => [B, N, H], DecayKind.Channel => [B, N, H, D], _ => [H] };
    }

    private static readonly AttentionShape[] s_attention =
    [
        new(0, 16, 16, B: 2, Hk: 1, Decay: 0.5, States: true),
        new(0, 5, 7),
        new(1, 64, 64),
        new(1, 5, 7, B: 2, H: 4, Decay: 0.5, States: true),
        new(2, 16, 16, H: 4, Hk: 1, Decay: 20),
        new(2, 128, 96, States: true),
        new(63, 5, 7, B: 2, Decay: 0.1, States: true),
        new(63, 128, 96, Hk: 1),
        new(64, 64, 64, Decay: 0.1),
        new(64, 16, 16, B: 2, H: 4, States: true),
        new(65, 128, 96, Decay: 0.1, States: true),
        new(65, 5, 7, B: 2, H: 4, Hk: 4),
        new(130, 64, 64, H: 4, Decay: 0.05, States: true),
        new(130, 16, 16, Decay: 20, States: true),
        new(130, 128, 96, B: 2, Hk: 1, States: true),
        new(130, 5, 7, H: 3, Hk: 1, Decay: 0.5),
        new(1000, 16, 16, B: 2, H: 4, Decay: 0.02, States: true),
        new(1000, 64, 64),
        new(1000, 128, 96, Hk: 1, Decay: 20, States: true),
        new(1000, 5, 7, H: 4, Hk: 1, Decay: 0.2, States: true),
        new(130, 33, 100, Decay: 0.1, States: true), // widths that no 16-byte access fits, of every size that kernels tell apart
        new(130, 100, 36, Hk: 1, Decay: 0.1, States: true),
        new(130, 100, 68, Decay: 0.1, States: true),
        new(130, 200, 130, Hk: 1, Decay: 0.1, States: true, Kind: DecayKind.Token),
        .. PerToken(DecayKind.Token),
        .. PerToken(DecayKind.Channel),
        new(1000, 128, 96, Hk: 1, Decay: 20, States: true, Kind: DecayKind.Token),
        new(5000, 16, 16, Decay: 0.01, States: true, Kind: DecayKind.Token), // more sub-chunks than one segment of states
        new(600, 128, 128, H: 1, Hk: 1, Decay: 0.05, States: true), // several segments of the widths that models have
        new(600, 64, 64, H: 2, Hk: 1, Decay: 0.05, States: true),
        new(300, 128, 64, H: 1, Hk: 1, Decay: 0.05, States: true),
        new(300, 64, 128, H: 1, Hk: 1, Decay: 0.05, States: true),
        new(600, 64, 64, H: 1, Hk: 1, Decay: 0.05, States: true, Kind: DecayKind.Token),
        new(600, 64, 64, H: 1, Hk: 1, Decay: 0.05, States: true, Kind: DecayKind.Channel),
        new(600, 128, 128, Decay: 0.05, States: true, Kind: DecayKind.Token),
        new(300, 128, 64, B: 2, Decay: 20, States: true, Kind: DecayKind.Token, Uneven: true),
        new(300, 64, 128, Decay: 20, States: true, Kind: DecayKind.Token),
        new(320, 128, 128, H: 1, Hk: 1, Decay: 0.001, States: true, Kind: DecayKind.Token),
        new(300, 128, 128, Decay: 0.05, States: true, Kind: DecayKind.Channel, Together: true),
        new(600, 128, 128, H: 1, Hk: 1, Decay: 1.15, States: true, Kind: DecayKind.Channel, Together: true), // a quarter of the chunks decays by more than 2^64
        new(300, 72, 104, B: 2, Decay: 20, States: true, Kind: DecayKind.Channel, Uneven: true, Together: true),
        new(300, 128, 128, H: 1, Hk: 1, Decay: 20, States: true, Kind: DecayKind.Channel),
        new(300, 64, 64, H: 4, Hk: 2, Decay: 0.05, Kind: DecayKind.Token, Together: true),
        new(300, 64, 128, H: 4, Hk: 2, Decay: 0.5, Kind: DecayKind.Channel, Together: true),
        new(600, 64, 64, H: 4, Hk: 1, Decay: 0.5, States: true, Kind: DecayKind.Channel, Together: true),
        new(600, 64, 128, Hk: 1, Decay: 1.15, States: true, Kind: DecayKind.Channel),
        new(300, 72, 104, B: 2, H: 4, Hk: 2, Decay: 20, States: true, Kind: DecayKind.Channel, Uneven: true),
        new(300, 128, 128, Hk: 1, Decay: 0.1, States: true, Kind: DecayKind.Channel, Together: true),
        new(300, 256, 130, Hk: 1, Decay: 0.1, States: true, Kind: DecayKind.Channel, Together: true),
        new(1400, 64, 64, Hk: 1, Decay: 0.5, States: true, Kind: DecayKind.Channel, Together: true), // ranges of several segments, where AttentionRangesTests wants some
        new(1400, 64, 64, H: 1, Hk: 1, Decay: 0.5, States: true, Kind: DecayKind.Token),
        .. Slow(DecayKind.Token),
        .. Slow(DecayKind.Channel),
        .. Packed,
    ];

    /// <summary>Decays that leave most of a token for hundreds of others.</summary>
    private static IEnumerable<AttentionShape> Slow(DecayKind kind) =>
    [
        new(300, 64, 128, H: 5, Hk: 1, Decay: 0.05, Kind: kind, Together: true, Slow: true),
        new(600, 64, 64, H: 5, Hk: 5, Decay: 0.05, States: true, Kind: kind, Slow: true),
        new(600, 128, 128, H: 5, Hk: 1, Decay: 0.005, Kind: kind, Together: true, Slow: true),
        new(1100, 64, 64, H: 5, Hk: 5, Decay: 0.0005, Kind: kind, Together: true, Slow: true),
    ];

    /// <summary>Packed documents: of one token, of a sub-chunk more or less, and long enough to be cut, beside each other.</summary>
    private static IEnumerable<AttentionShape> Packed =>
    [
        new(300, 16, 16, Decay: 0.1, Documents: [0, 1, 2, 66, 130, 193, 300]),
        new(300, 16, 24, H: 4, Hk: 2, Decay: 0.1, States: true, Documents: [0, 64, 65, 300]),
        new(300, 5, 7, Decay: 0.1, States: true, Kind: DecayKind.Token, Documents: [0, 100, 300]),
        new(200, 16, 16, Decay: 0.1, States: true, Kind: DecayKind.Channel, Documents: [0, 60, 61, 200]),
        new(200, 64, 64, H: 1, Hk: 1, Documents: [0, 60, 61, 200]),
        new(2600, 16, 16, Decay: 0.02, Documents: [0, 10, 1700, 1701, 2600]),
        new(2600, 16, 16, Hk: 1, Decay: 0.02, Kind: DecayKind.Token, Documents: [0, 10, 1700, 1701, 2600]),
        new(2600, 64, 64, Decay: 0.02, Documents: [0, 10, 1700, 1701, 2600]),
        new(2600, 64, 64, Decay: 0.02, States: true, Kind: DecayKind.Token, Documents: [0, 10, 1700, 1701, 2600]),
        new(2600, 128, 128, Decay: 0.02, States: true, Documents: [0, 10, 1700, 1701, 2600]),
        new(2600, 128, 64, Decay: 0.02, Kind: DecayKind.Token, Documents: [0, 1690, 2589, 2600]),
        new(2600, 64, 128, Hk: 1, States: true, Documents: [0, 1690, 2589, 2600]),
    ];

    /// <summary>Lengths around the sub-chunks of every backend, with decays that hardly matter, that matter, and that leave nothing of the token before.</summary>
    private static IEnumerable<AttentionShape> PerToken(DecayKind kind) =>
    [
        new(0, 16, 16, B: 2, Hk: 1, Decay: 0.5, States: true, Kind: kind),
        new(1, 5, 7, B: 2, H: 4, Decay: 0.5, States: true, Kind: kind),
        new(2, 128, 96, Decay: 20, Kind: kind),
        new(15, 16, 16, Decay: 0.1, Kind: kind),
        new(17, 5, 7, B: 2, H: 4, Decay: 0.1, States: true, Kind: kind),
        new(63, 128, 96, Hk: 1, Decay: 0.1, States: true, Kind: kind),
        new(64, 64, 64, Decay: 0.05, Kind: kind),
        new(65, 33, 17, B: 2, H: 3, Hk: 1, Decay: 1, States: true, Kind: kind),
        new(130, 64, 64, H: 4, Decay: 20, States: true, Kind: kind),
        new(130, 16, 16, B: 2, Decay: 100, States: true, Kind: kind),
        new(130, 128, 128, Decay: 0.02, States: true, Kind: kind),
        new(1100, 16, 16, H: 4, Decay: 0.02, States: true, Kind: kind),
        new(130, 64, 64, Decay: 100, States: true, Kind: kind, Uneven: true),
        new(1000, 5, 7, B: 2, H: 4, Hk: 1, Decay: 5, Kind: kind),
    ];

    private static void AddLinearAttention()
    {
        foreach (AttentionShape shape in s_attention) s_rows[shape.Name] = () => Attention(shape);
        foreach ((int n, int heads, int x, int y) in ((int, int, int, int)[])[(0, 2, 2, 2), (1, 2, 2, 2), (65, 4, 4, 4), (65, 4, 2, 4), (130, 4, 4, 2), (130, 3, 1, 1)])
            foreach (bool transpose in (bool[])[false, true]) AddApplyState(n, heads, x, y, transpose);
        foreach (long tokens in (long[])[0, 1, 65, 100_000]) AddRunDecay("none", [], [2, 3], tokens);
        foreach (long tokens in (long[])[0, 1, 65, 100_000]) AddRunDecay("per head", [3], [2, 3], tokens);
        foreach (long tokens in (long[])[0, 1, 65]) AddRunDecay("per token", [2, tokens, 3], [2, 3], tokens);
        foreach (long tokens in (long[])[0, 1, 65]) AddRunDecay("per channel", [2, tokens, 3, 5], [2, 3, 5], tokens);
        AddCombine(first: 0, count: 0, step: 1, initial: true);
        AddCombine(first: 0, count: 0, step: 1, initial: false);
        AddCombine(first: 0, count: 4, step: 1, initial: true);
        AddCombine(first: 0, count: 3, step: 1, initial: false);
        AddCombine(first: 3, count: 3, step: -1, initial: true);
        AddCombine(first: 3, count: 4, step: -1, initial: false);
    }

    private static OpCase Attention(AttentionShape s)
    {
        bool decayed = s.Decay > 0;
        double scale = 1 / Math.Sqrt(s.D);
        Shape state = s.StateShape;
        (Shape q, Shape k) = ([s.B, s.N, s.H, s.D], [s.B, s.N, s.Hk, s.D]);
        (Shape o, Shape v) = ([s.B, s.N, s.H, s.E], [s.B, s.N, s.Hk, s.E]);
        return new OpCase
        {
            Operands =
            [
                T("q", q, TestData.Heads(s.B * s.N, s.H, s.D, 1)), T("k", k, TestData.Heads(s.B * s.N, s.Hk, s.D, 2)), T("v", v, TestData.Heads(s.B * s.N, s.Hk, s.E, 3)),
                T("dO", o, TestData.Heads(s.B * s.N, s.H, s.E, 4)),
                .. decayed ? (Operand[])[Acc("decay", s.DecayShape, s.Decays), Acc("dDecay", s.DecayShape)] : [],
                .. s.States ? (Operand[])[Acc("initial", state, TestData.Normal(state.Count, 5)), Acc("dFinal", state, TestData.Normal(state.Count, 6)), Acc("final", state), Acc("dInitial", state)] : [],
                T("o", o), Acc("M", state), Acc("dM", state), T("dq", q), T("dk", k), T("dv", v),
            ],
            Call = (backend, t) =>
            {
                Tensor? decay = decayed ? t("decay") : null;
                Tensor? initial = s.States ? t("initial") : null;
                Tensor? dFinal = s.States ? t("dFinal") : null;
                using PackedRuns? runs = s.Documents is null ? null : new PackedRuns(s.Documents);
                backend.LinearAttentionState(t("k"), t("v"), decay, t("M"), runs: runs);
                using Tensor? entering = s.Together ? Segments(s, backend, t("q").Device) : null;
                if (entering is not null) backend.LinearAttentionState(t("k"), t("v"), decay, state: null, entering);
                backend.LinearAttention(t("q"), t("k"), t("v"), decay, initial, scale, t("o"), entering, runs);
                backend.LinearAttentionBackwardState(t("q"), t("dO"), decay, scale, t("dM"), runs: runs);
                if (s.States)
                {
                    backend.LinearAttentionState(t("k"), t("v"), decay, t("final"), initialState: initial, runs: runs);
                    backend.LinearAttentionBackwardState(t("q"), t("dO"), decay, scale, t("dInitial"), dFinalState: dFinal, runs: runs);
                }
                if (s.Together)
                {
                    backend.LinearAttentionBackward(t("q"), t("k"), t("v"), t("dO"), decay!, initial, dFinal, scale, t("dq"), t("dk"), t("dv"), t("dDecay"), entering);
                    return;
                }
                if (s.States && decayed && s.Kind != DecayKind.Head)
                {
                    long count = runs is null ? backend.LinearAttentionPaths(t("q"), t("k"), t("v"), t("dO"), decay!) : 0;
                    using Tensor? paths = count > 0 ? Tensor.Empty([count], DType.F32, t("q").Device) : null;
                    if (paths is not null) backend.Fill(double.NaN, paths);
                    backend.LinearAttentionBackwardQuery(t("k"), t("v"), t("dO"), decay, initial, scale, t("dq"), segments: null, paths is null ? null : t("q"), paths, runs);
                    backend.LinearAttentionBackwardKeyValueDecay(
                        t("q"), t("k"), t("v"), t("dO"), decay!, initial, dFinal, scale, t("dk"), t("dv"), t("dDecay"), paths: paths, runs: runs);
                    return;
                }
                backend.LinearAttentionBackwardQuery(t("k"), t("v"), t("dO"), decay, initial, scale, t("dq"), runs: runs);
                backend.LinearAttentionBackwardKeyValue(t("q"), t("k"), t("v"), t("dO"), decay, dFinal, scale, t("dk"), t("dv"), runs: runs);
                if (decayed) backend.LinearAttentionBackwardDecay(t("q"), t("k"), t("v"), t("dO"), decay!, initial, dFinal, scale, t("dDecay"), runs: runs);
            },
            Oracle = values => AttentionResults(s, Problem(s, values), values),
            NaiveBf16 = values => NaiveResults(s, values),
        };
    }

    /// <summary>Room for the segments' states, poisoned; null where the device does not cut the run.</summary>
    private static Tensor? Segments(AttentionShape s, IBackend backend, Device device)
    {
        long count = backend.LinearAttentionSegments(s.B, s.N, s.H, s.D, s.E);
        if (count <= 1) return null;
        Tensor segments = Tensor.Empty([count, s.B, s.H, s.D, s.E], DType.F32, device);
        backend.Fill(double.NaN, segments);
        return segments;
    }

    private static LinearAttentionOracle Problem(AttentionShape s, Func<string, double[]> values) => new(s.B, s.N, s.H, s.Hk, s.D, s.E)
    {
        Q = values("q"),
        K = values("k"),
        V = values("v"),
        Decay = s.Decay > 0 ? values("decay") : null,
        InitialState = s.States ? values("initial") : null,
        CuSeqlens = s.Documents,
        Scale = 1 / Math.Sqrt(s.D),
    };

    /// <summary>Documents one by one. What leaves a run at either end errs as the sums over its tokens do: the state that it was given is fp32.</summary>
    private static Dictionary<string, double[]> NaiveResults(AttentionShape s, Func<string, double[]> values)
    {
        if (s.Documents is { } bounds)
        {
            Dictionary<string, double[]>[] parts = [.. bounds.SkipLast(1).Select((start, i) => NaiveResults(s with { N = (int)(bounds[i + 1] - start), Documents = null }, name => OfDocument(s, name, values(name), i)))];
            return parts[0].Keys.ToDictionary(
                name => name, name => name == "dDecay" && s.Kind == DecayKind.Head ? [.. Enumerable.Range(0, s.H).Select(h => parts.Sum(p => p[name][h]))] : parts.SelectMany(p => p[name]).ToArray());
        }
        LinearAttentionOracle problem = Problem(s, values);
        NaiveBf16Attention.Results r = new NaiveBf16Attention(problem).Run(values("dO"), s.States ? values("dFinal") : null);
        Dictionary<string, double[]> results = Results(("o", r.Output), ("M", r.State), ("dM", r.BackwardState), ("dq", r.Query), ("dk", r.Key), ("dv", r.Value), ("dDecay", s.Slow ? TestData.Rounded(r.Decay, DType.BF16) : r.Decay));
        if (!s.States) return results;
        double[] through = Through(s, values);
        double[] Passed(string name) => [.. values(name).Select((x, i) => x * through[i / (s.D * s.E) * through.Length / (s.B * s.H) + (through.Length == s.B * s.H ? 0 : i / s.E % s.D)])];
        results["final"] = [.. r.State.Zip(Passed("initial"), (m, x) => m + x)];
        results["dInitial"] = [.. r.BackwardState.Zip(Passed("dFinal"), (m, x) => m + x)];
        return results;
    }

    /// <summary>The decay over a run's tokens, [B, H], or [B, H, D] per channel.</summary>
    private static double[] Through(AttentionShape s, Func<string, double[]> values)
    {
        if (s.Decay == 0 || s.Kind == DecayKind.Head) return [.. Enumerable.Range(0, s.B * s.H).Select(i => s.Decay == 0 ? 1 : Math.Exp(s.N * values("decay")[i % s.H]))];
        int row = s.H * (s.Kind == DecayKind.Channel ? s.D : 1);
        double[] decay = values("decay");
        return [.. Enumerable.Range(0, s.B * row).Select(i => Math.Exp(Enumerable.Range(0, s.N).Sum(n => decay[((i / row * s.N) + n) * row + i % row])))];
    }

    /// <summary>A document's part of an operand: its tokens, or its row of states; a decay per head is everybody's.</summary>
    private static double[] OfDocument(AttentionShape s, string name, double[] values, int document)
    {
        if (name == "decay" && s.Kind == DecayKind.Head) return values;
        if (name is "initial" or "dFinal") return values[(document * s.H * s.D * s.E)..((document + 1) * s.H * s.D * s.E)];
        int width = values.Length / s.N;
        return values[((int)s.Documents![document] * width)..((int)s.Documents[document + 1] * width)];
    }

    /// <summary>M is the final state from a zero initial one; dM the gradient of an initial state when the final one has none.</summary>
    private static Dictionary<string, double[]> AttentionResults(AttentionShape s, LinearAttentionOracle problem, Func<string, double[]> values)
    {
        LinearAttentionOracle.Gradients g = problem.Backward(values("dO"), s.States ? values("dFinal") : null);
        Dictionary<string, double[]> results = Results(
            ("o", problem.Forward().Output),
            ("M", (problem with { InitialState = null }).Forward().FinalState),
            ("dM", s.States ? problem.Backward(values("dO")).InitialState : g.InitialState),
            ("dq", g.Query),
            ("dk", g.Key),
            ("dv", g.Value));
        if (s.Decay > 0) results["dDecay"] = g.Decay;
        if (s.States) (results["final"], results["dInitial"]) = (problem.Forward().FinalState, g.InitialState);
        return results;
    }

    /// <summary>x has <paramref name="hx"/> heads, y <paramref name="hy"/>, the state <paramref name="h"/>.</summary>
    private static void AddApplyState(int n, int h, int hx, int hy, bool transpose)
    {
        const int B = 2;
        const double Scale = 0.3;
        (int d, int e) = (33, 17);
        (int from, int to) = transpose ? (e, d) : (d, e);
        s_rows[$"apply {(transpose ? "transposed " : "")}state N={n} H={h} Hx={hx} Hy={hy}"] = () => new OpCase
        {
            Operands =
            [
                T("x", [B, n, hx, from], TestData.Heads(B * n, hx, from, 1)), Acc("state", [B, h, d, e], TestData.Heads(B, h, d * e, 2)),
                T("y", [B, n, hy, to]),
            ],
            Call = (backend, t) => backend.ApplyState(t("x"), t("state"), transpose, Scale, t("y")),
            Oracle = v => Results(("y", Applied(v("x"), v("state"), x => x))),
            NaiveBf16 = v => Results(("y", TestData.Rounded(Applied(v("x"), TestData.Rounded(v("state"), DType.BF16), x => (float)x), DType.BF16))),
        };

        double[] Applied(double[] x, double[] state, Func<double, double> rounded)
        {
            var y = new double[B * n * hy * to];
            for (int row = 0; row < B * n; row++)
            {
                for (int head = 0; head < h; head++)
                {
                    int source = ((row * hx) + (head / (h / hx))) * from;
                    int target = ((row * hy) + (head / (h / hy))) * to;
                    int s = ((row / n * h) + head) * d * e;
                    for (int i = 0; i < from; i++)
                        for (int j = 0; j < to; j++) y[target + j] = rounded(y[target + j] + Scale * x[source + i] * state[s + (transpose ? j * e + i : i * e + j)]);
                }
            }
            return y;
        }
    }

    private static void AddRunDecay(string kind, Shape decay, Shape factor, long tokens)
    {
        bool none = decay.Rank == 0, perToken = decay.Rank > 1;
        int columns = (int)(factor.Count / 2);
        s_rows[$"run decay {kind} over {tokens} tokens"] = () => new OpCase
        {
            Operands = [.. none ? [] : (Operand[])[Acc("decay", decay, Array.ConvertAll(TestData.Normal(decay.Count, 1, 0.1), x => -Math.Abs(x)))], Acc("factor", factor)],
            Call = (backend, t) => backend.RunDecay(none ? null : t("decay"), tokens, t("factor")),
            Oracle = v => Results(("factor", [.. Enumerable.Range(0, 2 * columns).Select(i => Math.Exp(none ? 0 : perToken
                ? Enumerable.Range(0, (int)tokens).Sum(n => v("decay")[((i / columns * (int)tokens) + n) * columns + (i % columns)])
                : tokens * v("decay")[i % columns]))])),
        };
    }

    private static void AddCombine(int first, int count, int step, bool initial)
    {
        const int W = 4;
        (int b, int h, int d, int e) = (2, 3, 5, 7);
        Shape state = [b, h, d, e];
        int size = (int)state.Count;
        s_rows[$"combine {count} states from {first} by {step}{(initial ? " onto an initial state" : "")}"] = () => new OpCase
        {
            Operands =
            [
                Acc("states", [W, b, h, d, e], TestData.Heads(W * b, h, d * e, 1)), Acc("factors", [W, b, h], TestData.Normal(W * b * h, 2)),
                .. initial ? (Operand[])[Acc("initial", state, TestData.Normal(size, 3))] : [],
                Acc("result", state),
            ],
            Call = (backend, t) => backend.CombineStates(t("states"), t("factors"), first, count, step, initial ? t("initial") : null, t("result")),
            Oracle = v =>
            {
                double[] p = initial ? [.. v("initial")] : new double[size];
                for (int n = 0, j = first; n < count; n++, j += step)
                    for (int i = 0; i < size; i++) p[i] = v("factors")[j * b * h + i / (d * e)] * p[i] + v("states")[j * size + i];
                return Results(("result", p));
            },
        };
    }
}
