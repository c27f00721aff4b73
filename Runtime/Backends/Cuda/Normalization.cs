using System.Numerics;

namespace LaspNative.Runtime.Cuda;

/// <summary>
/// RMS norms. Rows made of packs are read once and wait in registers (normalization.cu): the model's norm, with or without the residual sum before it, by blocks that share a row,
/// the norm of a head's output by a few threads per row. All other rows take plain loops (normalization_any.cu).
/// </summary>
internal sealed partial class CudaBackend
{
    private const string NormalizationFile = "normalization";
    private const string AnyNormalizationFile = "normalization_any";

    /// <summary>Rows that a thread holds at once: BLOCK_ROWS, HEAD_ROWS and HEAD_ROWS_BWD of normalization.cu.</summary>
    private const long NormRows = 4;
    private const long HeadRows = 2;
    private const long HeadRowsBackward = 1;

    /// <summary>The widest row that threads of one warp hold.</summary>
    private const long WidestHeadRow = WarpThreads * Pack;

    /// <summary>The widest row that a block holds: MAX_THREADS of normalization.cu, times a pack.</summary>
    private static long WidestNormRow(DType element) => element == DType.BF16 ? 4096 : 2048;

    /// <summary>Blocks that share out the rows of a backward pass, each with its part of the weight's gradient. A constant, so that GPUs of any size give the same bits.</summary>
    private const long NormBlocks = 528;
    private const long HeadBlocks = 1056;

    /// <summary>The plain loops: blocks of rows whose shares of the weight's gradient are summed first, and the fewest rows worth a block.</summary>
    private const long NormSlabs = 256;
    private const long NormSlabRows = 64;

    /// <summary>What a norm reads: rows [rows, columns], their weight, and beside each row a residual or gate (forward), a gate or the gradient of the sum (backward).</summary>
    private readonly record struct NormOperands(Tensor X, Tensor? Weight, Tensor? Residual, Tensor? Gate)
    {
        public long Columns => X.Shape[-1];

        public nint WeightPointer => PointerOrNull(Weight);

        public nint GatePointer => PointerOrNull(Gate);
    }

    public void RmsNorm(Tensor x, Tensor? weight, double eps, Tensor y, Tensor inverseRms) => RmsNorm(new NormOperands(x, weight, null, null), eps, null, y, inverseRms);

    public void AddRmsNorm(Tensor x, Tensor residual, Tensor? weight, double eps, Tensor h, Tensor y, Tensor inverseRms)
    {
        RequireSame(x, residual);
        RequireSame(x, h);
        RmsNorm(new NormOperands(x, weight, residual, null), eps, h, y, inverseRms);
    }

    public void RmsNormBackward(Tensor x, Tensor? weight, Tensor inverseRms, Tensor dy, Tensor dx, Tensor? dWeight) => AddRmsNormBackward(x, weight, inverseRms, dy, null, dx, dWeight);

    public void AddRmsNormBackward(Tensor h, Tensor? weight, Tensor inverseRms, Tensor dy, Tensor? dh, Tensor dx, Tensor? dWeight)
    {
        var norm = new NormOperands(h, weight, null, null);
        RequireNormBackward(norm, inverseRms, dy, dx, null, dWeight);
        if (dh is not null) RequireSame(h, dh);
        long rows = inverseRms.Count, columns = norm.Columns;
        if (!PacksFit(columns, WidestNormRow(h.DType), h.Pointer, norm.WeightPointer, dy.Pointer, PointerOrNull(dh), dx.Pointer))
        {
            NormAnyBackward(norm, inverseRms, dy, dh, dx, null, dWeight);
            return;
        }
        (long slab, long blocks, nint partials) = NormShares(rows, NormRows, NormBlocks, columns, dWeight);
        Launch(
            NormalizationFile, "rms_norm_bwd", h.DType, Blocks(blocks, RowThreads(columns)),
            h.Pointer, norm.WeightPointer, inverseRms.Pointer, dy.Pointer, PointerOrNull(dh), rows, columns, slab, dx.Pointer, partials);
        AddNormShares(h.DType, partials, blocks, columns, dWeight);
    }

    public void GatedHeadNorm(Tensor x, Tensor? weight, Tensor? gate, double eps, Tensor y, Tensor inverseRms)
    {
        var norm = new NormOperands(x, weight, null, gate);
        RequireNorm(norm, y, inverseRms);
        long rows = inverseRms.Count, columns = norm.Columns;
        if (!PacksFit(columns, WidestHeadRow, x.Pointer, norm.WeightPointer, norm.GatePointer, y.Pointer))
        {
            NormAny(norm, eps, null, y, inverseRms);
            return;
        }
        long lanes = RowLanes(columns), slab = HeadRows * (BlockThreads / lanes);
        Launch(
            NormalizationFile, "gated_head_norm_fwd", x.DType, Blocks(CeilDivide(rows, slab), BlockThreads),
            x.Pointer, norm.WeightPointer, norm.GatePointer, rows, columns, lanes, slab, (float)eps, y.Pointer, inverseRms.Pointer);
    }

    public void GatedHeadNormBackward(Tensor x, Tensor? weight, Tensor? gate, Tensor inverseRms, Tensor dy, Tensor dx, Tensor? dgate, Tensor? dWeight)
    {
        var norm = new NormOperands(x, weight, null, gate);
        RequireNormBackward(norm, inverseRms, dy, dx, dgate, dWeight);
        long rows = inverseRms.Count, columns = norm.Columns;
        if (!PacksFit(columns, WidestHeadRow, x.Pointer, norm.WeightPointer, norm.GatePointer, dy.Pointer, dx.Pointer, PointerOrNull(dgate)))
        {
            NormAnyBackward(norm, inverseRms, dy, null, dx, dgate, dWeight);
            return;
        }
        long lanes = RowLanes(columns);
        (long slab, long blocks, nint partials) = NormShares(rows, HeadRowsBackward * (BlockThreads / lanes), HeadBlocks, columns, dWeight);
        Launch(
            NormalizationFile, "gated_head_norm_bwd", x.DType, Blocks(blocks, BlockThreads),
            x.Pointer, norm.WeightPointer, norm.GatePointer, inverseRms.Pointer, dy.Pointer, rows, columns, lanes, slab, dx.Pointer, PointerOrNull(dgate), partials);
        AddNormShares(x.DType, partials, blocks, columns, dWeight);
    }

    private void RmsNorm(NormOperands norm, double eps, Tensor? h, Tensor y, Tensor inverseRms)
    {
        RequireNorm(norm, y, inverseRms);
        long rows = inverseRms.Count, columns = norm.Columns;
        if (!PacksFit(columns, WidestNormRow(norm.X.DType), norm.X.Pointer, PointerOrNull(norm.Residual), norm.WeightPointer, PointerOrNull(h), y.Pointer))
        {
            NormAny(norm, eps, h, y, inverseRms);
            return;
        }
        Launch(
            NormalizationFile, "rms_norm_fwd", norm.X.DType, Blocks(CeilDivide(rows, NormRows), RowThreads(columns)),
            norm.X.Pointer, PointerOrNull(norm.Residual), norm.WeightPointer, rows, columns, NormRows, (float)eps, PointerOrNull(h), y.Pointer, inverseRms.Pointer);
    }

    private void NormAny(NormOperands norm, double eps, Tensor? h, Tensor y, Tensor inverseRms) => Launch(
        AnyNormalizationFile, "norm_any_fwd", norm.X.DType, PerWarp(inverseRms.Count),
        norm.X.Pointer, PointerOrNull(norm.Residual), norm.WeightPointer, norm.GatePointer, inverseRms.Count, norm.Columns, (float)eps, PointerOrNull(h), y.Pointer, inverseRms.Pointer);

    private void NormAnyBackward(NormOperands norm, Tensor inverseRms, Tensor dy, Tensor? dh, Tensor dx, Tensor? dgate, Tensor? dWeight)
    {
        long rows = inverseRms.Count, columns = norm.Columns;
        if (dWeight is not null && rows > 0)
        {
            long slab = CeilDivide(rows, Math.Clamp(rows / NormSlabRows, 1, NormSlabs)), slabs = CeilDivide(rows, slab);
            nint partials = _device.Workspace(slabs * columns * sizeof(float));
            var shape = new LaunchShape(checked((uint)CeilDivide(columns, WarpThreads)), (uint)slabs, 1, BlockThreads);
            Launch(
                AnyNormalizationFile, "norm_any_bwd_weight", norm.X.DType, shape,
                norm.X.Pointer, norm.GatePointer, inverseRms.Pointer, dy.Pointer, rows, columns, slab, partials);
            AddNormShares(norm.X.DType, partials, slabs, columns, dWeight);
        }
        Launch(
            AnyNormalizationFile, "norm_any_bwd", norm.X.DType, PerWarp(rows),
            norm.X.Pointer, norm.WeightPointer, norm.GatePointer, inverseRms.Pointer, dy.Pointer, PointerOrNull(dh), rows, columns, dx.Pointer, PointerOrNull(dgate));
    }

    /// <summary>Rows per block, a multiple of <paramref name="tile"/>; blocks, at most <paramref name="most"/>; and memory for each block's share of the weight's gradient, null where none is wanted.</summary>
    private (long Slab, long Blocks, nint Partials) NormShares(long rows, long tile, long most, long columns, Tensor? dWeight)
    {
        long slab = Math.Max(tile, RoundUp(CeilDivide(rows, most), tile)), blocks = CeilDivide(rows, slab);
        return (slab, blocks, dWeight is null ? 0 : _device.Workspace(blocks * columns * sizeof(float)));
    }

    private void AddNormShares(DType element, nint partials, long blocks, long columns, Tensor? dWeight)
    {
        if (dWeight is null) return;
        Launch(NormalizationFile, "norm_bwd_weight", element, Blocks(CeilDivide(columns, WarpThreads), WarpThreads * WarpThreads), partials, blocks, columns, dWeight.Pointer);
    }

    /// <summary>Whether rows are made of packs and no wider than <paramref name="widest"/>: packs_fit of common.cuh.</summary>
    private static bool PacksFit(long columns, long widest, params ReadOnlySpan<nint> pointers)
    {
        if (columns % Pack != 0 || columns > widest) return false;
        foreach (nint pointer in pointers)
            if (pointer % 16 != 0) return false;
        return true;
    }

    private static uint RowThreads(long columns) => (uint)RoundUp(columns / Pack, WarpThreads);

    private static long RowLanes(long columns) => (long)BitOperations.RoundUpToPowerOf2((ulong)(columns / Pack));

    private static void RequireNorm(NormOperands norm, Tensor y, Tensor inverseRms)
    {
        RequireElement(norm.X);
        RequireSame(norm.X, y);
        RequireType(inverseRms, DType.F32);
        if (inverseRms.Count != norm.X.Shape.Rows) throw new LaspException($"{inverseRms.Shape} does not hold one value for each row of {norm.X.Shape}");
        if (norm.Gate is not null) RequireSame(norm.X, norm.Gate);
        if (norm.Weight is null) return;
        RequireType(norm.Weight, norm.X.DType);
        if (norm.Weight.Count != norm.Columns) throw new LaspException($"a weight of shape {norm.Weight.Shape} does not fit rows of {norm.X.Shape}");
    }

    private static void RequireNormBackward(NormOperands norm, Tensor inverseRms, Tensor dy, Tensor dx, Tensor? dgate, Tensor? dWeight)
    {
        RequireNorm(norm, dx, inverseRms);
        RequireSame(norm.X, dy);
        if ((norm.Gate is null) != (dgate is null)) throw new LaspException("a gate and its gradient come together");
        if ((norm.Weight is null) != (dWeight is null)) throw new LaspException("a weight and its gradient come together");
        if (dgate is not null) RequireSame(norm.X, dgate);
        if (dWeight is null) return;
        RequireType(dWeight, DType.F32);
        if (dWeight.Count != norm.Columns) throw new LaspException($"a weight gradient of shape {dWeight.Shape} does not fit rows of {norm.X.Shape}");
    }
}
