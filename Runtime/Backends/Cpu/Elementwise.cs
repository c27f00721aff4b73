using System.Runtime.CompilerServices;
using System.Runtime.Intrinsics;

namespace LaspNative.Runtime.Cpu;

/// <summary>Fill, copies and maps. A map is a struct that turns vectors into vectors; the loops over memory are written once, below.</summary>
internal sealed unsafe partial class CpuBackend
{
    public void Fill(double value, Tensor y)
    {
        switch (y.DType)
        {
            case DType.F64: Fill(value, (double*)y.Pointer, y.Count); break;
            case DType.F32: Fill((float)value, (float*)y.Pointer, y.Count); break;
            case DType.BF16: Fill((BF16)(float)value, (BF16*)y.Pointer, y.Count); break;
            case DType.I64: Fill((long)value, (long*)y.Pointer, y.Count); break;
            default: Fill((int)value, (int*)y.Pointer, y.Count); break;
        }
    }

    public void Cast(Tensor x, Tensor y)
    {
        RequireSameCount(x, y);
        switch (x.DType, y.DType)
        {
            case (DType.F32, DType.F32): Map<float, float, float, Identity<float>>(x, y); break;
            case (DType.F32, DType.BF16): Map<float, BF16, float, Identity<float>>(x, y); break;
            case (DType.BF16, DType.F32): Map<BF16, float, float, Identity<float>>(x, y); break;
            case (DType.BF16, DType.BF16): Map<BF16, BF16, float, Identity<float>>(x, y); break;
            case (DType.F64, DType.F64): Map<double, double, double, Identity<double>>(x, y); break;
            case (DType.F64, DType.F32): Convert<double, float>(x, y); break;
            case (DType.F64, DType.BF16): Convert<double, BF16>(x, y); break;
            case (DType.F32, DType.F64): Convert<float, double>(x, y); break;
            case (DType.BF16, DType.F64): Convert<BF16, double>(x, y); break;
            default: throw new LaspException($"no cast from {x.DType} to {y.DType}");
        }
    }

    public void Add(Tensor a, Tensor b, Tensor y)
    {
        RequireSame(a, b);
        RequireSame(a, y);
        if (a.DType == DType.F64) Map<double, double, double, double, SumMap<double>>(a, b, y);
        else if (a.DType == DType.F32) Map<float, float, float, float, SumMap<float>>(a, b, y);
        else Map<BF16, BF16, BF16, float, SumMap<float>>(a, b, y);
    }

    public void Scale(Tensor x, Tensor factor, Tensor y)
    {
        RequireSame(x, y);
        RequireScalar(factor, x.DType.Accumulator());
        if (x.DType == DType.F64) Map<double, double, double, Scaling<double>>(x, y, new Scaling<double>(*(double*)factor.Pointer));
        else if (x.DType == DType.F32) Map<float, float, float, Scaling<float>>(x, y, new Scaling<float>(*(float*)factor.Pointer));
        else Map<BF16, BF16, float, Scaling<float>>(x, y, new Scaling<float>(*(float*)factor.Pointer));
    }

    public void AddScaled(Tensor x, double alpha, Tensor y)
    {
        RequireSameCount(x, y);
        var scaled = new ScaledSum<float>((float)alpha);
        switch (x.DType, y.DType)
        {
            case (DType.F64, DType.F64): Map<double, double, double, double, ScaledSum<double>>(x, y, y, new ScaledSum<double>(alpha)); break;
            case (DType.F32, DType.F32): Map<float, float, float, float, ScaledSum<float>>(x, y, y, scaled); break;
            case (DType.BF16, DType.F32): Map<BF16, float, float, float, ScaledSum<float>>(x, y, y, scaled); break;
            case (DType.F32, DType.BF16): Map<float, BF16, BF16, float, ScaledSum<float>>(x, y, y, scaled); break;
            case (DType.BF16, DType.BF16): Map<BF16, BF16, BF16, float, ScaledSum<float>>(x, y, y, scaled); break;
            default: throw new LaspException($"cannot add {x.DType} into {y.DType}");
        }
    }

    public void Silu(Tensor x, Tensor y)
    {
        RequireSame(x, y);
        if (x.DType == DType.F64) Map<double, double, double, SiluMap<double>>(x, y);
        else if (x.DType == DType.F32) Map<float, float, float, SiluMap<float>>(x, y);
        else Map<BF16, BF16, float, SiluMap<float>>(x, y);
    }

    public void SiluBackward(Tensor x, Tensor dy, Tensor dx)
    {
        RequireSame(x, dy);
        RequireSame(x, dx);
        if (x.DType == DType.F64) Map<double, double, double, double, SiluGradient<double>>(x, dy, dx);
        else if (x.DType == DType.F32) Map<float, float, float, float, SiluGradient<float>>(x, dy, dx);
        else Map<BF16, BF16, BF16, float, SiluGradient<float>>(x, dy, dx);
    }

    private void Fill<T>(T value, T* y, long count) where T : unmanaged =>
        ForRanges(count, Grain, (start, length) => new Span<T>(y + start, length).Fill(value));

    private void Convert<TX, TY>(Tensor x, Tensor y) where TX : unmanaged where TY : unmanaged
    {
        TX* px = (TX*)x.Pointer;
        TY* py = (TY*)y.Pointer;
        ForRanges(x.Count, Grain, (start, length) =>
        {
            for (long i = start; i < start + length; i++) py[i] = Element.Narrow<TY, double>(Element.Widen<TX, double>(px[i]));
        });
    }

    private void Map<TX, TY, A, TMap>(Tensor x, Tensor y, TMap map = default)
        where TX : unmanaged where TY : unmanaged where A : unmanaged where TMap : struct, IMap<A>
    {
        TX* px = (TX*)x.Pointer;
        TY* py = (TY*)y.Pointer;
        ForRanges(x.Count, Grain, (start, length) =>
        {
            long i = start, end = start + length;
            for (; i <= end - Vector512<A>.Count; i += Vector512<A>.Count) MapStep<TX, TY, A, TMap>(map, px + i, py + i, Vector512<A>.Count);
            if (i < end) MapStep<TX, TY, A, TMap>(map, px + i, py + i, end - i);
        });
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void MapStep<TX, TY, A, TMap>(TMap map, TX* x, TY* y, long count)
        where TX : unmanaged where TY : unmanaged where A : unmanaged where TMap : struct, IMap<A> =>
        Element.Store(map.Apply(Element.Load<TX, A>(x, count)), y, count);

    private void Map<TX, TZ, TY, A, TMap>(Tensor x, Tensor z, Tensor y, TMap map = default)
        where TX : unmanaged where TZ : unmanaged where TY : unmanaged where A : unmanaged where TMap : struct, IMap2<A>
    {
        TX* px = (TX*)x.Pointer;
        TZ* pz = (TZ*)z.Pointer;
        TY* py = (TY*)y.Pointer;
        ForRanges(x.Count, Grain, (start, length) =>
        {
            long i = start, end = start + length;
            for (; i <= end - Vector512<A>.Count; i += Vector512<A>.Count) MapStep<TX, TZ, TY, A, TMap>(map, px + i, pz + i, py + i, Vector512<A>.Count);
            if (i < end) MapStep<TX, TZ, TY, A, TMap>(map, px + i, pz + i, py + i, end - i);
        });
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void MapStep<TX, TZ, TY, A, TMap>(TMap map, TX* x, TZ* z, TY* y, long count)
        where TX : unmanaged where TZ : unmanaged where TY : unmanaged where A : unmanaged where TMap : struct, IMap2<A> =>
        Element.Store(map.Apply(Element.Load<TX, A>(x, count), Element.Load<TZ, A>(z, count)), y, count);

    private interface IMap<A> where A : unmanaged
    {
        Vector512<A> Apply(Vector512<A> x);
    }

    private interface IMap2<A> where A : unmanaged
    {
        Vector512<A> Apply(Vector512<A> x, Vector512<A> z);
    }

    private readonly struct Identity<A> : IMap<A> where A : unmanaged
    {
        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        public Vector512<A> Apply(Vector512<A> x) => x;
    }

    private readonly struct SumMap<A> : IMap2<A> where A : unmanaged
    {
        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        public Vector512<A> Apply(Vector512<A> x, Vector512<A> z) => x + z;
    }

    private readonly struct Scaling<A>(A factor) : IMap<A> where A : unmanaged
    {
        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        public Vector512<A> Apply(Vector512<A> x) => x * factor;
    }

    private readonly struct ScaledSum<A>(A alpha) : IMap2<A> where A : unmanaged
    {
        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        public Vector512<A> Apply(Vector512<A> x, Vector512<A> z) => VectorMath.Fma(Vector512.Create(alpha), x, z);
    }

    private readonly struct SiluMap<A> : IMap<A> where A : unmanaged
    {
        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        public Vector512<A> Apply(Vector512<A> x) => x * VectorMath.Sigmoid(x);
    }

    private readonly struct SiluGradient<A> : IMap2<A> where A : unmanaged
    {
        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        public Vector512<A> Apply(Vector512<A> x, Vector512<A> dy) => dy * VectorMath.SiluDerivative(x);
    }
}
