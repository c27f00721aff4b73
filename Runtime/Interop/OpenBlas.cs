using System.Runtime.InteropServices;

namespace LaspNative.Runtime.Interop;

/// <summary>
/// OpenBLAS's matrix products: only what is called. An optional library: without it, or with LASP_OPENBLAS=0, the own product runs.
/// It is held to one thread; whoever wants more calls it from several threads, which it allows.
/// </summary>
internal static unsafe partial class OpenBlas
{
    private const string Library = NativeLibraries.OpenBlas;
    private const int RowMajor = 101;
    private const int NoTranspose = 111;
    private const int Transpose = 112;

    private static readonly Lazy<bool> s_inUse = new(Open);

    static OpenBlas() => NativeLibraries.Register();

    /// <summary>Whether products go to OpenBLAS. A file named by LASP_OPENBLAS that does not load is an error; nothing found is not.</summary>
    public static bool InUse => s_inUse.Value;

    /// <summary>c [m, n] = alpha op(a) op(b) + beta c, all row-major with the given row strides.</summary>
    public static void Gemm(bool transposeA, bool transposeB, int m, int n, int k, float alpha, float* a, int strideA, float* b, int strideB, float beta, float* c, int strideC) =>
        cblas_sgemm(RowMajor, transposeA ? Transpose : NoTranspose, transposeB ? Transpose : NoTranspose, m, n, k, alpha, a, strideA, b, strideB, beta, c, strideC);

    /// <inheritdoc cref="Gemm(bool, bool, int, int, int, float, float*, int, float*, int, float, float*, int)"/>
    public static void Gemm(bool transposeA, bool transposeB, int m, int n, int k, double alpha, double* a, int strideA, double* b, int strideB, double beta, double* c, int strideC) =>
        cblas_dgemm(RowMajor, transposeA ? Transpose : NoTranspose, transposeB ? Transpose : NoTranspose, m, n, k, alpha, a, strideA, b, strideB, beta, c, strideC);

    private static bool Open()
    {
        string? choice = LaspOptions.Current.OpenBlas;
        if (choice is "0" or "false") return false;
        if (!string.IsNullOrEmpty(choice)) NativeLibraries.Require(Library);
        if (!NativeLibraries.Find(Library).Found) return false;
        openblas_set_num_threads(1);
        return true;
    }

    [LibraryImport(Library)]
    private static partial void openblas_set_num_threads(int threads);

    [LibraryImport(Library)]
    private static partial void cblas_sgemm(
        int order, int transposeA, int transposeB, int m, int n, int k, float alpha, float* a, int strideA, float* b, int strideB, float beta, float* c, int strideC);

    [LibraryImport(Library)]
    private static partial void cblas_dgemm(
        int order, int transposeA, int transposeB, int m, int n, int k, double alpha, double* a, int strideA, double* b, int strideB, double beta, double* c, int strideC);
}
