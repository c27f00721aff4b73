using LaspNative.Runtime;
using LaspNative.Tests.Oracles;
using Xunit;

namespace LaspNative.Tests.Backends;

/// <summary>Generation is the same recursion as training: N steps of decoding give the outputs and the state of one run over N tokens.</summary>
public class DecodeTests
{
    private const int B = 2;
    private const int N = 70;
    private const int H = 4;
    private const int Hk = 2;
    private const int D = 24;
    private const int E = 20;

    [Theory]
    [InlineData(DecayKind.None)]
    [InlineData(DecayKind.Head)]
    [InlineData(DecayKind.Token)]
    [InlineData(DecayKind.Channel)]
    public void Steps_are_the_run_on_the_CPU(DecayKind kind)
    {
        using Device device = Device.Open("cpu:2");
        Check(device, kind);
    }

    [Theory]
    [Trait("Category", "Gpu")]
    [InlineData(DecayKind.None)]
    [InlineData(DecayKind.Head)]
    [InlineData(DecayKind.Token)]
    [InlineData(DecayKind.Channel)]
    public void Steps_are_the_run_on_the_GPU(DecayKind kind)
    {
        using Device device = Gpu.Open();
        Check(device, kind);
    }

    private static void Check(Device device, DecayKind kind)
    {
        const double Scale = 0.2;
        double[] q = TestData.Heads(B * N, H, D, 1), k = TestData.Heads(B * N, Hk, D, 2), v = TestData.Heads(B * N, Hk, E, 3);
        double[]? decay = TestData.Decays(kind, B, N, H, D, rate: 1);
        Shape decayShape = kind switch { DecayKind.Token => [B, N, H], DecayKind.Channel => [B, N, H, D], _ => [H] };
        using Tensor queries = TestData.Tensor(q, [B, N, H, D], DType.F32, device), keys = TestData.Tensor(k, [B, N, Hk, D], DType.F32, device);
        using Tensor values = TestData.Tensor(v, [B, N, Hk, E], DType.F32, device), outputs = Tensor.Empty([B, N, H, E], DType.F32, device);
        using Tensor? decays = decay is null ? null : TestData.Tensor(decay, decayShape, DType.F32, device);
        using Tensor final = Tensor.Empty([B, H, D, E], DType.F32, device), state = Tensor.Zeros([B, H, D, E], DType.F32, device);
        device.Backend.LinearAttention(queries, keys, values, decays, null, Scale, outputs);
        device.Backend.LinearAttentionState(keys, values, decays, final);

        double[] expected = outputs.ToDoubles(), actual = new double[expected.Length];
        for (int n = 0; n < N; n++)
        {
            using Tensor query = TestData.Tensor(Token(q, n, H * D), [B, H, D], DType.F32, device), key = TestData.Tensor(Token(k, n, Hk * D), [B, Hk, D], DType.F32, device);
            using Tensor value = TestData.Tensor(Token(v, n, Hk * E), [B, Hk, E], DType.F32, device), output = Tensor.Empty([B, H, E], DType.F32, device);
            using Tensor? now = kind switch
            {
                DecayKind.None => null,
                DecayKind.Head => TestData.Tensor(decay!, [H], DType.F32, device),
                DecayKind.Token => TestData.Tensor(Token(decay!, n, H), [B, H], DType.F32, device),
                _ => TestData.Tensor(Token(decay!, n, H * D), [B, H, D], DType.F32, device),
            };
            device.Backend.LinearAttentionDecode(query, key, value, now, state, Scale, output);
            double[] o = output.ToDoubles();
            for (int b = 0; b < B; b++) o.AsSpan(b * H * E, H * E).CopyTo(actual.AsSpan(((b * N) + n) * H * E));
        }
        Errors.AssertClose(actual, expected, 2 * Tolerances.Of(DType.F32), "o");
        Errors.AssertClose(state.ToDoubles(), final.ToDoubles(), 2 * Tolerances.Of(DType.F32), "final state");
    }

    /// <summary>Token n of each batch row of [B, N, width].</summary>
    private static double[] Token(double[] x, int n, int width) => [.. Enumerable.Range(0, B).SelectMany(b => x.AsSpan(((b * N) + n) * width, width).ToArray())];
}
