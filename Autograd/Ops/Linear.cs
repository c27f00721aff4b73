using LaspNative.Runtime;

namespace LaspNative.Autograd;

/// <summary>
/// y = x W^T        x [.., K], W [N, K], y [.., N]
/// dx = dy W        dW = dy^T x
/// In a replay (<see cref="Recompute"/>) y may be left unwritten where it is an output of the region: the product that nobody reads is not made again.
/// Both gradients are written by the matrix product straight into the inputs' gradient buffers (beta 0 or 1): for a parameter in the type that its gradient is collected in.
/// </summary>
public sealed class Linear : Function
{
    private readonly SavedValue? _x;
    private readonly Tensor? _weight;
    private readonly Device _device;

    private Linear(Variable x, Variable weight)
    {
        _device = x.Device;
        if (weight.RequiresGradient) _x = Save(x);
        if (x.RequiresGradient) _weight = Save(weight.Value);
    }

    public static Variable Apply(Variable x, Variable weight, RegionRun run = RegionRun.Forward)
    {
        ArgumentNullException.ThrowIfNull(x);
        ArgumentNullException.ThrowIfNull(weight);
        if (weight.Shape.Rank != 2 || x.Shape.Rank == 0 || x.Shape[-1] != weight.Shape[1] || x.DType != weight.DType)
            throw new LaspException($"a linear layer takes x [.., K] and weight [N, K] of one type, got {x.DType} {x.Shape} and {weight.DType} {weight.Shape}");
        Tensor y = Tensor.Empty(x.Shape.WithLast(weight.Shape[0]), x.DType, x.Device);
        using Tensor xRows = Rows(x.Value);
        using Tensor yRows = Rows(y);
        if (run == RegionRun.Forward) x.Device.Backend.Gemm(xRows, transposeA: false, weight.Value, transposeB: true, alpha: 1, beta: 0, yRows);
        return new Linear(x, weight).Record([x, weight], y);
    }

    protected internal override void Backward(BackwardPass pass)
    {
        using Tensor dy = Rows(pass.RequiredOutput(0));
        if (pass.Wants(1))
        {
            using (Tensor x = Rows(_x!.Tensor))
            {
                Tensor dWeight = pass.Buffer(1, out bool accumulate);
                _device.Backend.Gemm(dy, transposeA: true, x, transposeB: false, alpha: 1, beta: accumulate ? 1 : 0, dWeight);
            }
            _x.Dispose(); // before dx is allocated: an x that was made again may be as large
        }
        if (pass.Wants(0))
        {
            using Tensor dx = Rows(pass.Buffer(0, out bool accumulate));
            _device.Backend.Gemm(dy, transposeA: false, _weight!, transposeB: false, alpha: 1, beta: accumulate ? 1 : 0, dx);
        }
    }

    /// <summary>[.., K] as the matrix [rows, K].</summary>
    private static Tensor Rows(Tensor x) => x.View([x.Shape.Rows, x.Shape[-1]]);
}
