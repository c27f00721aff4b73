using LaspNative.Runtime;

namespace LaspNative.Autograd;

/// <summary>
/// The second half of a gated feed-forward part, so that its wide product is there for one matrix product only, in both passes:
/// y = h W^T        h = act(gate) up,  gate, up [.., K], W [N, K]
/// dh = dy W,  dgate = dh up act'(gate),  dup = dh act(gate),  dW = dy^T h
/// Saves gate and up. One pass over memory makes dgate, dup and h again, in the places of gate, up and dh. In a replay (<see cref="Recompute"/>) neither h nor y is made.
/// </summary>
public sealed class GatedProjection : Function
{
    private readonly SavedValue _gate;
    private readonly SavedValue _up;
    private readonly Tensor _weight;
    private readonly GateActivation _activation;

    private GatedProjection(Variable gate, Variable up, GateActivation activation, Variable weight)
    {
        (_gate, _up, _activation) = (Save(gate), Save(up), activation);
        _weight = Save(weight.Value);
    }

    public static Variable Apply(Variable gate, Variable up, GateActivation activation, Variable weight, RegionRun run = RegionRun.Forward)
    {
        ArgumentNullException.ThrowIfNull(gate);
        ArgumentNullException.ThrowIfNull(up);
        ArgumentNullException.ThrowIfNull(weight);
        if (gate.Shape != up.Shape || gate.DType != up.DType)
            throw new LaspException($"a gated projection takes gate and up of one shape and type, got {gate.DType} {gate.Shape} and {up.DType} {up.Shape}");
        if (weight.Shape.Rank != 2 || gate.Shape.Rank == 0 || gate.Shape[-1] != weight.Shape[1] || gate.DType != weight.DType)
            throw new LaspException($"a gated projection takes gate [.., K] and weight [N, K] of one type, got {gate.DType} {gate.Shape} and {weight.DType} {weight.Shape}");
        Tensor y = Tensor.Empty(gate.Shape.WithLast(weight.Shape[0]), gate.DType, gate.Device);
        try
        {
            if (run == RegionRun.Forward) Project(gate.Value, up.Value, activation, weight.Value, y);
        }
        catch
        {
            y.Dispose();
            throw;
        }
        return new GatedProjection(gate, up, activation, weight).Record([gate, up, weight], y);
    }

    private static void Project(Tensor gate, Tensor up, GateActivation activation, Tensor weight, Tensor y)
    {
        using Tensor h = Tensor.Empty(gate.Shape, gate.DType, gate.Device);
        gate.Device.Backend.GatedLinearUnit(gate, up, activation, h);
        gate.Device.Backend.Gemm(Rows(h), transposeA: false, weight, transposeB: true, alpha: 1, beta: 0, Rows(y));
    }

    protected internal override void Backward(BackwardPass pass)
    {
        Tensor gate = _gate.Tensor, up = _up.Tensor;
        IBackend backend = gate.Device.Backend;
        Matrix dy = Rows(pass.RequiredOutput(0));
        using Tensor dh = Tensor.Empty(gate.Shape, gate.DType, gate.Device);
        backend.Gemm(dy, transposeA: false, _weight, transposeB: false, alpha: 1, beta: 0, Rows(dh));
        Tensor dgate = BackwardPass.InPlaceOf(_gate), dup = BackwardPass.InPlaceOf(_up);
        backend.GatedLinearUnitBackward(gate, up, dh, _activation, dgate, dup, y: dh); // dh is h from here on
        pass.Give(0, dgate);
        pass.Give(1, dup);
        if (!pass.Wants(2)) return;
        Tensor dWeight = pass.Buffer(2, out bool accumulate);
        backend.Gemm(dy, transposeA: true, Rows(dh), transposeB: false, alpha: 1, beta: accumulate ? 1 : 0, dWeight);
    }

    /// <summary>[.., K] as the matrix [rows, K].</summary>
    private static Matrix Rows(Tensor x) => Matrix.Of(x, x.Shape.Rows, x.Shape[-1]);
}
