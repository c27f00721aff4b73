namespace LaspNative.Runtime.Cuda;

/// <summary>Matrix products of tensors: checks around <see cref="Blas.Multiply"/>.</summary>
internal sealed partial class CudaBackend
{
    public void Gemm(Tensor a, bool transposeA, Tensor b, bool transposeB, double alpha, double beta, Tensor c)
    {
        RequireElement(a);
        RequireType(b, a.DType);
        RequireElement(c);
        int rank = a.Shape.Rank;
        bool fits = rank is 2 or 3 && b.Shape.Rank == rank && c.Shape.Rank == rank;
        long m = fits ? c.Shape[-2] : 0, n = fits ? c.Shape[-1] : 0, k = fits ? a.Shape[transposeA ? -2 : -1] : 0, batch = fits && rank == 3 ? c.Shape[0] : 1;
        fits = fits
            && a.Shape[transposeA ? -1 : -2] == m
            && b.Shape[transposeB ? -1 : -2] == k
            && b.Shape[transposeB ? -2 : -1] == n
            && (rank == 2 || (a.Shape[0] == batch && b.Shape[0] == batch));
        if (!fits || (c.DType != a.DType && c.DType != DType.F32))
            throw new LaspException($"cannot multiply {a}{Mark(transposeA)} by {b}{Mark(transposeB)} into {c}; the shapes or element types do not fit");
        _device.Blas.Multiply(a.Pointer, transposeA, b.Pointer, transposeB, c.Pointer, m, n, k, batch, a.DType, c.DType, (float)alpha, (float)beta);
    }

    private static string Mark(bool transpose) => transpose ? " transposed" : "";
}
