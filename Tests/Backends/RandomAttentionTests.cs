using LaspNative.Runtime;
using Xunit;

namespace LaspNative.Tests.Backends;

/// <summary>One GPU for all rows, and the oracles of all rows at work beside it from the start.</summary>
public sealed class RandomAttentionFixture : IDisposable
{
    private readonly Lazy<Device> _device = new(Open);

    public Device Device => _device.Value;

    private static Device Open()
    {
        Device device = Gpu.Open();
        _ = Task.Run(() => Parallel.ForEach(OpCases.RandomAttention.Values, row => row.Prepare(DType.BF16)));
        return device;
    }

    public void Dispose()
    {
        if (_device.IsValueCreated) _device.Value.Dispose();
    }
}

/// <summary>
/// Every output and gradient of linear and softmax attention in bf16 errs at most twice as much as the naive op, whatever the length (1 to 5000), widths, grouping and decay (0 to 20 nats per token), with and
/// without states; on memory that is NaN before it is written, guarded, aligned and not.
/// </summary>
public class RandomAttentionTests(RandomAttentionFixture fixture) : IClassFixture<RandomAttentionFixture>
{
    private const string ShortOnes = "[NM]=[1-9][0-9]{0,1} ";

    public static TheoryData<string> Names => [.. OpCases.RandomAttention.Keys];

    public static TheoryData<string> ShortNames => [.. OpCases.RandomAttention.Keys.Where(n => System.Text.RegularExpressions.Regex.IsMatch(n, ShortOnes, System.Text.RegularExpressions.RegexOptions.None, TimeSpan.FromSeconds(1)))];

    [Theory]
    [MemberData(nameof(Names))]
    [Trait("Category", "Gpu")]
    public void BF16_errs_at_most_twice_the_naive_op(string name)
    {
        OpCase row = OpCases.RandomAttention[name];
        row.AssertParity(fixture.Device, DType.BF16);
        row.AssertParity(fixture.Device, DType.BF16, misaligned: true, twice: false);
    }

    [Theory]
    [MemberData(nameof(ShortNames))]
    public void F64_on_the_CPU_equals_the_oracle(string name)
    {
        using Device cpu = Device.Open("cpu:2");
        OpCases.RandomAttention[name].AssertParity(cpu, DType.F64);
    }
}
