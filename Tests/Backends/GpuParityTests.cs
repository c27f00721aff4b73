using LaspNative.Runtime;
using Xunit;

namespace LaspNative.Tests.Backends;

/// <summary>The same rows on a GPU.</summary>
[Trait("Category", "Gpu")]
public class GpuParityTests
{
    public static TheoryData<string> Names => OpCases.Names;

    [Theory]
    [MemberData(nameof(Names))]
    public void F32_is_close_to_the_oracle(string name) => Check(name, DType.F32);

    [Theory]
    [MemberData(nameof(Names))]
    public void BF16_errs_at_most_twice_the_naive_op(string name) => Check(name, DType.BF16);

    private static void Check(string name, DType element)
    {
        using Device device = Gpu.Open();
        OpCase row = OpCases.Get(name);
        row.AssertParity(device, element);
        row.AssertParity(device, element, misaligned: true);
    }
}

/// <summary>Every kernel once on small shapes: what compute-sanitizer runs, being some hundred times slower.</summary>
[Trait("Category", "Sanitizer")]
public class SanitizerTests
{
    public static TheoryData<string> Names => OpCases.SmallNames;

    [Theory]
    [MemberData(nameof(Names))]
    public void Stays_in_its_memory(string name)
    {
        using Device device = Gpu.Open();
        OpCase row = OpCases.Get(name);
        row.AssertParity(device, DType.F32);
        row.AssertParity(device, DType.BF16);
    }
}
