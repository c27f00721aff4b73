using System.Runtime.CompilerServices;
using System.Runtime.Intrinsics;

namespace LaspNative.Runtime.Cpu;

/// <summary>
/// The innermost product: a panel of A [depth][Rows] times a panel of B [depth][Columns] into a tile [Rows][Columns], both packed so that every load is
/// consecutive. The tile stays in registers over the whole depth: 24 accumulators, two vectors of B and one broadcast element of A fill the 32 registers of
/// AVX-512; 12, 2 and 1 the 16 of AVX2. Every element is one chain of fused multiply-adds in ascending k, so its bits depend on neither shape nor machine.
/// </summary>
internal static unsafe class GemmKernel
{
    private const int Rows512 = 12;
    private const int Rows256 = 6;

    /// <summary>Most elements that a tile has, for any element type.</summary>
    public const int MaxTile = Rows512 * 2 * 16;

    public static int Rows => Vector512.IsHardwareAccelerated ? Rows512 : Rows256;

    public static int Columns<A>() where A : unmanaged => 2 * (Vector512.IsHardwareAccelerated ? Vector512<A>.Count : Vector256<A>.Count);

    /// <summary>tile = a b, row-major.</summary>
    public static void Multiply<A>(int depth, A* a, A* b, A* tile) where A : unmanaged
    {
        if (Vector512.IsHardwareAccelerated) Multiply512(depth, a, b, tile);
        else Multiply256(depth, a, b, tile);
    }

    [MethodImpl(MethodImplOptions.AggressiveOptimization)] // never run as unoptimised first-tier code
    private static void Multiply512<A>(int depth, A* a, A* b, A* tile) where A : unmanaged
    {
        Vector512<A> c00 = Vector512<A>.Zero, c01 = Vector512<A>.Zero;
        Vector512<A> c10 = Vector512<A>.Zero, c11 = Vector512<A>.Zero;
        Vector512<A> c20 = Vector512<A>.Zero, c21 = Vector512<A>.Zero;
        Vector512<A> c30 = Vector512<A>.Zero, c31 = Vector512<A>.Zero;
        Vector512<A> c40 = Vector512<A>.Zero, c41 = Vector512<A>.Zero;
        Vector512<A> c50 = Vector512<A>.Zero, c51 = Vector512<A>.Zero;
        Vector512<A> c60 = Vector512<A>.Zero, c61 = Vector512<A>.Zero;
        Vector512<A> c70 = Vector512<A>.Zero, c71 = Vector512<A>.Zero;
        Vector512<A> c80 = Vector512<A>.Zero, c81 = Vector512<A>.Zero;
        Vector512<A> c90 = Vector512<A>.Zero, c91 = Vector512<A>.Zero;
        Vector512<A> cA0 = Vector512<A>.Zero, cA1 = Vector512<A>.Zero;
        Vector512<A> cB0 = Vector512<A>.Zero, cB1 = Vector512<A>.Zero;
        for (; depth > 0; depth--, a += Rows512, b += 2 * Vector512<A>.Count)
        {
            Vector512<A> b0 = Vector512.Load(b), b1 = Vector512.Load(b + Vector512<A>.Count);
            Vector512<A> a0 = Vector512.Create(a[0]);
            c00 = VectorMath.Fma(a0, b0, c00);
            c01 = VectorMath.Fma(a0, b1, c01);
            Vector512<A> a1 = Vector512.Create(a[1]);
            c10 = VectorMath.Fma(a1, b0, c10);
            c11 = VectorMath.Fma(a1, b1, c11);
            Vector512<A> a2 = Vector512.Create(a[2]);
            c20 = VectorMath.Fma(a2, b0, c20);
            c21 = VectorMath.Fma(a2, b1, c21);
            Vector512<A> a3 = Vector512.Create(a[3]);
            c30 = VectorMath.Fma(a3, b0, c30);
            c31 = VectorMath.Fma(a3, b1, c31);
            Vector512<A> a4 = Vector512.Create(a[4]);
            c40 = VectorMath.Fma(a4, b0, c40);
            c41 = VectorMath.Fma(a4, b1, c41);
            Vector512<A> a5 = Vector512.Create(a[5]);
            c50 = VectorMath.Fma(a5, b0, c50);
            c51 = VectorMath.Fma(a5, b1, c51);
            Vector512<A> a6 = Vector512.Create(a[6]);
            c60 = VectorMath.Fma(a6, b0, c60);
            c61 = VectorMath.Fma(a6, b1, c61);
            Vector512<A> a7 = Vector512.Create(a[7]);
            c70 = VectorMath.Fma(a7, b0, c70);
            c71 = VectorMath.Fma(a7, b1, c71);
            Vector512<A> a8 = Vector512.Create(a[8]);
            c80 = VectorMath.Fma(a8, b0, c80);
            c81 = VectorMath.Fma(a8, b1, c81);
            Vector512<A> a9 = Vector512.Create(a[9]);
            c90 = VectorMath.Fma(a9, b0, c90);
            c91 = VectorMath.Fma(a9, b1, c91);
            Vector512<A> aA = Vector512.Create(a[10]);
            cA0 = VectorMath.Fma(aA, b0, cA0);
            cA1 = VectorMath.Fma(aA, b1, cA1);
            Vector512<A> aB = Vector512.Create(a[11]);
            cB0 = VectorMath.Fma(aB, b0, cB0);
            cB1 = VectorMath.Fma(aB, b1, cB1);
        }
        StoreRow(c00, c01, tile, 0);
        StoreRow(c10, c11, tile, 1);
        StoreRow(c20, c21, tile, 2);
        StoreRow(c30, c31, tile, 3);
        StoreRow(c40, c41, tile, 4);
        StoreRow(c50, c51, tile, 5);
        StoreRow(c60, c61, tile, 6);
        StoreRow(c70, c71, tile, 7);
        StoreRow(c80, c81, tile, 8);
        StoreRow(c90, c91, tile, 9);
        StoreRow(cA0, cA1, tile, 10);
        StoreRow(cB0, cB1, tile, 11);
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void StoreRow<A>(Vector512<A> left, Vector512<A> right, A* tile, int row) where A : unmanaged
    {
        left.Store(tile + (row * 2 * Vector512<A>.Count));
        right.Store(tile + (((row * 2) + 1) * Vector512<A>.Count));
    }

    [MethodImpl(MethodImplOptions.AggressiveOptimization)] // never run as unoptimised first-tier code
    private static void Multiply256<A>(int depth, A* a, A* b, A* tile) where A : unmanaged
    {
        Vector256<A> c00 = Vector256<A>.Zero, c01 = Vector256<A>.Zero;
        Vector256<A> c10 = Vector256<A>.Zero, c11 = Vector256<A>.Zero;
        Vector256<A> c20 = Vector256<A>.Zero, c21 = Vector256<A>.Zero;
        Vector256<A> c30 = Vector256<A>.Zero, c31 = Vector256<A>.Zero;
        Vector256<A> c40 = Vector256<A>.Zero, c41 = Vector256<A>.Zero;
        Vector256<A> c50 = Vector256<A>.Zero, c51 = Vector256<A>.Zero;
        for (; depth > 0; depth--, a += Rows256, b += 2 * Vector256<A>.Count)
        {
            Vector256<A> b0 = Vector256.Load(b), b1 = Vector256.Load(b + Vector256<A>.Count);
            Vector256<A> a0 = Vector256.Create(a[0]);
            c00 = VectorMath.Fma(a0, b0, c00);
            c01 = VectorMath.Fma(a0, b1, c01);
            Vector256<A> a1 = Vector256.Create(a[1]);
            c10 = VectorMath.Fma(a1, b0, c10);
            c11 = VectorMath.Fma(a1, b1, c11);
            Vector256<A> a2 = Vector256.Create(a[2]);
            c20 = VectorMath.Fma(a2, b0, c20);
            c21 = VectorMath.Fma(a2, b1, c21);
            Vector256<A> a3 = Vector256.Create(a[3]);
            c30 = VectorMath.Fma(a3, b0, c30);
            c31 = VectorMath.Fma(a3, b1, c31);
            Vector256<A> a4 = Vector256.Create(a[4]);
            c40 = VectorMath.Fma(a4, b0, c40);
            c41 = VectorMath.Fma(a4, b1, c41);
            Vector256<A> a5 = Vector256.Create(a[5]);
            c50 = VectorMath.Fma(a5, b0, c50);
            c51 = VectorMath.Fma(a5, b1, c51);
        }
        StoreRow(c00, c01, tile, 0);
        StoreRow(c10, c11, tile, 1);
        StoreRow(c20, c21, tile, 2);
        StoreRow(c30, c31, tile, 3);
        StoreRow(c40, c41, tile, 4);
        StoreRow(c50, c51, tile, 5);
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void StoreRow<A>(Vector256<A> left, Vector256<A> right, A* tile, int row) where A : unmanaged
    {
        left.Store(tile + (row * 2 * Vector256<A>.Count));
        right.Store(tile + (((row * 2) + 1) * Vector256<A>.Count));
    }
}
