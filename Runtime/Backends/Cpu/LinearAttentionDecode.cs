using System.Numerics;
using System.Runtime.CompilerServices;
using System.Runtime.Intrinsics;

namespace LaspNative.Runtime.Cpu;

/// <summary>One step of generation: S = exp(g) . S + k^T v in place, o = scale q S. A task is one head of one sequence; every row of its state is touched once.</summary>
internal sealed unsafe partial class CpuBackend
{
    public void LinearAttentionDecode(Tensor q, Tensor k, Tensor v, Tensor? decay, Tensor state, double scale, Tensor o)
    {
        DecodeExtents extents = DecodeExtents.Of(q, k, v, decay, state, o);
        foreach (Tensor tensor in (ReadOnlySpan<Tensor>)[k, v, o]) RequireType(tensor, q.DType);
        RequireType(state, q.DType.Accumulator());
        if (decay is not null) RequireType(decay, q.DType.Accumulator());
        if (q.DType == DType.F64) Decode<double, double>(extents, q, k, v, decay, state, scale, o);
        else if (q.DType == DType.F32) Decode<float, float>(extents, q, k, v, decay, state, scale, o);
        else Decode<BF16, float>(extents, q, k, v, decay, state, scale, o);
    }

    private void Decode<T, A>(DecodeExtents extents, Tensor q, Tensor k, Tensor v, Tensor? decay, Tensor state, double scale, Tensor o)
        where T : unmanaged where A : unmanaged, IBinaryFloatingPointIeee754<A>
    {
        T* pq = (T*)q.Pointer, pk = (T*)k.Pointer, pv = (T*)v.Pointer, po = (T*)o.Pointer;
        A* pg = PointerOrNull<A>(decay), ps = (A*)state.Pointer;
        int d = checked((int)extents.KeyWidth), e = checked((int)extents.ValueWidth);
        A factor = A.CreateTruncating(scale);
        ForEach(extents.Batches * extents.Heads, row =>
        {
            long batch = row / extents.Heads, head = row % extents.Heads, keyRow = (batch * extents.KeyHeads) + extents.KeyHead(head);
            using Workspace scratch = Workspace.Rent<A>(2L * e);
            A* value = scratch.Take<A>(e), output = scratch.Take<A>(e);
            Rows.Copy<T, A, A>(pv + (keyRow * e), value, e);
            new Span<A>(output, e).Clear();
            for (int i = 0; i < d; i++)
            {
                A a = pg is null ? A.One : A.Exp(pg[extents.DecayAt(batch, head, i)]);
                A key = Element.Widen<T, A>(pk[(keyRow * d) + i]), query = Element.Widen<T, A>(pq[(row * d) + i]);
                DecodeRow(a, key, factor * query, value, ps + (((row * d) + i) * e), output, e);
            }
            Rows.Copy<A, T, A>(output, po + (row * e), e);
        });
    }

    /// <summary>One row of a state: s = a s + key value; output += query s.</summary>
    private static void DecodeRow<A>(A a, A key, A query, A* value, A* s, A* output, int width) where A : unmanaged
    {
        int i = 0;
        for (; i <= width - Vector512<A>.Count; i += Vector512<A>.Count) Step(i, Vector512<A>.Count);
        if (i < width) Step(i, width - i);

        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        void Step(int at, int count)
        {
            Vector512<A> next = VectorMath.Fma(Vector512.Create(a), Element.Load<A, A>(s + at, count), Vector512.Create(key) * Element.Load<A, A>(value + at, count));
            Element.Store(next, s + at, count);
            Element.Store(VectorMath.Fma(Vector512.Create(query), next, Element.Load<A, A>(output + at, count)), output + at, count);
        }
    }
}
