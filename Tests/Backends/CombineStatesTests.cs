using LaspNative.Runtime;
using LaspNative.Tests.Oracles;
using Xunit;

namespace LaspNative.Tests.Backends;

/// <summary>Horner's rule to the last bit: every strategy and every device computes P = fma(A_j, P, M_j) and nothing else.</summary>
public class CombineStatesTests
{
    [Fact]
    public void Is_a_chain_of_fused_multiply_adds_on_the_CPU()
    {
        using Device device = Device.Open("cpu:2");
        Check(device);
    }

    [Fact]
    [Trait("Category", "Gpu")]
    public void Is_a_chain_of_fused_multiply_adds_on_the_GPU()
    {
        using Device device = Gpu.Open();
        Check(device);
    }

    [Fact]
    public void Nothing_passes_a_factor_of_zero_on_the_CPU()
    {
        using Device device = Device.Open("cpu:2");
        CheckReset(device);
    }

    [Fact]
    [Trait("Category", "Gpu")]
    public void Nothing_passes_a_factor_of_zero_on_the_GPU()
    {
        using Device device = Gpu.Open();
        CheckReset(device);
    }

    private static void CheckReset(Device device)
    {
        using Tensor states = Tensor.FromSpan([float.PositiveInfinity, float.NaN, 1f, 2f], [2, 1, 1, 1, 2], device);
        using Tensor factors = Tensor.FromSpan([0.5f, 0f], [2, 1, 1], device);
        using Tensor result = Tensor.Empty([1, 1, 1, 2], DType.F32, device);
        device.Backend.CombineStates(states, factors, first: 0, count: 2, step: 1, initial: null, result);
        Assert.Equal([1f, 2f], result.ToArray<float>());
    }

    private static void Check(Device device)
    {
        const int W = 8;
        Shape state = [2, 3, 17, 19];
        int size = (int)state.Count;
        float[] states = Array.ConvertAll(TestData.Normal(W * size, 1), x => (float)x);
        float[] factors = Array.ConvertAll(TestData.Normal(W * 6, 2), x => (float)x);
        float[] expected = Array.ConvertAll(TestData.Normal(size, 3), x => (float)x);
        using Tensor statesTensor = Tensor.FromSpan(states, [W, 2, 3, 17, 19], device);
        using Tensor factorsTensor = Tensor.FromSpan(factors, [W, 2, 3], device);
        using Tensor initial = Tensor.FromSpan(expected, state, device);
        using Tensor result = Tensor.Empty(state, DType.F32, device);
        device.Backend.CombineStates(statesTensor, factorsTensor, first: W - 1, count: W, step: -1, initial, result);
        for (int j = W - 1; j >= 0; j--)
            for (int i = 0; i < size; i++) expected[i] = MathF.FusedMultiplyAdd(factors[j * 6 + i / (17 * 19)], expected[i], states[j * size + i]);
        Assert.Equal(expected, result.ToArray<float>());
    }
}
