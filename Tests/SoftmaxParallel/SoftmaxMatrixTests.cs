using LaspNative.Collectives;
using LaspNative.Runtime;
using LaspNative.Tests.Oracles;
using Xunit;

namespace LaspNative.Tests.SoftmaxParallel;

/// <summary>
/// The matrix of softmax layers: strategies x ranks x {causal, bidirectional} x {plain, packed} x odd lengths, also fewer tokens than ranks. o, dq, dk and dv on every rank against the definition,
/// with two query heads per key/value head.
/// </summary>
public class SoftmaxMatrixTests
{
    private static readonly WorldOptions s_cpu = new(DeviceKind.Cpu);

    internal static IReadOnlyList<string> Names { get; } = [.. LaspNative.Collectives.SoftmaxParallel.All.Select(s => s.Name).Where(name => name != "serial")];

    /// <summary>Boundaries inside chunks and at their edges, documents of one token, and one over three or more ranks.</summary>
    internal static long[] DocumentsOf(int n) => [.. new long[] { 0, 1, n / 8, n / 4, n / 4 + 1, n - 3, n - 1, n }.Where(x => x >= 0 && x <= n).Distinct().Order()];

    public static TheoryData<string, int, bool> Worlds()
    {
        var rows = new TheoryData<string, int, bool>();
        foreach (string strategy in Names)
            foreach (int w in new[] { 1, 2, 3, 4, 8 })
                foreach (bool causal in new[] { true, false }) rows.Add(strategy, w, causal);
        return rows;
    }

    [Theory]
    [MemberData(nameof(Worlds))]
    public void Every_rank_equals_the_definition(string strategy, int w, bool causal)
    {
        foreach (int n in new[] { 1, 3, 7, 64, 131 }) AssertWithin(new SoftmaxCase(strategy, w, n, DType.F32) { Causal = causal }, 2e-5);
    }

    [Theory]
    [MemberData(nameof(Worlds))]
    public void Documents_are_kept_apart(string strategy, int w, bool causal)
    {
        foreach (int n in new[] { 5, 97 }) AssertWithin(new SoftmaxCase(strategy, w, n, DType.F32) { Causal = causal, Documents = DocumentsOf(n) }, 2e-5);
    }

    [Theory]
    [MemberData(nameof(Worlds))]
    public void Batches_of_two_equal_the_definition_in_fp64(string strategy, int w, bool causal)
    {
        foreach (int n in new[] { 2, 45 }) AssertWithin(new SoftmaxCase(strategy, w, n, DType.F64) { Causal = causal, B = 2 }, 1e-11);
    }

    [Theory]
    [InlineData(1)]
    [InlineData(4)]
    public void Serial_and_a_gather_that_is_kept_equal_the_definition(int w)
    {
        if (w == 1) AssertWithin(new SoftmaxCase("serial", 1, 65, DType.F64), 1e-11);
        AssertWithin(new SoftmaxCase("allgather", w, 65, DType.F64) { KeepsKeysAndValues = true, B = 2 }, 1e-11);
    }

    [Theory]
    [InlineData(1)]
    [InlineData(4)]
    public void Bf16_errs_at_most_twice_as_much_as_the_naive_op(int w)
    {
        foreach (string strategy in Names) AssertBf16(new SoftmaxCase(strategy, w, 131, DType.BF16), s_cpu);
    }

    /// <summary>Chunks of one sequence: the naive error is of the whole of it, so it is compared with the root of the mean square over the ranks.</summary>
    internal static void AssertBf16(SoftmaxCase @case, WorldOptions world)
    {
        Dictionary<string, double> errors = @case.Errors(world);
        foreach ((string what, double naive) in @case.NaiveErrors())
        {
            double error = Math.Sqrt(errors.Where(e => e.Key.StartsWith(what + " ", StringComparison.Ordinal)).Average(e => e.Value * e.Value));
            Assert.True(error <= Tolerances.Bf16(naive), $"{@case}: {what} {error:e2}, naive {naive:e2}");
        }
    }

    internal static void AssertWithin(SoftmaxCase @case, double tolerance, WorldOptions? world = null) =>
        Assert.All(@case.Errors(world ?? s_cpu), e => Assert.True(e.Value <= tolerance, $"{@case}: {e.Key}: {e.Value:e2}"));
}
