using System.Numerics;
using System.Runtime.CompilerServices;
using System.Runtime.Intrinsics;

namespace LaspNative.Runtime.Cpu;

/// <summary>
/// RMS norms. The model's norm, with or without the residual sum before it, and the norm of a head's output are one computation, y = x r weight silu(gate) per row,
/// with weight and gate optional; RmsNorm is the case without gate. The weight's gradient is summed per block of rows, then over the blocks in order.
/// </summary>
internal sealed unsafe partial class CpuBackend
{
    /// <summary>Rows whose share of the weight's gradient is summed at once. Fixed, so that the order of the sum is.</summary>
    private const int NormRows = 128;

    public void RmsNorm(Tensor x, Tensor? weight, double eps, Tensor y, Tensor inverseRms) => Norm(x, null, weight, null, eps, x, y, inverseRms);

    public void AddRmsNorm(Tensor x, Tensor residual, Tensor? weight, double eps, Tensor h, Tensor y, Tensor inverseRms) => Norm(x, residual, weight, null, eps, h, y, inverseRms);

    public void GatedHeadNorm(Tensor x, Tensor? weight, Tensor? gate, double eps, Tensor y, Tensor inverseRms) => Norm(x, null, weight, gate, eps, x, y, inverseRms);

    public void RmsNormBackward(Tensor x, Tensor? weight, Tensor inverseRms, Tensor dy, Tensor dx, Tensor? dWeight) =>
        NormBackward(x, weight, null, inverseRms, dy, null, dx, null, dWeight);

    public void AddRmsNormBackward(Tensor h, Tensor? weight, Tensor inverseRms, Tensor dy, Tensor? dh, Tensor dx, Tensor? dWeight) =>
        NormBackward(h, weight, null, inverseRms, dy, dh, dx, null, dWeight);

    public void GatedHeadNormBackward(Tensor x, Tensor? weight, Tensor? gate, Tensor inverseRms, Tensor dy, Tensor dx, Tensor? dgate, Tensor? dWeight) =>
        NormBackward(x, weight, gate, inverseRms, dy, null, dx, dgate, dWeight);

    /// <summary>h is x + residual, or x itself where there is no residual.</summary>
    private void Norm(Tensor x, Tensor? residual, Tensor? weight, Tensor? gate, double eps, Tensor h, Tensor y, Tensor inverseRms)
    {
        RequireSame(x, h);
        RequireSame(x, y);
        if (residual is not null) RequireSame(x, residual);
        if (gate is not null) RequireSame(x, gate);
        RequireNormTensors(x, weight, inverseRms);
        if (x.DType == DType.F64) Norm<double, double>(x, residual, weight, gate, eps, h, y, inverseRms);
        else if (x.DType == DType.F32) Norm<float, float>(x, residual, weight, gate, eps, h, y, inverseRms);
        else Norm<BF16, float>(x, residual, weight, gate, eps, h, y, inverseRms);
    }

    private void NormBackward(Tensor x, Tensor? weight, Tensor? gate, Tensor inverseRms, Tensor dy, Tensor? dh, Tensor dx, Tensor? dgate, Tensor? dWeight)
    {
        RequireSame(x, dy);
        RequireSame(x, dx);
        if ((gate is null) != (dgate is null)) throw new LaspException("a gate and its gradient come together");
        if ((weight is null) != (dWeight is null)) throw new LaspException("a weight and its gradient come together");
        if (gate is not null) RequireSame(x, gate);
        if (dgate is not null) RequireSame(x, dgate);
        if (dh is not null) RequireSame(x, dh);
        if (dWeight is not null) RequireType(dWeight, x.DType.Accumulator());
        RequireNormTensors(x, weight, inverseRms);
        if (x.DType == DType.F64) NormBackward<double, double>(x, weight, gate, inverseRms, dy, dh, dx, dgate, dWeight);
        else if (x.DType == DType.F32) NormBackward<float, float>(x, weight, gate, inverseRms, dy, dh, dx, dgate, dWeight);
        else NormBackward<BF16, float>(x, weight, gate, inverseRms, dy, dh, dx, dgate, dWeight);
    }

    private static void RequireNormTensors(Tensor x, Tensor? weight, Tensor inverseRms)
    {
        RequireType(inverseRms, x.DType.Accumulator());
        if (inverseRms.Count != x.Shape.Rows) throw new LaspException($"{inverseRms.Shape} does not hold one value for each row of {x.Shape}");
        if (weight is null) return;
        RequireType(weight, x.DType);
        if (weight.Count != x.Shape[-1]) throw new LaspException($"a weight of shape {weight.Shape} does not fit rows of {x.Shape}");
    }

    private static T* PointerOrNull<T>(Tensor? tensor) where T : unmanaged => tensor is null ? null : (T*)tensor.Pointer;

    private void Norm<T, A>(Tensor x, Tensor? residual, Tensor? weight, Tensor? gate, double eps, Tensor h, Tensor y, Tensor inverseRms)
        where T : unmanaged where A : unmanaged, IBinaryFloatingPointIeee754<A>
    {
        T* px = (T*)x.Pointer, ph = (T*)h.Pointer, py = (T*)y.Pointer;
        T* padd = PointerOrNull<T>(residual), pw = PointerOrNull<T>(weight), pg = PointerOrNull<T>(gate);
        A* pr = (A*)inverseRms.Pointer;
        int width = checked((int)x.Shape[-1]);
        ForRanges(x.Shape.Rows, RowsPerTask(width), (start, length) =>
        {
            for (long row = start; row < start + length; row++)
            {
                long offset = row * width;
                if (padd is not null) Rows.Sum<T, A>(px + offset, padd + offset, ph + offset, width);
                A r = InverseRms<T, A>(ph + offset, width, eps);
                pr[row] = r;
                NormRow<T, A>(ph + offset, pw, pg is null ? null : pg + offset, r, py + offset, width);
            }
        });
    }

    private static long RowsPerTask(int width) => Math.Max(1, Grain / Math.Max(1, width));

    private static A InverseRms<T, A>(T* x, int width, double eps) where T : unmanaged where A : unmanaged, IBinaryFloatingPointIeee754<A>
    {
        int lanes = Vector512<A>.Count, i = 0;
        Vector512<A> sum = Vector512<A>.Zero;
        for (; i <= width - lanes; i += lanes) sum = Accumulate(sum, Element.Load<T, A>(x + i), squares: true);
        double total = VectorMath.Total(sum);
        if (i < width) total += VectorMath.Total(Accumulate(Vector512<A>.Zero, Element.Load<T, A>(x + i, width - i), squares: true));
        return A.CreateTruncating(1 / Math.Sqrt((total / width) + eps));
    }

    private static void NormRow<T, A>(T* x, T* weight, T* gate, A r, T* y, int width) where T : unmanaged where A : unmanaged
    {
        int i = 0;
        for (; i <= width - Vector512<A>.Count; i += Vector512<A>.Count) Step(i, Vector512<A>.Count);
        if (i < width) Step(i, width - i);

        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        void Step(int at, int count)
        {
            Vector512<A> value = Element.Load<T, A>(x + at, count) * r;
            if (weight is not null) value *= Element.Load<T, A>(weight + at, count);
            if (gate is not null)
            {
                Vector512<A> g = Element.Load<T, A>(gate + at, count);
                value *= g * VectorMath.Sigmoid(g);
            }
            Element.Store(value, y + at, count);
        }
    }

    private void NormBackward<T, A>(Tensor x, Tensor? weight, Tensor? gate, Tensor inverseRms, Tensor dy, Tensor? dh, Tensor dx, Tensor? dgate, Tensor? dWeight)
        where T : unmanaged where A : unmanaged, IBinaryFloatingPointIeee754<A>
    {
        int width = checked((int)x.Shape[-1]);
        long rows = x.Shape.Rows, blocks = (rows + NormRows - 1) / NormRows;
        using Workspace scratch = Workspace.Rent<A>(dWeight is null ? 0 : blocks * width);
        A* partial = dWeight is null ? null : scratch.Take<A>(blocks * width);
        T* px = (T*)x.Pointer, pdy = (T*)dy.Pointer, pdx = (T*)dx.Pointer;
        T* pw = PointerOrNull<T>(weight), pg = PointerOrNull<T>(gate), pdg = PointerOrNull<T>(dgate), pdh = PointerOrNull<T>(dh);
        A* pr = (A*)inverseRms.Pointer;
        ForEach(blocks, block =>
        {
            A* sum = partial is null ? null : partial + (block * width);
            if (sum is not null) new Span<A>(sum, width).Clear();
            for (long row = block * NormRows; row < Math.Min(rows, (block + 1) * NormRows); row++)
            {
                long offset = row * width;
                var operands = new NormOperands<T>(px + offset, pw, pg is null ? null : pg + offset, pdy + offset, pdh is null ? null : pdh + offset, width);
                NormRowBackward(operands, pr[row], pdx + offset, pdg is null ? null : pdg + offset, sum);
            }
        });
        if (dWeight is not null) AddRows(partial, blocks, width, (A*)dWeight.Pointer);
    }

    private readonly struct NormOperands<T>(T* x, T* weight, T* gate, T* dy, T* dh, int width) where T : unmanaged
    {
        public readonly T* X = x, Weight = weight, Gate = gate, Dy = dy, Dh = dh;
        public readonly int Width = width;
    }

    /// <summary>With n = x r and z = n w: dz = dy silu(gate), dn = dz w, dx = r (dn - n mean(dn n)) + dh, dgate = dy z silu'(gate), dw += dz n.</summary>
    private static void NormRowBackward<T, A>(in NormOperands<T> row, A r, T* dx, T* dgate, A* dWeight)
        where T : unmanaged where A : unmanaged, IBinaryFloatingPointIeee754<A>
    {
        int lanes = Vector512<A>.Count, i = 0;
        Vector512<A> dot = Vector512<A>.Zero;
        for (; i <= row.Width - lanes; i += lanes) dot = VectorMath.Fma(InnerGradient<T, A>(row, i, lanes), Element.Load<T, A>(row.X + i), dot);
        double total = VectorMath.Total(dot);
        if (i < row.Width) total += VectorMath.Total(InnerGradient<T, A>(row, i, row.Width - i) * Element.Load<T, A>(row.X + i, row.Width - i));
        A mean = A.CreateTruncating(total / row.Width) * r;
        for (i = 0; i <= row.Width - Vector512<A>.Count; i += Vector512<A>.Count) NormStepBackward(row, i, Vector512<A>.Count, r, mean, dx, dgate, dWeight);
        if (i < row.Width) NormStepBackward(row, i, row.Width - i, r, mean, dx, dgate, dWeight);
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void NormStepBackward<T, A>(in NormOperands<T> row, int i, int count, A r, A mean, T* dx, T* dgate, A* dWeight)
        where T : unmanaged where A : unmanaged
    {
        Vector512<A> n = Element.Load<T, A>(row.X + i, count) * r;
        Vector512<A> dn = InnerGradient<T, A>(row, i, count);
        Vector512<A> dz = Element.Load<T, A>(row.Dy + i, count);
        if (row.Gate is not null)
        {
            Vector512<A> g = Element.Load<T, A>(row.Gate + i, count);
            Vector512<A> z = row.Weight is null ? n : n * Element.Load<T, A>(row.Weight + i, count);
            Element.Store(dz * z * VectorMath.SiluDerivative(g), dgate + i, count);
            dz *= g * VectorMath.Sigmoid(g);
        }
        if (dWeight is not null) Element.Store(Element.Load<A, A>(dWeight + i, count) + (dz * n), dWeight + i, count);
        Vector512<A> d = (dn - (n * mean)) * r;
        Element.Store(row.Dh is null ? d : d + Element.Load<T, A>(row.Dh + i, count), dx + i, count);
    }

    /// <summary>dn = dy silu(gate) w, the gradient of the normalised row.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static Vector512<A> InnerGradient<T, A>(in NormOperands<T> row, int i, int count) where T : unmanaged where A : unmanaged
    {
        Vector512<A> value = Element.Load<T, A>(row.Dy + i, count);
        if (row.Weight is not null) value *= Element.Load<T, A>(row.Weight + i, count);
        if (row.Gate is null) return value;
        Vector512<A> g = Element.Load<T, A>(row.Gate + i, count);
        return value * (g * VectorMath.Sigmoid(g));
    }

    /// <summary>y += the sum of the rows of x, in order.</summary>
    private static void AddRows<A>(A* x, long rows, int width, A* y) where A : unmanaged
    {
        for (long row = 0; row < rows; row++) Rows.Add(x + (row * width), y, width);
    }
}
