using LaspNative.Runtime;
using Xunit;

namespace LaspNative.Tests.Backends;

/// <summary>One device for all rows of a class, opened by the first row that runs.</summary>
public sealed class SharedGpu : IDisposable
{
    private Device? _device;

    public Device Open() => _device ??= Gpu.Open();

    public void Dispose() => _device?.Dispose();
}

/// <summary>The same rows on a GPU. Each carries the words of its name as a trait (Row=softmax, Row=channel), so that one family can be run by itself.</summary>
[Trait("Category", "Gpu")]
public class GpuParityTests(SharedGpu gpu) : IClassFixture<SharedGpu>
{
    public static IEnumerable<TheoryDataRow<string>> Names => ByFamily(OpCases.Names);

    public static IEnumerable<TheoryDataRow<string>> DifferentiableNames => ByFamily(OpCases.DifferentiableNames);

    [Theory]
    [MemberData(nameof(Names))]
    public void F32_is_close_to_the_oracle(string name) => Check(name, DType.F32);

    [Theory]
    [MemberData(nameof(Names))]
    public void BF16_errs_at_most_twice_the_naive_op(string name) => Check(name, DType.BF16);

    [Theory]
    [MemberData(nameof(DifferentiableNames))]
    public void Gradients_in_F32_are_those_of_the_CPU_in_F64(string name) => OpCases.Get(name).AssertSameGradients(gpu.Open());

    private static IEnumerable<TheoryDataRow<string>> ByFamily(TheoryData<string> names) =>
        names.Select(row => new TheoryDataRow<string>(row.Data) { Traits = { ["Row"] = [.. OpCases.Words(row.Data)] } });

    private void Check(string name, DType element)
    {
        Device device = gpu.Open();
        OpCase row = OpCases.Get(name);
        row.AssertParity(device, element);
        row.AssertParity(device, element, misaligned: true);
    }
}
