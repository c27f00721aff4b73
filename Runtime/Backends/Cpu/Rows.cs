using System.Runtime.CompilerServices;
using System.Runtime.Intrinsics;

namespace LaspNative.Runtime.Cpu;

/// <summary>The plain loops over one row of numbers, for kernels made of several of them.</summary>
internal static unsafe class Rows
{
    /// <summary>y = x, between storage types of one arithmetic type.</summary>
    public static void Copy<TX, TY, A>(TX* x, TY* y, int width) where TX : unmanaged where TY : unmanaged where A : unmanaged
    {
        int i = 0, lanes = Vector512<A>.Count;
        for (; i <= width - lanes; i += lanes) Element.Store(Element.Load<TX, A>(x + i), y + i);
        if (i < width) Element.Store(Element.Load<TX, A>(x + i, width - i), y + i, width - i);
    }

    /// <summary>y += x.</summary>
    public static void Add<T, A>(T* x, A* y, int width) where T : unmanaged where A : unmanaged
    {
        int i = 0;
        for (; i <= width - Vector512<A>.Count; i += Vector512<A>.Count) Step(i, Vector512<A>.Count);
        if (i < width) Step(i, width - i);

        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        void Step(int at, int count) => Element.Store(Element.Load<A, A>(y + at, count) + Element.Load<T, A>(x + at, count), y + at, count);
    }

    /// <summary>y = x + z.</summary>
    public static void Sum<T, A>(T* x, T* z, T* y, int width) where T : unmanaged where A : unmanaged
    {
        int i = 0;
        for (; i <= width - Vector512<A>.Count; i += Vector512<A>.Count) Step(i, Vector512<A>.Count);
        if (i < width) Step(i, width - i);

        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        void Step(int at, int count) => Element.Store(Element.Load<T, A>(x + at, count) + Element.Load<T, A>(z + at, count), y + at, count);
    }

    /// <summary>y *= x.</summary>
    public static void Multiply<A>(A* x, A* y, int width) where A : unmanaged
    {
        int i = 0;
        for (; i <= width - Vector512<A>.Count; i += Vector512<A>.Count) Step(i, Vector512<A>.Count);
        if (i < width) Step(i, width - i);

        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        void Step(int at, int count) => Element.Store(Element.Load<A, A>(y + at, count) * Element.Load<A, A>(x + at, count), y + at, count);
    }

    /// <summary>y *= factor.</summary>
    public static void Scale<A>(A factor, A* y, int width) where A : unmanaged
    {
        int i = 0;
        for (; i <= width - Vector512<A>.Count; i += Vector512<A>.Count) Element.Store(Vector512.Load(y + i) * factor, y + i);
        if (i < width) Element.Store(Element.Load<A, A>(y + i, width - i) * factor, y + i, width - i);
    }

    /// <summary>y = exp(y).</summary>
    public static void Exp<A>(A* y, int width) where A : unmanaged
    {
        int i = 0;
        for (; i <= width - Vector512<A>.Count; i += Vector512<A>.Count) VectorMath.Exp(Vector512.Load(y + i)).Store(y + i);
        if (i < width) Element.Store(VectorMath.Exp(Element.Load<A, A>(y + i, width - i)), y + i, width - i);
    }

    /// <summary>y += factor * x * z.</summary>
    public static void AddProduct<A>(A factor, A* x, A* z, A* y, int width) where A : unmanaged
    {
        int i = 0;
        for (; i <= width - Vector512<A>.Count; i += Vector512<A>.Count) Step(i, Vector512<A>.Count);
        if (i < width) Step(i, width - i);

        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        void Step(int at, int count) =>
            Element.Store(VectorMath.Fma(Element.Load<A, A>(x + at, count) * factor, Element.Load<A, A>(z + at, count), Element.Load<A, A>(y + at, count)), y + at, count);
    }

    /// <summary>The sum of x * y, in fp64.</summary>
    public static double Dot<A>(A* x, A* y, long width) where A : unmanaged
    {
        long i = 0;
        double sum = 0;
        for (; i <= width - Vector512<A>.Count; i += Vector512<A>.Count) sum += VectorMath.Total(Vector512.Load(x + i) * Vector512.Load(y + i));
        return i < width ? sum + VectorMath.Total(Element.Load<A, A>(x + i, width - i) * Element.Load<A, A>(y + i, width - i)) : sum;
    }
}
