using LaspNative.Collectives;
using LaspNative.Runtime;
using Xunit;

namespace LaspNative.Tests.SoftmaxParallel;

/// <summary>The matrix, reduced, over ranks that share one GPU.</summary>
[Trait("Category", "Gpu")]
public class SoftmaxGpuTests
{
    private static readonly WorldOptions s_virtual = new(DeviceKind.Cuda, VirtualRanks: true);

    public static TheoryData<string, int> Worlds()
    {
        var rows = new TheoryData<string, int>();
        foreach (string strategy in SoftmaxMatrixTests.Names)
            foreach (int w in new[] { 1, 2, 3, 4 }) rows.Add(strategy, w);
        return rows;
    }

    [Theory]
    [MemberData(nameof(Worlds))]
    public void Every_rank_equals_the_definition_in_fp32(string strategy, int w)
    {
        Gpu.Require();
        foreach (bool causal in new[] { true, false })
        {
            foreach (int n in new[] { 3, 131 }) SoftmaxMatrixTests.AssertWithin(Case(strategy, w, n, DType.F32) with { Causal = causal, B = 2 }, 5e-5, s_virtual);
            SoftmaxMatrixTests.AssertWithin(Case(strategy, w, 97, DType.F32) with { Causal = causal, Documents = SoftmaxMatrixTests.DocumentsOf(97) }, 5e-5, s_virtual);
        }
    }

    [Theory]
    [MemberData(nameof(Worlds))]
    public void Bf16_errs_at_most_twice_as_much_as_the_naive_op(string strategy, int w)
    {
        Gpu.Require();
        SoftmaxMatrixTests.AssertBf16(Case(strategy, w, 200, DType.BF16), s_virtual);
    }

    internal static SoftmaxCase Case(string strategy, int w, int n, DType dtype) => new(strategy, w, n, dtype) { D = 16, E = 24 };
}

/// <summary>The same over NCCL, one GPU per rank.</summary>
[Collection(nameof(OverNccl))]
public class SoftmaxNcclTests
{
    private static readonly WorldOptions s_nccl = new(DeviceKind.Cuda);

    public static IEnumerable<TheoryDataRow<string, int>> Worlds() => OverNccl.ByGpus(
        from strategy in SoftmaxMatrixTests.Names
        from w in (int[])[2, 3, 4]
        select new TheoryDataRow<string, int>(strategy, w), row => row.Data.Item2);

    [Theory]
    [MemberData(nameof(Worlds))]
    public void Every_rank_equals_the_definition_and_sends_what_is_predicted(string strategy, int w)
    {
        Gpu.Require(w);
        foreach (int n in new[] { 1, 131 })
        {
            SoftmaxCase @case = SoftmaxGpuTests.Case(strategy, w, n, DType.F32) with { B = 2 };
            Dictionary<string, double> errors = @case.Errors(s_nccl, (rank, sent) => Assert.True((sent.Forward, sent.Backward) == sent.Predicted, $"{@case} on rank {rank}: {sent}"));
            Assert.All(errors, e => Assert.True(e.Value <= 5e-5, $"{@case}: {e.Key}: {e.Value:e2}"));
        }
        SoftmaxMatrixTests.AssertWithin(SoftmaxGpuTests.Case(strategy, w, 97, DType.F32) with { Documents = SoftmaxMatrixTests.DocumentsOf(97) }, 5e-5, s_nccl);
        SoftmaxMatrixTests.AssertBf16(SoftmaxGpuTests.Case(strategy, w, 200, DType.BF16), s_nccl);
    }
}
