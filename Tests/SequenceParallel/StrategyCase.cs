using LaspNative.Autograd;
using LaspNative.Collectives;
using LaspNative.Runtime;
using LaspNative.Tests.Oracles;
using Xunit;

namespace LaspNative.Tests.SequenceParallel;

/// <summary>The kinds of log decay, by shape: none, [H], [B, N, H], [B, N, H, D].</summary>
public enum DecayKind
{
    None,
    Head,
    Token,
    Channel,
}

/// <summary>
/// One attention problem over W ranks: the oracle sees the whole sequence, each rank its chunk, and every rank's every result is compared.
/// Heads differ in scale, mean and decay, so that a value read at another head or rank shows.
/// </summary>
public sealed record StrategyCase(int W, int N, DType DType)
{
    private const double Scale = 0.25;

    public int B { get; init; } = 1;

    public int H { get; init; } = 4;

    public int Hk { get; init; } = 4;

    public int D { get; init; } = 16;

    public int E { get; init; } = 24;

    public DecayKind Decay { get; init; }

    /// <summary>Also gives an initial state and a gradient of the final state, one per document.</summary>
    public bool States { get; init; }

    /// <summary>cu_seqlens of packed documents.</summary>
    public long[]? Documents { get; init; }

    public bool Causal { get; init; } = true;

    public string Strategy { get; init; } = "lasp2";

    /// <summary>What is done to a rank's device first.</summary>
    public Action<Device>? Prepare { get; init; }

    private int DocumentCount => Documents is null ? B : Documents.Length - 1;

    /// <summary>The whole problem for the oracle, inputs rounded to the case's type.</summary>
    public LinearAttentionOracle Oracle => new(B, N, H, Hk, D, E)
    {
        Q = Input(1, H, D),
        K = Input(2, Hk, D),
        V = Input(3, Hk, E),
        Decay = LogDecay(),
        InitialState = States && InitialStateAllowed ? State(5) : null,
        CuSeqlens = Documents,
        Causal = Causal,
        Scale = Scale,
    };

    /// <summary>Ring attention passes no state, and attention without a mask has no start.</summary>
    private bool InitialStateAllowed => Causal && Strategy != "ring";

    private double[] OutputGradient => Input(4, H, E);

    private double[]? FinalStateGradient => States ? State(6) : null;

    /// <summary>All results of one rank; those that are not given are null.</summary>
    public sealed record RankResult(double[] Output, double[] FinalState, double[] Query, double[] Key, double[] Value, double[]? Decay, double[]? InitialState);

    /// <summary>Runs the case and returns every relative error by name of what was compared ("dq on rank 1").</summary>
    public Dictionary<string, double> Errors(WorldOptions world, Action<RankContext>? after = null) => ErrorsOf(Run(world, after));

    /// <summary>Runs the case and holds every relative error to one bound.</summary>
    public void AssertWithin(WorldOptions world, double tolerance) => Assert.All(Errors(world), e => Assert.True(e.Value <= tolerance, $"{this}: {e.Key}: {e.Value:e2} above {tolerance:e2}"));

    /// <summary>Runs a BF16 case and holds every relative error to twice the naive op's.</summary>
    public void AssertWithinTwiceNaive(WorldOptions world)
    {
        Dictionary<string, double> tolerances = Bf16Tolerances();
        Assert.All(Errors(world), e => Assert.True(e.Value <= tolerances[e.Key], $"{this}: {e.Key}: {e.Value:e2} above {tolerances[e.Key]:e2}"));
    }

    /// <summary>What a BF16 run may err by, under the same names: twice the error of the naive op in bf16 on the same values. For plain cases without states.</summary>
    public Dictionary<string, double> Bf16Tolerances()
    {
        NaiveBf16Attention.Results naive = new NaiveBf16Attention(Oracle).Run(OutputGradient, dFinalState: null);
        int decayWidth = Decay == DecayKind.Channel ? D : 1;
        RankResult Of(int r) => new(
            Chunk(naive.Output, H, E, r), r == 0 ? naive.State : new double[naive.State.Length], Chunk(naive.Query, H, D, r), Chunk(naive.Key, Hk, D, r), Chunk(naive.Value, Hk, E, r),
            Decay is DecayKind.Token or DecayKind.Channel ? Chunk(naive.Decay, H, decayWidth, r) : r == 0 ? naive.Decay : new double[naive.Decay.Length], null);
        return ErrorsOf([.. Enumerable.Range(0, W).Select(Of)]).ToDictionary(e => e.Key, e => Tolerances.Bf16(e.Value), StringComparer.Ordinal);
    }

    private Dictionary<string, double> ErrorsOf(RankResult[] results)
    {
        LinearAttentionOracle oracle = Oracle;
        LinearAttentionOracle.Values expected = oracle.Forward();
        LinearAttentionOracle.Gradients gradients = oracle.Backward(OutputGradient, FinalStateGradient);
        var errors = new Dictionary<string, double>(StringComparer.Ordinal);
        void Compare(string what, double[]? actual, double[] reference) => errors[what] = Oracles.Errors.Relative(actual, reference);
        for (int r = 0; r < W; r++) CompareRank(r, results[r], expected, gradients, Compare);
        Compare("final_state", Sum(results, r => r.FinalState), expected.FinalState);
        if (Decay == DecayKind.Head) Compare("d_log_decay", Sum(results, r => r.Decay!), gradients.Decay);
        if (oracle.InitialState is not null) Compare("d_initial_state", Sum(results, r => r.InitialState!), gradients.InitialState);
        return errors;
    }

    /// <summary>The errors of one rank's own results: what it can judge alone, as one of several processes.</summary>
    public Dictionary<string, double> ErrorsOfRank(RankContext rank)
    {
        LinearAttentionOracle oracle = Oracle;
        var errors = new Dictionary<string, double>(StringComparer.Ordinal);
        CompareRank(rank.Rank, RunRank(rank, oracle), oracle.Forward(), oracle.Backward(OutputGradient, FinalStateGradient), (what, actual, reference) => errors[what] = Oracles.Errors.Relative(actual, reference));
        return errors;
    }

    private void CompareRank(int r, RankResult result, LinearAttentionOracle.Values expected, LinearAttentionOracle.Gradients gradients, Action<string, double[]?, double[]> compare)
    {
        compare($"o on rank {r}", result.Output, Chunk(expected.Output, H, E, r));
        compare($"dq on rank {r}", result.Query, Chunk(gradients.Query, H, D, r));
        compare($"dk on rank {r}", result.Key, Chunk(gradients.Key, Hk, D, r));
        compare($"dv on rank {r}", result.Value, Chunk(gradients.Value, Hk, E, r));
        if (Decay is DecayKind.Token or DecayKind.Channel) compare($"d_log_decay on rank {r}", result.Decay, Chunk(gradients.Decay, H, Decay == DecayKind.Token ? 1 : D, r));
    }

    /// <summary>Every rank's results.</summary>
    public RankResult[] Run(WorldOptions world, Action<RankContext>? after = null)
    {
        LinearAttentionOracle oracle = Oracle;
        var results = new RankResult[W];
        World.Run(world with { Ranks = W }, rank =>
        {
            rank.World.Counters.Reset();
            Prepare?.Invoke(rank.Device);
            results[rank.Rank] = RunRank(rank, oracle);
            after?.Invoke(rank);
        });
        return results;
    }

    private RankResult RunRank(RankContext rank, LinearAttentionOracle oracle)
    {
        Device device = rank.Device;
        var partition = new SequencePartition(N, W);
        long c = partition.Length(rank.Rank);
        DType acc = DType.Accumulator();
        Tensor Share(double[] values, int heads, int width, DType dtype) => TestData.Tensor(Chunk(values, heads, width, rank.Rank), [B, c, heads, width], dtype, device);
        using var q = Variable.Parameter(Share(oracle.Q, H, D, DType));
        using var k = Variable.Parameter(Share(oracle.K, Hk, D, DType));
        using var v = Variable.Parameter(Share(oracle.V, Hk, E, DType));
        using Variable? decay = LeafOfDecay(oracle.Decay, rank.Rank, c, device);
        using Variable? initial = oracle.InitialState is null ? null : Variable.Parameter(TestData.Tensor(oracle.InitialState, [DocumentCount, H, D, E], acc, device));
        using Tensor dO = Share(OutputGradient, H, E, DType);
        using Tensor? dS = FinalStateGradient is { } dFinal ? TestData.Tensor(dFinal, [DocumentCount, H, D, E], acc, device) : null;

        var options = new AttentionOptions { Scale = Scale, Partition = partition, Causal = Causal, Documents = Documents is null ? null : new PackedDocuments(Documents) };
        LinearAttentionResult result = LinearAttention.ApplyWithState(q, k, v, decay, initial, rank.World, LaspNative.Collectives.SequenceParallel.Parse(Strategy), options);
        using Variable output = result.Output;
        using Variable finalState = result.FinalState;
        if (dS is null) output.Backward(dO);
        else Tape.Backward((output, dO), (finalState, dS));
        return new RankResult(output.Value.ToDoubles(), finalState.Value.ToDoubles(), q.Gradient!.ToDoubles(), k.Gradient!.ToDoubles(), v.Gradient!.ToDoubles(),
            decay?.Gradient!.ToDoubles(), initial?.Gradient!.ToDoubles());
    }

    private Variable? LeafOfDecay(double[]? values, int rank, long c, Device device)
    {
        DType acc = DType.Accumulator();
        return Decay switch
        {
            DecayKind.None => null,
            DecayKind.Head => Variable.Parameter(TestData.Tensor(values!, [H], acc, device)),
            DecayKind.Token => Variable.Parameter(TestData.Tensor(Chunk(values!, H, 1, rank), [B, c, H], acc, device)),
            _ => Variable.Parameter(TestData.Tensor(Chunk(values!, H, D, rank), [B, c, H, D], acc, device)),
        };
    }

    private double[]? LogDecay()
    {
        double[]? values = Decay switch
        {
            DecayKind.None => null,
            DecayKind.Head => TestData.Decays(H),
            DecayKind.Token => Array.ConvertAll(TestData.Heads((long)B * N, H, 1, 7), x => -0.1 * Math.Abs(x)),
            _ => Array.ConvertAll(TestData.Heads((long)B * N, H, D, 7), x => -0.1 * Math.Abs(x)),
        };
        return values is null ? null : TestData.Rounded(values, DType.Accumulator());
    }

    private double[] State(int seed) => TestData.Rounded(TestData.Normal((long)DocumentCount * H * D * E, seed), DType.Accumulator());

    private double[] Input(int seed, int heads, int width) => TestData.Rounded(TestData.Heads((long)B * N, heads, width, seed), DType);

    /// <summary>A rank's tokens of [B, N, heads, width].</summary>
    private double[] Chunk(double[] values, int heads, int width, int rank)
    {
        var partition = new SequencePartition(N, W);
        int row = heads * width;
        int start = (int)partition.Start(rank) * row;
        int length = (int)partition.Length(rank) * row;
        return [.. Enumerable.Range(0, B).SelectMany(b => values.AsSpan(b * N * row + start, length).ToArray())];
    }

    private static double[] Sum(RankResult[] results, Func<RankResult, double[]> part) =>
        results.Select(part).Aggregate((a, b) => [.. a.Zip(b, (x, y) => x + y)]);
}
