using System.Numerics;
using System.Runtime.CompilerServices;
using System.Runtime.Intrinsics;

namespace LaspNative.Runtime.Cpu;

/// <summary>Element (i, j) of a matrix lies at Data[i * RowStride + j * ColumnStride]: a transpose swaps the strides.</summary>
internal readonly unsafe struct MatrixView<T>(T* data, long rowStride, long columnStride) where T : unmanaged
{
    public readonly T* Data = data;
    public readonly long RowStride = rowStride;
    public readonly long ColumnStride = columnStride;

    /// <summary>A row-major matrix, or its transpose.</summary>
    public static MatrixView<T> RowMajor(T* data, long stride, bool transposed = false) => transposed ? new(data, 1, stride) : new(data, stride, 1);

    public MatrixView<T> From(long row, long column) => new(Data + (row * RowStride) + (column * ColumnStride), RowStride, ColumnStride);
}

/// <summary>
/// One thread's matrix product c = alpha a b + beta c, blocked for the caches: a depth-slice of b [KC, NC] is packed into column panels, then blocks of a
/// [MC, KC] into row panels, and <see cref="GemmKernel"/> runs over the pairs of panels. Packing widens BF16. The depth's cuts depend on k alone, and
/// each element sums in ascending k, so any split of c among threads gives the same bits.
/// </summary>
internal static unsafe class MatrixProduct
{
    private const int DepthBlock = 512;
    private const int RowBlock = 144; // a multiple of the kernel's rows on every machine
    private const int ColumnBlock = 2048;

    /// <summary>c [m, n] is row-major with rows <paramref name="stride"/> apart; beta = 0 does not read it.</summary>
    public static void Run<T, A, TC>(MatrixView<T> a, MatrixView<T> b, int m, int n, int k, A alpha, A beta, TC* c, long stride)
        where T : unmanaged where TC : unmanaged where A : unmanaged, IBinaryFloatingPointIeee754<A>
    {
        // A result narrower than the arithmetic holds no partial sums: then the whole depth is one block.
        int depthBlock = typeof(TC) == typeof(A) ? Math.Min(DepthBlock, k) : k;
        int rowBlock = Math.Min(RowBlock, RoundUp(m, GemmKernel.Rows));
        int columnBlock = Math.Min(ColumnBlock, RoundUp(n, GemmKernel.Columns<A>()));
        using Workspace scratch = Workspace.Rent<A>((rowBlock + columnBlock) * (long)depthBlock);
        A* packedA = scratch.Take<A>(rowBlock * (long)depthBlock), packedB = scratch.Take<A>(columnBlock * (long)depthBlock);
        for (int column = 0; column < n; column += columnBlock)
        {
            int columns = Math.Min(columnBlock, n - column);
            int start = 0;
            do
            {
                int depth = Math.Min(depthBlock, k - start);
                Packing.Pack(b.From(start, column).Data, b.ColumnStride, b.RowStride, columns, depth, GemmKernel.Columns<A>(), packedB);
                for (int row = 0; row < m; row += rowBlock)
                {
                    int rows = Math.Min(rowBlock, m - row);
                    Packing.Pack(a.From(row, start).Data, a.RowStride, a.ColumnStride, rows, depth, GemmKernel.Rows, packedA);
                    Block(packedA, packedB, rows, columns, depth, alpha, start == 0 ? beta : A.One, c + (row * stride) + column, stride);
                }
                start += depth;
            }
            while (start < k);
        }
    }

    /// <summary>c [m, n] = alpha op(a) op(b) + beta c of contiguous row-major matrices, op(a) [m, k], op(b) [k, n].</summary>
    public static void Dense<A>(A* a, bool transposeA, A* b, bool transposeB, int m, int n, int k, A alpha, A beta, A* c)
        where A : unmanaged, IBinaryFloatingPointIeee754<A> =>
        Run(MatrixView<A>.RowMajor(a, transposeA ? m : k, transposeA), MatrixView<A>.RowMajor(b, transposeB ? k : n, transposeB), m, n, k, alpha, beta, c, n);

    private static int RoundUp(int value, int multiple) => (value + multiple - 1) / multiple * multiple;

    private static void Block<A, TC>(A* packedA, A* packedB, int rows, int columns, int depth, A alpha, A beta, TC* c, long stride)
        where TC : unmanaged where A : unmanaged, IBinaryFloatingPointIeee754<A>
    {
        int tileRows = GemmKernel.Rows, tileColumns = GemmKernel.Columns<A>();
        A* tile = stackalloc A[GemmKernel.MaxTile];
        for (int column = 0; column < columns; column += tileColumns)
        {
            for (int row = 0; row < rows; row += tileRows)
            {
                GemmKernel.Multiply(depth, packedA + (row * (long)depth), packedB + (column * (long)depth), tile);
                TC* corner = c + (row * stride) + column;
                int used = Math.Min(tileColumns, columns - column);
                for (int r = 0; r < Math.Min(tileRows, rows - row); r++) UpdateRow(tile + (r * tileColumns), alpha, beta, corner + (r * stride), used);
            }
        }
    }

    private static void UpdateRow<A, TC>(A* product, A alpha, A beta, TC* c, int count) where TC : unmanaged where A : unmanaged, IBinaryFloatingPointIeee754<A>
    {
        int i = 0;
        for (; i <= count - Vector512<A>.Count; i += Vector512<A>.Count) UpdateStep(product + i, alpha, beta, c + i, Vector512<A>.Count);
        if (i < count) UpdateStep(product + i, alpha, beta, c + i, count - i);
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void UpdateStep<A, TC>(A* product, A alpha, A beta, TC* c, int count) where TC : unmanaged where A : unmanaged, IBinaryFloatingPointIeee754<A>
    {
        Vector512<A> value = Element.Load<A, A>(product, count) * alpha;
        if (beta != A.Zero) value = VectorMath.Fma(Vector512.Create(beta), Element.Load<TC, A>(c, count), value);
        Element.Store(value, c, count);
    }
}
