using LaspNative.Runtime;
using Xunit;

namespace LaspNative.Tests.Backends;

/// <summary>Every row of the table on the CPU, in every element type, on aligned and odd addresses, with one thread and with several.</summary>
public class CpuParityTests
{
    public static TheoryData<string> Names => OpCases.Names;

    public static TheoryData<string> DifferentiableNames => OpCases.DifferentiableNames;

    [Theory]
    [MemberData(nameof(Names))]
    public void F64_is_the_oracle(string name) => Check(name, DType.F64);

    [Theory]
    [MemberData(nameof(Names))]
    public void F32_is_close_to_the_oracle(string name) => Check(name, DType.F32);

    [Theory]
    [MemberData(nameof(Names))]
    public void BF16_errs_at_most_twice_the_naive_op(string name) => Check(name, DType.BF16);

    [Theory]
    [MemberData(nameof(DifferentiableNames))]
    public void Gradients_are_central_differences(string name) => OpCases.Get(name).AssertGradients();

    [Theory]
    [MemberData(nameof(DifferentiableNames))]
    public void Gradients_in_F32_are_those_in_F64(string name)
    {
        using Device device = Device.Open("cpu:2");
        OpCases.Get(name).AssertSameGradients(device);
    }

    private static void Check(string name, DType element)
    {
        OpCase row = OpCases.Get(name);
        using (Device device = Device.Open("cpu:1")) row.AssertParity(device, element);
        using (Device device = Device.Open("cpu:3")) row.AssertParity(device, element, misaligned: true);
    }
}
