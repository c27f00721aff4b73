using LaspNative.Runtime;
using LaspNative.Tests.Oracles;
using Xunit;

namespace LaspNative.Tests.Cli;

/// <summary>lasp attend on a GPU that all ranks share, with every kind of decay, packed documents, softmax attention and every strategy: F32 within 5e-5, BF16 within twice the naive op's error.</summary>
[Trait("Category", "Gpu")]
public class AttendKindsGpuTests
{
    private static readonly long[] s_documents = [0, 1, 2, 30, 50, 51, 130];

    [Theory]
    [InlineData("lasp1")]
    [InlineData("lasp2")]
    [InlineData("zeco")]
    [InlineData("ring")]
    [InlineData("ulysses")]
    public void Every_strategy_takes_every_decay_and_packed_documents(string strategy)
    {
        Gpu.Require();
        foreach (DecayKind decay in Enum.GetValues<DecayKind>())
        {
            var call = new AttendCase(DType.F32, 130, WithDecay: false) { Decay = decay, Hk = 2, E = 24 };
            AssertAttends(call, ranks: 2, strategy);
            AssertAttends(call with { B = 1, CuSeqlens = s_documents, WithStates = strategy is not "ring" }, ranks: 2, strategy);
            if (strategy != "ulysses") AssertAttends(call with { N = 3 }, ranks: 4, strategy);
        }
    }

    [Fact]
    public void Without_a_mask_every_token_sees_all()
    {
        Gpu.Require();
        AssertAttends(new AttendCase(DType.F32, 130, WithDecay: false) { Causal = false, Hk = 2, E = 24 }, ranks: 3, "lasp2");
    }

    [Theory]
    [InlineData("allgather", 3)]
    [InlineData("allgather-balanced", 3)]
    [InlineData("ring", 3)]
    [InlineData("zigzag", 3)]
    [InlineData("ulysses", 2)]
    public void Softmax_attention_under_every_strategy(string strategy, int ranks)
    {
        Gpu.Require();
        foreach (DType dtype in (DType[])[DType.F32, DType.BF16])
        {
            var call = new AttendCase(dtype, 131, WithDecay: false) { Hk = 2, D = 8, E = 24 };
            AssertAttendsSoftmax(call, ranks, strategy);
            AssertAttendsSoftmax(call with { Causal = false, N = 40 }, ranks, strategy);
            AssertAttendsSoftmax(call with { B = 1, N = 130, CuSeqlens = s_documents }, ranks, strategy);
        }
    }

    private static void AssertAttends(AttendCase call, int ranks, string strategy) =>
        call.AssertAttends("cuda", ranks, _ => 5e-5, "--virtual-ranks", "--strategy", strategy);

    private static void AssertAttendsSoftmax(AttendCase call, int ranks, string strategy) =>
        call.AssertAttendsSoftmax("cuda", ranks, call.DType == DType.BF16 ? call.Bf16SoftmaxTolerance() : _ => 5e-5, "--virtual-ranks", "--softmax-strategy", strategy);
}
