using LaspNative.Autograd;
using LaspNative.Collectives;
using LaspNative.Runtime;
using LaspNative.Tests.Oracles;

namespace LaspNative.Tests.SoftmaxParallel;

/// <summary>
/// One softmax-attention problem over W ranks: the oracle sees the whole sequence, each rank its chunk, and every rank's every result is compared.
/// Heads differ in scale and mean, so that a value read at another head or rank shows.
/// </summary>
public sealed record SoftmaxCase(string Strategy, int W, int N, DType DType)
{
    public const double Scale = 0.25;

    public int B { get; init; } = 1;

    /// <summary>Twice the key/value heads; Ulysses needs as many of those as ranks.</summary>
    public int H => 2 * Hk;

    public int Hk => Strategy == "ulysses" ? W : 3;

    public int D { get; init; } = 8;

    public int E { get; init; } = 12;

    public bool Causal { get; init; } = true;

    /// <summary>cu_seqlens; null: one sequence per batch row.</summary>
    public long[]? Documents { get; init; }

    public bool KeepsKeysAndValues { get; init; }

    /// <summary>Bytes that a rank sent, counted and predicted.</summary>
    public sealed record Traffic(long Forward, long Backward, (long Forward, long Backward) Predicted);

    /// <summary>Runs the case and returns the relative errors, by name of what was compared ("dq on rank 1").</summary>
    public Dictionary<string, double> Errors(WorldOptions world, Action<int, Traffic>? traffic = null)
    {
        SoftmaxAttentionOracle oracle = Oracle();
        double[] dO = Input(4, H, E);
        double[] expected = oracle.Forward().Output;
        SoftmaxAttentionOracle.Gradients gradients = oracle.Backward(dO);
        var errors = new Dictionary<string, double>();
        World.Run(world with { Ranks = W }, rank =>
        {
            RankResult result = RunRank(rank, oracle, dO);
            lock (errors)
            {
                void Compare(string what, double[] actual, double[] reference, int heads, int width) =>
                    errors[$"{what} on rank {rank.Rank}"] = Oracles.Errors.Relative(actual, Chunk(reference, heads, width, rank.Rank));
                Compare("o", result.Output, expected, H, E);
                Compare("dq", result.Query, gradients.Query, H, D);
                Compare("dk", result.Key, gradients.Key, Hk, D);
                Compare("dv", result.Value, gradients.Value, Hk, E);
                traffic?.Invoke(rank.Rank, result.Traffic);
            }
        });
        return errors;
    }

    /// <summary>What the naive op in bf16 gets wrong on one rank, by the names of what is compared ("dq").</summary>
    public Dictionary<string, double> NaiveErrors()
    {
        SoftmaxAttentionOracle oracle = Oracle();
        double[] dO = Input(4, H, E);
        SoftmaxAttentionOracle.Gradients gradients = oracle.Backward(dO);
        NaiveBf16SoftmaxAttention.Results naive = new NaiveBf16SoftmaxAttention(oracle).Run(dO);
        return new Dictionary<string, double>
        {
            ["o"] = Oracles.Errors.Relative(naive.Output, oracle.Forward().Output),
            ["dq"] = Oracles.Errors.Relative(naive.Query, gradients.Query),
            ["dk"] = Oracles.Errors.Relative(naive.Key, gradients.Key),
            ["dv"] = Oracles.Errors.Relative(naive.Value, gradients.Value),
        };
    }

    private SoftmaxAttentionOracle Oracle() => new(B, N, N, H, Hk, D, E)
    {
        Q = Input(1, H, D),
        K = Input(2, Hk, D),
        V = Input(3, Hk, E),
        Ranges = SoftmaxAttentionOracle.Documents(0, N, Documents ?? [0, N], Causal),
        Scale = Scale,
    };

    private sealed record RankResult(double[] Output, double[] Query, double[] Key, double[] Value, Traffic Traffic);

    private RankResult RunRank(RankContext rank, SoftmaxAttentionOracle oracle, double[] dOutput)
    {
        Device device = rank.Device;
        long c = new SequencePartition(N, W).Length(rank.Rank);
        Variable Leaf(double[] values, int heads, int width) =>
            Variable.Parameter(TestData.Tensor(Chunk(values, heads, width, rank.Rank), [B, c, heads, width], DType, device));
        using Variable q = Leaf(oracle.Q, H, D), k = Leaf(oracle.K, Hk, D), v = Leaf(oracle.V, Hk, E);
        using Tensor dO = TestData.Tensor(Chunk(dOutput, H, E, rank.Rank), [B, c, H, E], DType, device);
        var options = new AttentionOptions
        {
            Scale = Scale,
            Causal = Causal,
            QueryHeads = H,
            Partition = new SequencePartition(N, W),
            Documents = Documents is null ? null : new PackedDocuments(Documents),
        };
        LaspNative.Collectives.SoftmaxParallel strategy = KeepsKeysAndValues ? new SoftmaxAllGather { KeepsKeysAndValues = true } : LaspNative.Collectives.SoftmaxParallel.Parse(Strategy);
        CommunicationCounters counters = rank.World.Counters;
        counters.Reset();
        using Variable output = SoftmaxAttention.Apply(q, k, v, rank.World, strategy, options);
        long forward = counters.BytesSent;
        output.Backward(dO);
        var traffic = new Traffic(forward, counters.BytesSent - forward, strategy.PredictedBytesSent(new SoftmaxCall(k.Value, v.Value, rank.World, options)));
        return new RankResult(output.Value.ToDoubles(), q.Gradient!.ToDoubles(), k.Gradient!.ToDoubles(), v.Gradient!.ToDoubles(), traffic);
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
}
