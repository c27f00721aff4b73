using System.Numerics;
using LaspNative.Runtime.Interop;

namespace LaspNative.Runtime.Cpu;

/// <summary>Matrix products of tensors: checks, and the split of the result among threads.</summary>
internal sealed unsafe partial class CpuBackend
{
    /// <summary>Multiply-adds that make a thread's wake-up worth its while.</summary>
    private const long GemmGrain = 1 << 18;

    /// <summary>The parts that OpenBLAS is given: enough of them for the threads, and large enough to repay the packing of both operands.</summary>
    private const int ForeignRows = 256;
    private const int ForeignColumns = 1024;

    public void Gemm(Matrix a, bool transposeA, Matrix b, bool transposeB, double alpha, double beta, Matrix c)
    {
        GemmShape shape = GemmShape.Of(a, transposeA, b, transposeB, c);
        switch (a.DType, c.DType)
        {
            case (DType.F64, DType.F64): Gemm<double, double, double>(shape, a, b, alpha, beta, c); break;
            case (DType.F32, DType.F32): Gemm<float, float, float>(shape, a, b, (float)alpha, (float)beta, c); break;
            case (DType.BF16, DType.F32): Gemm<BF16, float, float>(shape, a, b, (float)alpha, (float)beta, c); break;
            default: Gemm<BF16, float, BF16>(shape, a, b, (float)alpha, (float)beta, c); break;
        }
    }

    private void Gemm<T, A, TC>(GemmShape shape, Matrix a, Matrix b, A alpha, A beta, Matrix c)
        where T : unmanaged where TC : unmanaged where A : unmanaged, IBinaryFloatingPointIeee754<A>
    {
        T* pa = (T*)a.Pointer, pb = (T*)b.Pointer;
        TC* pc = (TC*)c.Pointer;
        bool foreign = typeof(T) == typeof(A) && typeof(TC) == typeof(A) && shape.K > 0 && OpenBlas.InUse;
        var product = new GemmTiles<T, A, TC>(shape, foreign ? FixedTiles(shape) : Tiles(shape), foreign, pa, pb, pc, alpha, beta);
        if (product.Count == 1) product.Run(0);
        else InParallel(product);
    }

    private void InParallel<T, A, TC>(GemmTiles<T, A, TC> product)
        where T : unmanaged where TC : unmanaged where A : unmanaged, IBinaryFloatingPointIeee754<A> => ForEach(product.Count, product.Run);

    /// <summary>A product cut into tiles of the result.</summary>
    private readonly struct GemmTiles<T, A, TC>(GemmShape shape, (int M, int N) tiles, bool foreign, T* a, T* b, TC* c, A alpha, A beta)
        where T : unmanaged where TC : unmanaged where A : unmanaged, IBinaryFloatingPointIeee754<A>
    {
        public long Count => shape.Batches * tiles.M * tiles.N;

        public void Run(long task)
        {
            long batch = task / (tiles.M * tiles.N);
            int tile = (int)(task % (tiles.M * tiles.N));
            (int row, int rows) = Part(shape.M, tiles.M, tile / tiles.N, GemmKernel.Rows);
            (int column, int columns) = Part(shape.N, tiles.N, tile % tiles.N, GemmKernel.Columns<A>());
            if (rows <= 0 || columns <= 0) return;
            MatrixView<T> va = shape.ViewA(a, batch).From(row, 0), vb = shape.ViewB(b, batch).From(0, column);
            TC* target = c + (((batch * shape.M) + row) * shape.N) + column;
            if (foreign) ForeignProduct(shape, va.Data, vb.Data, rows, columns, alpha, beta, target);
            else MatrixProduct.Run(va, vb, rows, columns, shape.K, alpha, beta, target, shape.N);
        }
    }

    private static void ForeignProduct<T, A, TC>(GemmShape shape, T* a, T* b, int rows, int columns, A alpha, A beta, TC* c)
        where T : unmanaged where TC : unmanaged where A : unmanaged, IBinaryFloatingPointIeee754<A>
    {
        (bool ta, bool tb) = (shape.TransposeA, shape.TransposeB);
        (int strideA, int strideB) = (ta ? shape.M : shape.K, tb ? shape.K : shape.N);
        if (typeof(A) == typeof(float))
            OpenBlas.Gemm(ta, tb, rows, columns, shape.K, (float)(object)alpha, (float*)a, strideA, (float*)b, strideB, (float)(object)beta, (float*)c, shape.N);
        else
            OpenBlas.Gemm(ta, tb, rows, columns, shape.K, (double)(object)alpha, (double*)a, strideA, (double*)b, strideB, (double)(object)beta, (double*)c, shape.N);
    }

    /// <summary>How many parts the rows and columns of one result are cut into, so that all threads have work.</summary>
    private (int M, int N) Tiles(GemmShape shape)
    {
        long work = shape.M * (long)shape.N * shape.K;
        long wanted = Math.Min(_device.Threads, work * shape.Batches / GemmGrain);
        long parts = (wanted + shape.Batches - 1) / Math.Max(1, shape.Batches);
        if (parts <= 1) return (1, 1);
        if (shape.M >= parts * 2 * GemmKernel.Rows && shape.M >= shape.N / 4) return ((int)parts, 1);
        return (1, (int)parts);
    }

    /// <summary>Another library's sums may depend on the extents that it is given, so its parts follow from the shape alone.</summary>
    private static (int M, int N) FixedTiles(GemmShape shape) => ((shape.M + ForeignRows - 1) / ForeignRows, (shape.N + ForeignColumns - 1) / ForeignColumns);

    /// <summary>The start and length of part <paramref name="index"/> of <paramref name="parts"/>, cut at multiples of <paramref name="unit"/>.</summary>
    private static (int Start, int Length) Part(int extent, int parts, int index, int unit)
    {
        long units = (extent + unit - 1) / unit;
        int start = (int)Math.Min(extent, units * index / parts * unit), end = (int)Math.Min(extent, units * (index + 1) / parts * unit);
        return (start, end - start);
    }

    /// <summary>The extents of c[g] [M, N] = op(a[g]) [M, K] op(b[g]) [K, N] for g below Batches.</summary>
    private readonly record struct GemmShape(long Batches, int M, int N, int K, bool TransposeA, bool TransposeB)
    {
        public static GemmShape Of(Matrix a, bool transposeA, Matrix b, bool transposeB, Matrix c)
        {
            (long m, long k) = transposeA ? (a.Columns, a.Rows) : (a.Rows, a.Columns);
            (long depth, long n) = transposeB ? (b.Columns, b.Rows) : (b.Rows, b.Columns);
            bool fits = depth == k && c.Rows == m && c.Columns == n && b.Batches == a.Batches && c.Batches == a.Batches;
            if (!fits || !a.DType.IsFloat() || b.DType != a.DType || (c.DType != a.DType && c.DType != a.DType.Accumulator()))
                throw new LaspException($"no matrix product of {a}{(transposeA ? "^T" : "")} and {b}{(transposeB ? "^T" : "")} into {c}; check extents and dtypes");
            return new GemmShape(a.Batches, checked((int)m), checked((int)n), checked((int)k), transposeA, transposeB);
        }

        public MatrixView<T> ViewA<T>(T* data, long batch) where T : unmanaged => MatrixView<T>.RowMajor(data + (batch * M * K), TransposeA ? M : K, TransposeA);

        public MatrixView<T> ViewB<T>(T* data, long batch) where T : unmanaged => MatrixView<T>.RowMajor(data + (batch * K * N), TransposeB ? K : N, TransposeB);
    }
}
