using System.Numerics;
using System.Runtime.Intrinsics;

namespace LaspNative.Runtime.Cpu;

/// <summary>One tile of queries against one tile of keys in the backward pass of softmax attention: operands gathered into scratch, then the weights p and ds, then the three products with them.</summary>
internal unsafe ref struct SoftmaxGradientTile<A> where A : unmanaged, IBinaryFloatingPointIeee754<A>
{
    private const int QueryTile = CpuBackend.QueryTile;
    private const int KeyTile = CpuBackend.KeyTile;

    private readonly int _d;
    private readonly int _e;
    private readonly A _scale;
    private readonly A* _weights;   // p  [count, width]
    private readonly A* _gradients; // ds [count, width], before that dO v^T
    private int _count;
    private int _skipped;
    private int _width;

    public SoftmaxGradientTile(Workspace scratch, int d, int e, A scale)
    {
        (_d, _e, _scale) = (d, e, scale);
        Queries = scratch.Take<A>(QueryTile * (long)d);
        OutputGradients = scratch.Take<A>(QueryTile * (long)e);
        Keys = scratch.Take<A>(KeyTile * (long)d);
        Values = scratch.Take<A>(KeyTile * (long)e);
        _weights = scratch.Take<A>(QueryTile * KeyTile);
        _gradients = scratch.Take<A>(QueryTile * KeyTile);
    }

    /// <summary>Elements of scratch that a tile takes.</summary>
    public static long Scratch(int d, int e) => ((QueryTile + KeyTile) * (long)(d + e)) + (2 * QueryTile * KeyTile);

    public A* Queries { get; }

    public A* OutputGradients { get; }

    public A* Keys { get; }

    public A* Values { get; }

    /// <summary>p and ds of the gathered queries, <paramref name="count"/> from <paramref name="query"/> on, and <paramref name="width"/> of the gathered keys behind the first <paramref name="skipped"/>; that one is key number <paramref name="key"/>.</summary>
    public void Weigh(int count, int skipped, int width, long query, long key, VisibleKeys visible, HeadRows<A> logSumExp, HeadRows<A> delta)
    {
        (_count, _skipped, _width) = (count, skipped, width);
        MatrixProduct.Dense(Queries, false, Keys + (skipped * (long)_d), true, count, width, _d, _scale, A.Zero, _weights);
        MatrixProduct.Dense(OutputGradients, false, Values + (skipped * (long)_e), true, count, width, _e, A.One, A.Zero, _gradients);
        for (int i = 0; i < count; i++)
        {
            (int start, int end) = visible.Of(query + i, key, width);
            A* p = _weights + (i * width), ds = _gradients + (i * width);
            if (start < end) WeighRow(p + start, ds + start, end - start, *logSumExp.At(query + i), *delta.At(query + i));
            else start = end = 0;
            ClearOutside(p, start, end);
            ClearOutside(ds, start, end);
        }
    }

    private readonly void ClearOutside(A* row, int start, int end)
    {
        new Span<A>(row, start).Clear();
        new Span<A>(row + end, _width - end).Clear();
    }

    /// <summary>p = exp(p - logSumExp); ds = p (ds - delta).</summary>
    private static void WeighRow(A* p, A* ds, int count, A logSumExp, A delta)
    {
        Vector512<A> shift = Vector512.Create(logSumExp), mean = Vector512.Create(delta);
        for (int i = 0; i < count; i += Vector512<A>.Count)
        {
            Vector512<A> weight = VectorMath.Exp(Element.Load<A, A>(p + i, count - i) - shift);
            Element.Store(weight, p + i, count - i);
            Element.Store(weight * (Element.Load<A, A>(ds + i, count - i) - mean), ds + i, count - i);
        }
    }

    /// <summary>dq += scale ds k, dk += scale ds^T q, dv += p^T dO, from query and key on.</summary>
    public readonly void AddTo(HeadRows<A> dq, long query, HeadRows<A> dk, HeadRows<A> dv, long key)
    {
        MatrixView<A> p = MatrixView<A>.RowMajor(_weights, _width, transposed: true), dsTransposed = MatrixView<A>.RowMajor(_gradients, _width, transposed: true);
        MatrixView<A> ds = MatrixView<A>.RowMajor(_gradients, _width), keys = MatrixView<A>.RowMajor(Keys + (_skipped * (long)_d), _d);
        MatrixView<A> queries = MatrixView<A>.RowMajor(Queries, _d), outputGradients = MatrixView<A>.RowMajor(OutputGradients, _e);
        MatrixProduct.Run(ds, keys, _count, _d, _width, _scale, A.One, dq.At(query), dq.Stride);
        MatrixProduct.Run(dsTransposed, queries, _width, _d, _count, _scale, A.One, dk.At(key), dk.Stride);
        MatrixProduct.Run(p, outputGradients, _width, _e, _count, A.One, A.One, dv.At(key), dv.Stride);
    }
}
