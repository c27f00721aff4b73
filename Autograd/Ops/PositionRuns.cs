using LaspNative.Runtime;

namespace LaspNative.Autograd;

/// <summary>Tokens at consecutive positions.</summary>
/// <param name="Length">How many.</param>
/// <param name="FirstPosition">Position of the first.</param>
public readonly record struct PositionRun(long Length, long FirstPosition);

/// <summary>Calls of rotary ops, one per run of consecutive positions; a single run takes the tensors as they are.</summary>
internal static class PositionRuns
{
    /// <summary>Throws unless the runs give each token of [B, N, H, D] its position.</summary>
    public static void Require(IReadOnlyList<PositionRun> runs, Shape shape)
    {
        if (shape.Rank != 4 || shape[-1] % 2 != 0) throw new LaspException($"rotary embedding takes [B, N, H, D] with an even D, got {shape}");
        if (runs.Sum(r => r.Length) != shape[1] || (runs.Count > 1 && shape[0] != 1))
            throw new LaspException($"{runs.Count} runs of {runs.Sum(r => r.Length)} positions do not fit {shape}; give one position per token, and more than one run only to a batch of 1");
    }

    /// <summary>Calls body(x, dy, y, first position) with the tokens of each run.</summary>
    public static void ForEach(IReadOnlyList<PositionRun> runs, Tensor x, Tensor? dy, Tensor y, Action<Tensor, Tensor?, Tensor, long> body)
    {
        if (runs.Count == 1)
        {
            body(x, dy, y, runs[0].FirstPosition);
            return;
        }
        long start = 0;
        foreach (PositionRun run in runs)
        {
            using Tensor from = Tokens(x, start, run.Length), to = Tokens(y, start, run.Length);
            using Tensor? gradient = dy is null ? null : Tokens(dy, start, run.Length);
            body(from, gradient, to, run.FirstPosition);
            start += run.Length;
        }
    }

    /// <summary>Tokens [start, start + count) of [1, N, H, D].</summary>
    private static Tensor Tokens(Tensor x, long start, long count)
    {
        using Tensor rows = x.View([x.Shape[1], x.Shape[2], x.Shape[3]]);
        using Tensor run = rows.Slice(start, count);
        return run.View([1, count, x.Shape[2], x.Shape[3]]);
    }
}
