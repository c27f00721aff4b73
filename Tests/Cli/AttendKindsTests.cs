using LaspNative.Runtime;
using LaspNative.Tests.Oracles;
using Xunit;

namespace LaspNative.Tests.Cli;

/// <summary>lasp attend with every kind of decay, packed documents, softmax attention and every strategy, against the fp64 definitions.</summary>
public class AttendKindsTests
{
    /// <summary>Documents of one token, inside a chunk, at a chunk's edge, and over three ranks.</summary>
    private static readonly long[] s_documents = [0, 1, 2, 30, 50, 51, 130];

    public static TheoryData<string, DecayKind, DType> Strategies
    {
        get
        {
            var data = new TheoryData<string, DecayKind, DType>();
            foreach (string strategy in (string[])["lasp1", "lasp2", "zeco", "ring", "ulysses"])
                foreach (DecayKind decay in Enum.GetValues<DecayKind>())
                    foreach (DType dtype in (DType[])[DType.F32, DType.F64]) data.Add(strategy, decay, dtype);
            return data;
        }
    }

    [Theory]
    [MemberData(nameof(Strategies))]
    public void Every_strategy_takes_every_decay(string strategy, DecayKind decay, DType dtype)
    {
        var call = new AttendCase(dtype, 131, WithDecay: false) { Decay = decay, Hk = 2, E = 24 };
        AssertAttends(call, ranks: 2, strategy);
        if (strategy == "ulysses") return; // at most gcd(H, Hk) ranks
        AssertAttends(call with { N = 3 }, ranks: 4, strategy);
    }

    [Theory]
    [MemberData(nameof(Strategies))]
    public void Packed_documents_stay_apart(string strategy, DecayKind decay, DType dtype)
    {
        var call = new AttendCase(dtype, 130, WithDecay: false) { Decay = decay, B = 1, CuSeqlens = s_documents, WithStates = strategy != "ring" };
        AssertAttends(call, ranks: 1, strategy);
        AssertAttends(call, ranks: 4, strategy);
        AssertAttends(call with { WithStates = false }, ranks: 3 - (strategy == "ulysses" ? 1 : 0), strategy);
    }

    [Theory]
    [InlineData(DecayKind.Token, DType.F64)]
    [InlineData(DecayKind.Channel, DType.F32)]
    [InlineData(DecayKind.Token, DType.BF16)]
    public void The_decay_gradient_has_the_decay_s_type_and_shape(DecayKind kind, DType dtype)
    {
        var call = new AttendCase(DType.F32, 65, WithDecay: true) { Decay = kind, DecayDType = dtype };
        call.AssertAttends("cpu", ranks: 2, name => dtype == DType.BF16 && name == "d_log_decay" ? 4e-3 : 2e-5);
    }

    [Theory]
    [InlineData(1)]
    [InlineData(3)]
    public void Without_a_mask_every_token_sees_all(int ranks)
    {
        new AttendCase(DType.F64, 65, WithDecay: false) { Causal = false, Hk = 2, E = 24 }.AssertAttends("cpu", ranks, _ => 1e-11);
        new AttendCase(DType.F32, 2, WithDecay: false) { Causal = false }.AssertAttends("cpu", ranks, _ => 2e-5);
    }

    [Theory]
    [InlineData("allgather", 3)]
    [InlineData("allgather-balanced", 3)]
    [InlineData("ring", 3)]
    [InlineData("zigzag", 3)]
    [InlineData("ulysses", 2)]
    public void Softmax_attention_under_every_strategy(string strategy, int ranks)
    {
        var call = new AttendCase(DType.F64, 131, WithDecay: false) { Hk = 2, D = 8, E = 24 };
        foreach (int w in (int[])[1, ranks])
        {
            AssertAttendsSoftmax(call, w, strategy);
            AssertAttendsSoftmax(call with { DType = DType.F32, Scale = 0.5, N = 3 }, w, strategy, "--scale", "0.5");
            AssertAttendsSoftmax(call with { DType = DType.F32, Causal = false, N = 40 }, w, strategy);
            AssertAttendsSoftmax(call with { B = 1, N = 130, CuSeqlens = s_documents }, w, strategy);
        }
    }

    private static void AssertAttends(AttendCase call, int ranks, string strategy) => call.AssertAttends("cpu", ranks, _ => Tolerance(call), "--strategy", strategy);

    private static void AssertAttendsSoftmax(AttendCase call, int ranks, string strategy, params string[] more) =>
        call.AssertAttendsSoftmax("cpu", ranks, _ => Tolerance(call), [.. more, "--softmax-strategy", strategy]);

    private static double Tolerance(AttendCase call) => call.DType == DType.F64 ? 1e-11 : 2e-5;
}
