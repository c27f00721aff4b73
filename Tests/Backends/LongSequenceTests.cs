using LaspNative.Runtime;
using Xunit;

namespace LaspNative.Tests.Backends;

/// <summary>
/// More than 2^31 elements per tensor: an index kept in 32 bits anywhere shows in the last tokens. All inputs are constants, so the result at any token is known in closed form;
/// the same checks run on a few tokens on the CPU.
/// </summary>
public class LongSequenceTests
{
    private const int Heads = 16;
    private const int Dim = 128;

    [Fact]
    public void A_short_sequence_on_the_CPU()
    {
        using Device device = Device.Open("cpu:2");
        CheckElementwise(device, 1_000);
        CheckNorms(device, 1_000);
        CheckAttention(device, 1_000);
    }

    [Fact]
    [Trait("Category", "Gpu")]
    public void Elementwise_ops_beyond_32_bits()
    {
        using Device device = Gpu.Open();
        CheckElementwise(device, (1 << 20) + 3);
    }

    [Fact]
    [Trait("Category", "Gpu")]
    public void Norms_and_rotations_beyond_32_bits()
    {
        using Device device = Gpu.Open();
        CheckNorms(device, (1 << 20) + 3);
    }

    [Fact]
    [Trait("Category", "Gpu")]
    public void Linear_attention_beyond_32_bits()
    {
        using Device device = Gpu.Open();
        CheckAttention(device, (1 << 20) + 3);
    }

    private static Tensor Constant(double value, long tokens, Device device)
    {
        Tensor x = Tensor.Empty([1, tokens, Heads, Dim], DType.BF16, device);
        device.Backend.Fill(value, x);
        return x;
    }

    /// <summary>All elements of token <paramref name="token"/> are the value, within bf16.</summary>
    private static void AssertToken(double expected, Tensor x, long token)
    {
        using Tensor flat = x.View([x.Shape[1], Heads, Dim]);
        using Tensor one = flat.Slice(token, 1);
        Assert.All(one.ToDoubles(), actual => Assert.Equal(expected, actual, Math.Abs(expected) / 100));
    }

    private static void CheckElementwise(Device device, long tokens)
    {
        using Tensor x = Constant(2, tokens, device);
        using Tensor y = Constant(3, tokens, device);
        device.Backend.Add(x, y, y);
        AssertToken(5, y, tokens - 1);
        device.Backend.AddScaled(x, -1, y);
        AssertToken(3, y, tokens - 1);
        device.Backend.Silu(x, y);
        AssertToken(1.7616, y, tokens - 1);
        device.Backend.GatedLinearUnit(x, y, GateActivation.Silu, y);
        AssertToken(1.7616 * 1.7616, y, tokens - 1);
    }

    private static void CheckNorms(Device device, long tokens)
    {
        using Tensor x = Constant(2, tokens, device);
        using Tensor y = Constant(0, tokens, device);
        using Tensor inverseRms = Tensor.Empty([tokens * Heads], DType.F32, device);
        device.Backend.GatedHeadNorm(x, null, x, 1e-5, y, inverseRms);
        AssertToken(1.7616, y, tokens - 1);
        device.Backend.RmsNorm(x, null, 1e-5, y, inverseRms);
        AssertToken(1, y, tokens - 1);
        device.Backend.Rope(x, 0, 10_000, inverse: false, y);
        device.Backend.Rope(y, 0, 10_000, inverse: true, y);
        AssertToken(2, y, tokens - 1);
    }

    /// <summary>With decay a per token and all inputs 1 the state tends to 1 / (1 - a) in every element: the output is scale D / (1 - a).</summary>
    private static void CheckAttention(Device device, long tokens)
    {
        const double Log = -0.125;
        double limit = 1 / (1 - Math.Exp(Log));
        using Tensor one = Constant(1, tokens, device);
        using Tensor o = Constant(0, tokens, device);
        using Tensor decay = Tensor.FromSpan(Enumerable.Repeat((float)Log, Heads).ToArray(), [Heads], device);
        device.Backend.LinearAttention(one, one, one, decay, null, 1.0 / Dim, o);
        AssertToken(1, o, 0);
        AssertToken(limit, o, tokens - 1);
        device.Backend.LinearAttentionBackwardQuery(one, one, one, decay, null, 1.0 / Dim, o);
        AssertToken(limit, o, tokens - 1);
        using Tensor dv = Constant(0, tokens, device);
        device.Backend.LinearAttentionBackwardKeyValue(one, one, one, one, decay, null, 1.0 / Dim, o, dv);
        AssertToken(limit, o, 0);
        AssertToken(1, dv, tokens - 1);
    }
}
