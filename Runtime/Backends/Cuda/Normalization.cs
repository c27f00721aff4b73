namespace LaspNative.Runtime.Cuda;

/// <summary>RMS norms: the model's and the gated one of a head's output are one computation (normalization.cu), which RmsNorm calls without a gate.</summary>
internal sealed partial class CudaBackend
{
    private const string NormalizationFile = "normalization";

    /// <summary>Blocks of rows whose shares of the weight's gradient are summed first, and the fewest rows worth a block.</summary>
    private const long NormSlabs = 256;
    private const long NormSlabRows = 64;

    public void RmsNorm(Tensor x, Tensor? weight, double eps, Tensor y, Tensor inverseRms) => GatedHeadNorm(x, weight, null, eps, y, inverseRms);

    public void RmsNormBackward(Tensor x, Tensor? weight, Tensor inverseRms, Tensor dy, Tensor dx, Tensor? dWeight) =>
        GatedHeadNormBackward(x, weight, null, inverseRms, dy, dx, null, dWeight);

    public void GatedHeadNorm(Tensor x, Tensor? weight, Tensor? gate, double eps, Tensor y, Tensor inverseRms)
    {
        RequireNorm(x, weight, gate, inverseRms);
        RequireSame(x, y);
        Launch(
            NormalizationFile, "rms_norm_fwd", x.DType, PerWarp(inverseRms.Count),
            x.Pointer, PointerOrNull(weight), PointerOrNull(gate), inverseRms.Count, x.Shape[-1], (float)eps, y.Pointer, inverseRms.Pointer);
    }

    public void GatedHeadNormBackward(Tensor x, Tensor? weight, Tensor? gate, Tensor inverseRms, Tensor dy, Tensor dx, Tensor? dgate, Tensor? dWeight)
    {
        RequireNorm(x, weight, gate, inverseRms);
        RequireSame(x, dy);
        RequireSame(x, dx);
        if ((gate is null) != (dgate is null)) throw new LaspException("a gate and its gradient come together");
        if ((weight is null) != (dWeight is null)) throw new LaspException("a weight and its gradient come together");
        if (dgate is not null) RequireSame(x, dgate);
        if (dWeight is not null) NormWeightGradient(x, gate, inverseRms, dy, dWeight);
        Launch(
            NormalizationFile, "rms_norm_bwd", x.DType, PerWarp(inverseRms.Count),
            x.Pointer, PointerOrNull(weight), PointerOrNull(gate), inverseRms.Pointer, dy.Pointer, inverseRms.Count, x.Shape[-1], dx.Pointer, PointerOrNull(dgate));
    }

    private void NormWeightGradient(Tensor x, Tensor? gate, Tensor inverseRms, Tensor dy, Tensor dWeight)
    {
        long rows = inverseRms.Count, columns = x.Shape[-1];
        RequireType(dWeight, DType.F32);
        if (dWeight.Count != columns) throw new LaspException($"a weight gradient of shape {dWeight.Shape} does not fit rows of {x.Shape}");
        if (rows == 0) return;
        long slabRows = CeilDivide(rows, Math.Clamp(rows / NormSlabRows, 1, NormSlabs));
        long slabs = CeilDivide(rows, slabRows);
        nint partials = _device.Workspace(slabs * columns * sizeof(float));
        var shape = new LaunchShape(checked((uint)CeilDivide(columns, WarpThreads)), (uint)slabs, 1, BlockThreads);
        Launch(
            NormalizationFile, "rms_norm_bwd_weight_partial", x.DType, shape,
            x.Pointer, PointerOrNull(gate), inverseRms.Pointer, dy.Pointer, rows, columns, slabRows, partials);
        Launch(NormalizationFile, "rms_norm_bwd_weight", x.DType, LaunchShape.For(columns, BlockThreads), partials, slabs, columns, dWeight.Pointer);
    }

    private static void RequireNorm(Tensor x, Tensor? weight, Tensor? gate, Tensor inverseRms)
    {
        RequireElement(x);
        RequireType(inverseRms, DType.F32);
        if (inverseRms.Count != x.Shape.Rows) throw new LaspException($"{inverseRms.Shape} does not hold one value for each row of {x.Shape}");
        if (gate is not null) RequireSame(x, gate);
        if (weight is null) return;
        RequireType(weight, x.DType);
        if (weight.Count != x.Shape[-1]) throw new LaspException($"a weight of shape {weight.Shape} does not fit rows of {x.Shape}");
    }
}
