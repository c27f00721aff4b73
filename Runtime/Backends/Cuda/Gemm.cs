namespace LaspNative.Runtime.Cuda;

/// <summary>Matrix products of tensors: checks around <see cref="Blas.Multiply"/>.</summary>
internal sealed partial class CudaBackend
{
    public void Gemm(Matrix a, bool transposeA, Matrix b, bool transposeB, double alpha, double beta, Matrix c)
    {
        RequireElement(a.Elements);
        RequireType(b.Elements, a.DType);
        RequireElement(c.Elements);
        (long m, long n, long k, long batch) = (c.Rows, c.Columns, transposeA ? a.Rows : a.Columns, c.Batches);
        bool fits = (transposeA ? a.Columns : a.Rows) == m
            && (transposeB ? b.Columns : b.Rows) == k
            && (transposeB ? b.Rows : b.Columns) == n
            && a.Batches == batch && b.Batches == batch;
        if (!fits || (c.DType != a.DType && c.DType != DType.F32))
            throw new LaspException($"cannot multiply {a}{Mark(transposeA)} by {b}{Mark(transposeB)} into {c}; the shapes or element types do not fit");
        _device.Blas.Multiply(a.Pointer, transposeA, b.Pointer, transposeB, c.Pointer, m, n, k, batch, a.DType, c.DType, (float)alpha, (float)beta);
    }

    private static string Mark(bool transpose) => transpose ? " transposed" : "";
}
