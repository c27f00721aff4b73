using System.Collections.Concurrent;
using LaspNative.Model;
using LaspNative.Runtime;
using LaspNative.Runtime.Cpu;
using LaspNative.Tests.Oracles;
using Xunit;

namespace LaspNative.Tests.Cli;

/// <summary>One attention call as a file: inputs that differ per head, and the fp64 answer on the values as stored.</summary>
public sealed record AttendCase(DType DType, int N, bool WithDecay)
{
    private static readonly ConcurrentDictionary<AttendCase, Dictionary<string, (double[] Values, Shape Shape, DType DType)>> s_expected = new();

    /// <summary>How the decay is given; per head by default where there is one.</summary>
    public DecayKind Decay { get; init; } = WithDecay ? DecayKind.Head : DecayKind.None;

    public bool Causal { get; init; } = true;

    /// <summary>Packs documents into one row (then B = 1).</summary>
    public long[]? CuSeqlens { get; init; }

    public int B { get; init; } = 2;

    public int H { get; init; } = 4;

    public int Hk { get; init; } = 4;

    public int D { get; init; } = 16;

    public int E { get; init; } = 16;

    public bool WithStates { get; init; }

    public double? Scale { get; init; }

    public DType DecayDType { get; init; } = DType.Accumulator();

    public LinearAttentionOracle Oracle => new(B, N, H, Hk, D, E)
    {
        Q = Operand(H, D, 1),
        K = Operand(Hk, D, 2),
        V = Operand(Hk, E, 3),
        Decay = TestData.Decays(Decay, B, N, H, D) is { } decay ? TestData.Rounded(TestData.Rounded(decay, DecayDType), DType.Accumulator()) : null,
        InitialState = WithStates ? TestData.Rounded(TestData.Normal(StateShape.Count, 5), DType.Accumulator()) : null,
        Scale = Scale ?? 1 / Math.Sqrt(D),
        CuSeqlens = CuSeqlens,
        Causal = Causal,
    };

    private Shape StateShape => [CuSeqlens is null ? B : CuSeqlens.Length - 1, H, D, E];

    private Shape DecayShape => Decay switch { DecayKind.Head => [H], DecayKind.Token => [B, N, H], _ => [B, N, H, D] };

    public double[] OutputGradient => Operand(H, E, 4);

    public double[]? FinalStateGradient => WithStates ? TestData.Rounded(TestData.Normal(StateShape.Count, 6), DType.Accumulator()) : null;

    /// <summary>Runs lasp attend on this call and compares all that it writes; <paramref name="tolerance"/> is asked per tensor.</summary>
    public void AssertAttends(string device, int ranks, Func<string, double> tolerance, params string[] more) =>
        AssertAttends(s_expected.GetOrAdd(this, c => c.Expected()), device, ranks, tolerance, Causal ? more : [.. more, "--no-causal"]);

    /// <summary>The same for softmax attention.</summary>
    public void AssertAttendsSoftmax(string device, int ranks, Func<string, double> tolerance, params string[] more) =>
        AssertAttends(ExpectedOfSoftmax(), device, ranks, tolerance, [.. Causal ? more : [.. more, "--no-causal"], "--attention", "softmax"]);

    private void AssertAttends(Dictionary<string, (double[] Values, Shape Shape, DType DType)> expected, string device, int ranks, Func<string, double> tolerance, string[] more)
    {
        string folder = Directory.CreateTempSubdirectory("lasp-attend-").FullName;
        (string input, string output) = (Path.Combine(folder, "in"), Path.Combine(folder, "out"));
        try
        {
            Write(input);
            LaspRun run = Lasp.Run(["attend", "--input", input, "--output", output, "--device", device, "--ranks", $"{ranks}", .. more]);
            Assert.True(run.ExitCode == 0, run.Error);
            AssertFile(output, expected, tolerance);
        }
        finally
        {
            Directory.Delete(folder, recursive: true);
        }
    }

    /// <summary>What a BF16 call may err by: twice the error of the naive op in bf16, per result.</summary>
    public Func<string, double> Bf16Tolerance()
    {
        NaiveBf16Attention.Results naive = new NaiveBf16Attention(Oracle).Run(OutputGradient, FinalStateGradient);
        Dictionary<string, (double[] Values, Shape Shape, DType DType)> expected = s_expected.GetOrAdd(this, c => c.Expected());
        var results = new Dictionary<string, double[]>(StringComparer.Ordinal)
        {
            ["o"] = naive.Output,
            ["final_state"] = naive.State,
            ["dq"] = naive.Query,
            ["dk"] = naive.Key,
            ["dv"] = naive.Value,
            ["d_log_decay"] = naive.Decay,
        };
        return name => Tolerances.Bf16(Errors.Relative(results[name], expected[name].Values));
    }

    private double[] Operand(int heads, int width, int seed) => TestData.Rounded(TestData.Heads(B * N, heads, width, seed), DType);

    public void Write(string path, bool withGradient = true)
    {
        using var device = new CpuDevice(1);
        LinearAttentionOracle call = Oracle;
        DType acc = DType.Accumulator();
        var tensors = new List<(string Name, Tensor Tensor)>
        {
            ("q", TestData.Tensor(call.Q, [B, N, H, D], DType, device)),
            ("k", TestData.Tensor(call.K, [B, N, Hk, D], DType, device)),
            ("v", TestData.Tensor(call.V, [B, N, Hk, E], DType, device)),
        };
        if (call.Decay is not null) tensors.Add(("log_decay", TestData.Tensor(call.Decay, DecayShape, DecayDType, device)));
        if (call.InitialState is not null) tensors.Add(("initial_state", TestData.Tensor(call.InitialState, StateShape, acc, device)));
        if (CuSeqlens is not null) tensors.Add(("cu_seqlens", Tensor.FromSpan(CuSeqlens, [CuSeqlens.Length], device)));
        if (withGradient) tensors.Add(("do", TestData.Tensor(OutputGradient, [B, N, H, E], DType, device)));
        if (withGradient && FinalStateGradient is { } dFinal) tensors.Add(("d_final_state", TestData.Tensor(dFinal, StateShape, acc, device)));
        SafetensorsWriter.Write(path, tensors);
        foreach ((_, Tensor tensor) in tensors) tensor.Dispose();
    }

    /// <summary>The expected tensors by name, with the shapes and element types they must have.</summary>
    public Dictionary<string, (double[] Values, Shape Shape, DType DType)> Expected()
    {
        LinearAttentionOracle call = Oracle;
        DType acc = DType.Accumulator();
        (double[] output, double[] finalState) = call.Forward();
        LinearAttentionOracle.Gradients gradients = call.Backward(OutputGradient, FinalStateGradient);
        var expected = new Dictionary<string, (double[] Values, Shape Shape, DType DType)>(StringComparer.Ordinal)
        {
            ["o"] = (output, [B, N, H, E], DType),
            ["final_state"] = (finalState, StateShape, acc),
            ["dq"] = (gradients.Query, [B, N, H, D], DType),
            ["dk"] = (gradients.Key, [B, N, Hk, D], DType),
            ["dv"] = (gradients.Value, [B, N, Hk, E], DType),
        };
        if (call.Decay is not null) expected["d_log_decay"] = (gradients.Decay, DecayShape, DecayDType);
        if (WithStates) expected["d_initial_state"] = (gradients.InitialState, StateShape, acc);
        return expected;
    }

    /// <summary>The call as softmax attention of all queries over all keys.</summary>
    private SoftmaxAttentionOracle SoftmaxOracle => new(B, N, N, H, Hk, D, E)
    {
        Q = Operand(H, D, 1),
        K = Operand(Hk, D, 2),
        V = Operand(Hk, E, 3),
        Ranges = SoftmaxAttentionOracle.Documents(0, N, CuSeqlens ?? [0, N], Causal),
        Scale = Scale ?? 1 / Math.Sqrt(D),
    };

    private Dictionary<string, (double[] Values, Shape Shape, DType DType)> ExpectedOfSoftmax()
    {
        SoftmaxAttentionOracle.Gradients gradients = SoftmaxOracle.Backward(OutputGradient);
        return new(StringComparer.Ordinal)
        {
            ["o"] = (SoftmaxOracle.Forward().Output, [B, N, H, E], DType),
            ["dq"] = (gradients.Query, [B, N, H, D], DType),
            ["dk"] = (gradients.Key, [B, N, Hk, D], DType),
            ["dv"] = (gradients.Value, [B, N, Hk, E], DType),
        };
    }

    /// <summary>What a BF16 call of softmax attention may err by.</summary>
    public Func<string, double> Bf16SoftmaxTolerance()
    {
        NaiveBf16SoftmaxAttention.Results naive = new NaiveBf16SoftmaxAttention(SoftmaxOracle).Run(OutputGradient);
        Dictionary<string, (double[] Values, Shape Shape, DType DType)> expected = ExpectedOfSoftmax();
        return name => Tolerances.Bf16(Errors.Relative(name switch { "o" => naive.Output, "dq" => naive.Query, "dk" => naive.Key, _ => naive.Value }, expected[name].Values));
    }

    /// <summary>Compares a written file with the expected tensors; <paramref name="tolerance"/> is asked per tensor.</summary>
    public static void AssertFile(string path, Dictionary<string, (double[] Values, Shape Shape, DType DType)> expected, Func<string, double> tolerance)
    {
        using var device = new CpuDevice(1);
        using SafetensorsFile file = SafetensorsFile.Open(path);
        Assert.Equal(expected.Keys.Order(StringComparer.Ordinal), file.Names.Order(StringComparer.Ordinal));
        foreach ((string name, (double[] values, Shape shape, DType dtype)) in expected)
        {
            Assert.Equal(new SafetensorsInfo(dtype, shape), file.Info(name));
            using Tensor tensor = file.Load(name, device);
            Errors.AssertClose(tensor.ToDoubles(), values, tolerance(name), name);
        }
    }
}
