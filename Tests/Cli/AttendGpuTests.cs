using LaspNative.Runtime;
using Xunit;

namespace LaspNative.Tests.Cli;

/// <summary>lasp attend on a GPU that all ranks share, against the fp64 definition: F32 within 5e-5, BF16 within twice the naive op's error.</summary>
[Trait("Category", "Gpu")]
public class AttendGpuTests
{
    public static TheoryData<DType, int, int, bool> Grid()
    {
        var grid = new TheoryData<DType, int, int, bool>();
        foreach (DType dtype in new[] { DType.F32, DType.BF16 })
            foreach (int ranks in new[] { 1, 2, 3, 4 })
                foreach (int tokens in new[] { 1, 2, 63, 64, 65, 1000 })
                    foreach (bool decay in new[] { false, true }) grid.Add(dtype, ranks, tokens, decay);
        return grid;
    }

    [Theory]
    [MemberData(nameof(Grid))]
    public void Any_number_of_ranks_gives_the_definition(DType dtype, int ranks, int tokens, bool decay) =>
        AssertAttends(new AttendCase(dtype, tokens, decay) { E = 24 }, ranks);

    [Theory]
    [InlineData(1)]
    [InlineData(3)]
    public void States_enter_and_leave(int ranks)
    {
        AssertAttends(new AttendCase(DType.F32, 130, WithDecay: true) { WithStates = true }, ranks);
        AssertAttends(new AttendCase(DType.F32, 130, WithDecay: true) { WithStates = true, Hk = 2, D = 33, E = 5 }, ranks);
    }

    [Theory]
    [InlineData(1)]
    [InlineData(3)]
    public void Key_heads_may_be_fewer_and_widths_may_differ(int ranks)
    {
        AssertAttends(new AttendCase(DType.F32, 70, WithDecay: true) { Hk = 1, D = 33, E = 5, B = 1 }, ranks);
        AssertAttends(new AttendCase(DType.F32, 66, WithDecay: false) { H = 2, Hk = 2, D = 256, E = 192, B = 1 }, ranks);
        AssertAttends(new AttendCase(DType.F32, 100, WithDecay: true) { H = 2, Hk = 1, D = 128, E = 128, B = 1 }, ranks);
        AssertAttends(new AttendCase(DType.BF16, 300, WithDecay: true) { H = 2, Hk = 1, D = 128, E = 128, B = 1 }, ranks);
    }

    [Fact]
    public void Each_rank_may_have_a_gpu_of_its_own()
    {
        Gpu.Require(gpus: 2);
        new AttendCase(DType.F32, 130, WithDecay: true) { WithStates = true }.AssertAttends("cuda", ranks: 2, _ => 5e-5);
    }

    private static void AssertAttends(AttendCase call, int ranks)
    {
        Gpu.Require();
        call.AssertAttends("cuda", ranks, call.DType == DType.BF16 ? call.Bf16Tolerance() : _ => 5e-5, "--virtual-ranks");
    }
}
