using LaspNative.Runtime;

namespace LaspNative.Autograd;

/// <summary>Tokens at consecutive positions.</summary>
/// <param name="Length">How many.</param>
/// <param name="FirstPosition">Position of the first.</param>
public readonly record struct PositionRun(long Length, long FirstPosition);

/// <summary>
/// Rotary position embedding of x [B, N, H, D]: the pair (x[d], x[d + D/2]) of a token at position p turns by p theta^(-2d/D).
/// A rotation's transpose is its inverse, so backward turns dy back and nothing is saved.
/// </summary>
public sealed class Rope : Function
{
    private readonly IReadOnlyList<PositionRun> _runs;
    private readonly double _theta;

    private Rope(IReadOnlyList<PositionRun> runs, double theta)
    {
        _runs = runs;
        _theta = theta;
    }

    /// <param name="firstPosition">Global position of the first token: where this rank's chunk starts.</param>
    public static Variable Apply(Variable x, long firstPosition, double theta)
    {
        ArgumentNullException.ThrowIfNull(x);
        return Apply(x, [new PositionRun(x.Shape.Rank > 1 ? x.Shape[1] : 0, firstPosition)], theta);
    }

    /// <param name="runs">The tokens' positions where they start anew, as those of packed documents do (then B = 1).</param>
    public static Variable Apply(Variable x, IReadOnlyList<PositionRun> runs, double theta)
    {
        ArgumentNullException.ThrowIfNull(x);
        ArgumentNullException.ThrowIfNull(runs);
        if (x.Shape.Rank != 4 || x.Shape[-1] % 2 != 0) throw new LaspException($"rotary embedding takes [B, N, H, D] with an even D, got {x.Shape}");
        if (runs.Sum(r => r.Length) != x.Shape[1] || (runs.Count > 1 && x.Shape[0] != 1))
            throw new LaspException($"{runs.Count} runs of {runs.Sum(r => r.Length)} positions do not fit {x.Shape}; give one position per token, and more than one run only to a batch of 1");
        Tensor y = Tensor.Empty(x.Shape, x.DType, x.Device);
        Rotate(x.Value, runs, theta, inverse: false, y);
        return new Rope(runs, theta).Record([x], y);
    }

    protected internal override void Backward(BackwardPass pass)
    {
        Tensor dx = pass.Empty(0);
        Rotate(pass.RequiredOutput(0), _runs, _theta, inverse: true, dx);
        pass.Give(0, dx);
    }

    private static void Rotate(Tensor x, IReadOnlyList<PositionRun> runs, double theta, bool inverse, Tensor y)
    {
        if (runs.Count == 1)
        {
            x.Device.Backend.Rope(x, runs[0].FirstPosition, theta, inverse, y);
            return;
        }
        long start = 0;
        foreach (PositionRun run in runs)
        {
            using Tensor from = Tokens(x, start, run.Length), to = Tokens(y, start, run.Length);
            x.Device.Backend.Rope(from, run.FirstPosition, theta, inverse, to);
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
