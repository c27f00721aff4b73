using LaspNative.Autograd;
using LaspNative.Collectives;
using LaspNative.Runtime;
using LaspNative.Tests.Oracles;

namespace LaspNative.Tests.SequenceParallel;

/// <summary>
/// One attention problem over W ranks: the oracle sees the whole sequence, each rank its chunk, and every rank's every result is compared.
/// Heads differ in scale, mean and decay, so that a value read at another head or rank shows.
/// </summary>
public sealed record StrategyCase(int W, int N, DType DType)
{
    public int B { get; init; } = 1;

    public int H { get; init; } = 4;

    public int Hk { get; init; } = 4;

    public int D { get; init; } = 16;

    public int E { get; init; } = 24;

    public bool Decay { get; init; }

    /// <summary>Also gives an initial state and a gradient of the final state.</summary>
    public bool States { get; init; }

    public string Strategy { get; init; } = "lasp2";

    private const double Scale = 0.25;

    /// <summary>Runs the case and returns the largest relative error, by name of what was compared ("dq on rank 1").</summary>
    public Dictionary<string, double> Errors(WorldOptions world, Action<RankContext>? after = null)
    {
        var oracle = new LinearAttentionOracle(B, N, H, Hk, D, E)
        {
            Q = Input(1, H, D),
            K = Input(2, Hk, D),
            V = Input(3, Hk, E),
            Decay = Decay ? TestData.Rounded(TestData.Decays(H), DType.Accumulator()) : null,
            InitialState = States ? TestData.Rounded(TestData.Normal(B * H * D * E, 5), DType.Accumulator()) : null,
            Scale = Scale,
        };
        double[] dO = Input(4, H, E);
        double[]? dFinal = States ? TestData.Rounded(TestData.Normal(B * H * D * E, 6), DType.Accumulator()) : null;
        LinearAttentionOracle.Values expected = oracle.Forward();
        LinearAttentionOracle.Gradients gradients = oracle.Backward(dO, dFinal);

        var errors = new Dictionary<string, double>();
        var dDecay = new double[H];
        var dInitial = new double[B * H * D * E];
        World.Run(world with { Ranks = W }, rank =>
        {
            rank.World.Counters.Reset();
            RankResult result = RunRank(rank, oracle, dO, dFinal);
            after?.Invoke(rank);
            lock (errors)
            {
                void Compare(string what, double[] actual, double[] reference) => errors[$"{what} on rank {rank.Rank}"] = Oracles.Errors.Relative(actual, reference);
                Compare("o", result.Output, Chunk(expected.Output, H, E, rank.Rank));
                Compare("final_state", result.FinalState, expected.FinalState);
                Compare("dq", result.Query, Chunk(gradients.Query, H, D, rank.Rank));
                Compare("dk", result.Key, Chunk(gradients.Key, Hk, D, rank.Rank));
                Compare("dv", result.Value, Chunk(gradients.Value, Hk, E, rank.Rank));
                AddInto(result.Decay, dDecay);
                AddInto(result.InitialState, dInitial);
            }
        });
        if (Decay) errors["d_log_decay"] = Oracles.Errors.Relative(dDecay, gradients.Decay);
        if (States) errors["d_initial_state"] = Oracles.Errors.Relative(dInitial, gradients.InitialState);
        return errors;
    }

    private sealed record RankResult(double[] Output, double[] FinalState, double[] Query, double[] Key, double[] Value, double[]? Decay, double[]? InitialState);

    private RankResult RunRank(RankContext rank, LinearAttentionOracle oracle, double[] dOutput, double[]? dFinal)
    {
        Device device = rank.Device;
        var partition = new SequencePartition(N, W);
        long c = partition.Length(rank.Rank);
        Variable Leaf(double[] values, int heads, int width) =>
            Variable.Parameter(TestData.Tensor(Chunk(values, heads, width, rank.Rank), [B, c, heads, width], DType, device));
        DType acc = DType.Accumulator();
        using Variable q = Leaf(oracle.Q, H, D), k = Leaf(oracle.K, Hk, D), v = Leaf(oracle.V, Hk, E);
        using Variable? decay = oracle.Decay is null ? null : Variable.Parameter(TestData.Tensor(oracle.Decay, [H], acc, device));
        using Variable? initial = oracle.InitialState is null ? null : Variable.Parameter(TestData.Tensor(oracle.InitialState, [B, H, D, E], acc, device));
        using Tensor dO = TestData.Tensor(Chunk(dOutput, H, E, rank.Rank), [B, c, H, E], DType, device);
        using Tensor? dS = dFinal is null ? null : TestData.Tensor(dFinal, [B, H, D, E], acc, device);

        var options = new AttentionOptions { Scale = Scale, Partition = partition };
        LinearAttentionResult result = LinearAttention.ApplyWithState(q, k, v, decay, initial, rank.World, LaspNative.Collectives.SequenceParallel.Parse(Strategy), options);
        using Variable output = result.Output;
        using Variable finalState = result.FinalState;
        if (dS is null) output.Backward(dO);
        else Tape.Backward((output, dO), (finalState, dS));
        return new RankResult(output.Value.ToDoubles(), finalState.Value.ToDoubles(), q.Gradient!.ToDoubles(), k.Gradient!.ToDoubles(), v.Gradient!.ToDoubles(),
            decay?.Gradient!.ToDoubles(), initial?.Gradient!.ToDoubles());
    }

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

    private static void AddInto(double[]? part, double[] sum)
    {
        for (int i = 0; part is not null && i < sum.Length; i++) sum[i] += part[i];
    }
}
