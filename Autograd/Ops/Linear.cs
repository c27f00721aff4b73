using LaspNative.Runtime;

namespace LaspNative.Autograd;

/// <summary>
/// y = x W^T        x [.., K], W [N, K], y [.., N]; or x and y under other shapes, such as heads, whose rows are these
/// dx = dy W        dW = dy^T x
/// In a replay (<see cref="Recompute"/>) y may be left unwritten where it is an output of the region: the product that nobody reads is not made again.
/// Both gradients are written by the matrix product straight into the inputs' gradient buffers (beta 0 or 1): for a parameter in the type that its gradient is collected in.
/// </summary>
public sealed class Linear : Function
{
    private readonly SavedValue? _x;
    private readonly Tensor? _weight;
    private readonly Device _device;
    private readonly long _rows;
    private readonly (long N, long K) _size;

    private Linear(Variable x, Variable weight, long rows)
    {
        (_device, _rows, _size) = (x.Device, rows, (weight.Shape[0], weight.Shape[1]));
        if (weight.RequiresGradient) _x = Save(x);
        if (x.RequiresGradient) _weight = Save(weight.Value);
    }

    public static Variable Apply(Variable x, Variable weight, RegionRun run = RegionRun.Forward)
    {
        ArgumentNullException.ThrowIfNull(x);
        ArgumentNullException.ThrowIfNull(weight);
        if (weight.Shape.Rank != 2 || x.Shape.Rank == 0 || x.Shape[-1] != weight.Shape[1] || x.DType != weight.DType)
            throw new LaspException($"a linear layer takes x [.., K] and weight [N, K] of one type, got {x.DType} {x.Shape} and {weight.DType} {weight.Shape}");
        return Apply(x, weight, x.Shape.WithLast(weight.Shape[0]), x.Shape.Rows, run);
    }

    /// <summary>As above, with x's elements read as rows of K, and y's shape given: projections to heads and from heads.</summary>
    public static Variable Apply(Variable x, Variable weight, Shape shape)
    {
        ArgumentNullException.ThrowIfNull(x);
        ArgumentNullException.ThrowIfNull(weight);
        long rows = weight.Shape.Rank == 2 && weight.Shape[1] > 0 ? x.Shape.Count / weight.Shape[1] : 0;
        if (weight.Shape.Rank != 2 || x.Shape.Count != rows * weight.Shape[1] || shape.Count != rows * weight.Shape[0] || x.DType != weight.DType)
            throw new LaspException($"a linear layer takes rows of K in x, weight [N, K] of the same type and gives as many rows of N, got {x.DType} {x.Shape} and {weight.DType} {weight.Shape} for {shape}");
        return Apply(x, weight, shape, rows, RegionRun.Forward);
    }

    private static Variable Apply(Variable x, Variable weight, Shape shape, long rows, RegionRun run)
    {
        Tensor y = Tensor.Empty(shape, x.DType, x.Device);
        (long n, long k) = (weight.Shape[0], weight.Shape[1]);
        try
        {
            if (run == RegionRun.Forward) x.Device.Backend.Gemm(Matrix.Of(x.Value, rows, k), transposeA: false, weight.Value, transposeB: true, alpha: 1, beta: 0, Matrix.Of(y, rows, n));
        }
        catch
        {
            y.Dispose();
            throw;
        }
        return new Linear(x, weight, rows).Record([x, weight], y);
    }

    internal override bool InTwoParts => Inputs is [{ IsLeaf: false, RequiresGradient: true }, { IsLeaf: true, RequiresGradient: true }];

    protected internal override void Backward(BackwardPass pass)
    {
        Matrix dy = Result(pass.RequiredOutput(0));
        if (pass.Wants(1))
        {
            Tensor dWeight = pass.Buffer(1, out bool accumulate);
            _device.Backend.Gemm(dy, transposeA: true, Source(_x!.Tensor), transposeB: false, alpha: 1, beta: accumulate ? 1 : 0, dWeight);
            _x.Dispose(); // before dx is allocated: an x that was made again may be as large
        }
        else
        {
            _x?.Wake(); // dW comes later, when what makes x is gone
        }
        if (pass.Wants(0))
        {
            Matrix dx = Source(pass.Buffer(0, out bool accumulate));
            _device.Backend.Gemm(dy, transposeA: false, _weight!, transposeB: false, alpha: 1, beta: accumulate ? 1 : 0, dx);
        }
    }

    private Matrix Source(Tensor x) => Matrix.Of(x, _rows, _size.K);

    private Matrix Result(Tensor y) => Matrix.Of(y, _rows, _size.N);
}
