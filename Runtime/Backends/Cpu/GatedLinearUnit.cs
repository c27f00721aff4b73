using System.Runtime.CompilerServices;
using System.Runtime.Intrinsics;

namespace LaspNative.Runtime.Cpu;

/// <summary>Gated linear units: y = act(gate) * up.</summary>
internal sealed unsafe partial class CpuBackend
{
    public void GatedLinearUnit(Tensor gate, Tensor up, GateActivation activation, Tensor y)
    {
        RequireSame(gate, up);
        RequireSame(gate, y);
        bool silu = activation == GateActivation.Silu;
        if (gate.DType == DType.F64) Map<double, double, double, double, GateMap<double>>(gate, up, y, new GateMap<double>(silu));
        else if (gate.DType == DType.F32) Map<float, float, float, float, GateMap<float>>(gate, up, y, new GateMap<float>(silu));
        else Map<BF16, BF16, BF16, float, GateMap<float>>(gate, up, y, new GateMap<float>(silu));
    }

    public void GatedLinearUnitBackward(Tensor gate, Tensor up, Tensor dy, GateActivation activation, Tensor dgate, Tensor dup, Tensor? y = null)
    {
        RequireSame(gate, up);
        RequireSame(gate, dy);
        RequireSame(gate, dgate);
        RequireSame(gate, dup);
        if (y is not null) RequireSame(gate, y);
        bool silu = activation == GateActivation.Silu;
        if (gate.DType == DType.F64) GatedLinearUnitBackward<double, double>(gate, up, dy, silu, dgate, dup, y);
        else if (gate.DType == DType.F32) GatedLinearUnitBackward<float, float>(gate, up, dy, silu, dgate, dup, y);
        else GatedLinearUnitBackward<BF16, float>(gate, up, dy, silu, dgate, dup, y);
    }

    private void GatedLinearUnitBackward<T, A>(Tensor gate, Tensor up, Tensor dy, bool silu, Tensor dgate, Tensor dup, Tensor? y) where T : unmanaged where A : unmanaged
    {
        T* pGate = (T*)gate.Pointer, pUp = (T*)up.Pointer, pDy = (T*)dy.Pointer;
        T* pDgate = (T*)dgate.Pointer, pDup = (T*)dup.Pointer, pY = PointerOrNull<T>(y);
        ForRanges(gate.Count, Grain, (start, length) =>
        {
            long i = start, end = start + length;
            for (; i <= end - Vector512<A>.Count; i += Vector512<A>.Count) Step(i, Vector512<A>.Count);
            if (i < end) Step(i, end - i);
        });

        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        void Step(long i, long count)
        {
            Vector512<A> g = Element.Load<T, A>(pGate + i, count), u = Element.Load<T, A>(pUp + i, count), d = Element.Load<T, A>(pDy + i, count);
            (Vector512<A> dg, Vector512<A> du) = GateGradient(g, u, d, silu);
            Element.Store(dg, pDgate + i, count);
            Element.Store(du, pDup + i, count);
            if (pY is not null) Element.Store(new GateMap<A>(silu).Apply(g, u), pY + i, count);
        }
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static (Vector512<A> Dgate, Vector512<A> Dup) GateGradient<A>(Vector512<A> gate, Vector512<A> up, Vector512<A> dy, bool silu) where A : unmanaged
    {
        if (!silu) return (dy * up, dy * gate);
        Vector512<A> s = VectorMath.Sigmoid(gate);
        Vector512<A> derivative = s * VectorMath.Fma(gate, Vector512<A>.One - s, Vector512<A>.One);
        return (dy * up * derivative, dy * gate * s);
    }

    private readonly struct GateMap<A>(bool silu) : IMap2<A> where A : unmanaged
    {
        public Vector512<A> Apply(Vector512<A> x, Vector512<A> z) => silu ? x * VectorMath.Sigmoid(x) * z : x * z;
    }
}
