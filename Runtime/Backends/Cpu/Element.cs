using System.Numerics;
using System.Runtime.CompilerServices;
using System.Runtime.Intrinsics;

namespace LaspNative.Runtime.Cpu;

/// <summary>
/// How the kernels read and write storage: elements of type T widen to the arithmetic type A (double for F64, float for F32 and BF16) on load and round to
/// nearest even on store. A Vector512 is one register with AVX-512 and two or four halves elsewhere, so one source serves every machine; the type
/// tests below are constants to the compiler.
/// </summary>
internal static unsafe class Element
{
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static A Widen<T, A>(T value) where T : unmanaged where A : unmanaged, IBinaryFloatingPointIeee754<A>
    {
        if (typeof(T) == typeof(A)) return (A)(object)value;
        if (typeof(T) == typeof(BF16)) return A.CreateTruncating((float)(BF16)(object)value);
        if (typeof(T) == typeof(float)) return A.CreateTruncating((float)(object)value);
        return A.CreateTruncating((double)(object)value);
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static T Narrow<T, A>(A value) where T : unmanaged where A : unmanaged, IBinaryFloatingPointIeee754<A>
    {
        if (typeof(T) == typeof(A)) return (T)(object)value;
        if (typeof(T) == typeof(BF16)) return (T)(object)(BF16)float.CreateTruncating(value);
        if (typeof(T) == typeof(float)) return (T)(object)float.CreateTruncating(value);
        return (T)(object)double.CreateTruncating(value);
    }

    /// <summary>Vector512&lt;A&gt;.Count elements from p on.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Vector512<A> Load<T, A>(T* p) where T : unmanaged where A : unmanaged
    {
        if (typeof(T) == typeof(A)) return Vector512.Load((A*)p);
        Vector256<ushort> bits = Vector256.Load((ushort*)p); // BF16 into float
        return (Vector512.Create(Vector256.WidenLower(bits), Vector256.WidenUpper(bits)) << 16).As<uint, A>();
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static void Store<T, A>(Vector512<A> value, T* p) where T : unmanaged where A : unmanaged
    {
        if (typeof(T) == typeof(A)) value.Store((A*)p);
        else RoundToBF16(value.As<A, uint>()).Store((ushort*)p);
    }

    /// <summary>
    /// The first <paramref name="count"/> elements from p on, at most a vector of them; the other lanes are zero. A loop over memory calls an inlined step
    /// with the constant count of all lanes, and once more with the rest: the test folds away where it would cost.
    /// </summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Vector512<A> Load<T, A>(T* p, long count) where T : unmanaged where A : unmanaged =>
        count >= Vector512<A>.Count ? Load<T, A>(p) : LoadSome<T, A>(p, (int)count);

    /// <summary>Writes the first <paramref name="count"/> lanes, at most all.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static void Store<T, A>(Vector512<A> value, T* p, long count) where T : unmanaged where A : unmanaged
    {
        if (count >= Vector512<A>.Count) Store(value, p);
        else StoreSome(value, p, (int)count);
    }

    [MethodImpl(MethodImplOptions.NoInlining)]
    private static Vector512<A> LoadSome<T, A>(T* p, int count) where T : unmanaged where A : unmanaged
    {
        T* lanes = stackalloc T[Vector512<A>.Count];
        new Span<T>(lanes, Vector512<A>.Count).Clear();
        new ReadOnlySpan<T>(p, count).CopyTo(new Span<T>(lanes, count));
        return Load<T, A>(lanes);
    }

    [MethodImpl(MethodImplOptions.NoInlining)]
    private static void StoreSome<T, A>(Vector512<A> value, T* p, int count) where T : unmanaged where A : unmanaged
    {
        T* lanes = stackalloc T[Vector512<A>.Count];
        Store(value, lanes);
        new ReadOnlySpan<T>(lanes, count).CopyTo(new Span<T>(p, count));
    }

    private static Vector256<ushort> RoundToBF16(Vector512<uint> bits)
    {
        Vector512<uint> rounded = (bits + Vector512.Create(0x7FFFu) + ((bits >>> 16) & Vector512<uint>.One)) >>> 16;
        Vector512<uint> quiet = (bits >>> 16) | Vector512.Create(0x40u);
        Vector512<uint> isNaN = Vector512.GreaterThan(bits & Vector512.Create(0x7FFF_FFFFu), Vector512.Create(0x7F80_0000u));
        Vector512<uint> result = Vector512.ConditionalSelect(isNaN, quiet, rounded);
        return Vector256.Narrow(result.GetLower(), result.GetUpper());
    }
}
