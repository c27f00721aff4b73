using System.Numerics;

namespace LaspNative.Runtime.Cpu;

/// <summary>
/// The backward pass of softmax attention, tile by tile, the weights rebuilt from the row's logSumExp:
///     p_ij = exp(scale q_i.k_j - logSumExp_i)    ds_ij = p_ij (dO_i.v_j - delta_i)    dq += scale ds k    dk += scale ds^T q    dv += p^T dO.
/// Key heads run in parallel; each is walked by one thread in the order key tile, query head, query tile, so every sum has one order.
/// </summary>
internal sealed unsafe partial class CpuBackend
{
    public void SoftmaxAttentionBackward(
        Tensor q, Tensor k, Tensor v, Tensor dO, Tensor logSumExp, Tensor delta, Tensor ranges, long firstKey, double scale, Tensor dq, Tensor dk, Tensor dv)
    {
        SoftmaxExtents extents = SoftmaxExtents.Of(q, k, v, ranges, dO, logSumExp);
        RequireType(dO, q.DType);
        RequireGradient(logSumExp, delta);
        RequireGradient(q, dq);
        RequireGradient(k, dk);
        RequireGradient(v, dv);
        var visible = new VisibleKeys(ranges, firstKey, extents.Keys);
        long tiles = extents.QueryTiles;
        using Workspace scratch = Workspace.Rent<(long, long)>(tiles);
        (long Start, long End)* seen = scratch.Take<(long, long)>(tiles);
        for (long tile = 0; tile < tiles; tile++) seen[tile] = visible.OfBlock(tile * QueryTile, extents.TileLength(tile));
        ForEach(extents.Batches * extents.KeyHeads, task =>
        {
            (long batch, long keyHead) = Math.DivRem(task, extents.KeyHeads);
            if (q.DType == DType.F64) BackwardKeyHead<double, double>(extents, batch, keyHead, visible, seen, q, k, v, dO, logSumExp, delta, scale, dq, dk, dv);
            else if (q.DType == DType.F32) BackwardKeyHead<float, float>(extents, batch, keyHead, visible, seen, q, k, v, dO, logSumExp, delta, scale, dq, dk, dv);
            else BackwardKeyHead<BF16, float>(extents, batch, keyHead, visible, seen, q, k, v, dO, logSumExp, delta, scale, dq, dk, dv);
        });
    }

    /// <summary>Throws unless both have one shape and the second is of the first one's accumulator.</summary>
    private static void RequireGradient(Tensor source, Tensor gradient)
    {
        if (gradient.Shape != source.Shape) throw new LaspException($"the tensor {gradient} should have the shape {source.Shape}");
        RequireType(gradient, source.DType.Accumulator());
    }

    /// <param name="seen">What each query tile sees, as <see cref="VisibleKeys.OfBlock"/> gives it.</param>
    private static void BackwardKeyHead<T, A>(
        SoftmaxExtents extents, long batch, long keyHead, VisibleKeys visible, (long Start, long End)* seen,
        Tensor q, Tensor k, Tensor v, Tensor dO, Tensor logSumExp, Tensor delta, double scale, Tensor dq, Tensor dk, Tensor dv)
        where T : unmanaged where A : unmanaged, IBinaryFloatingPointIeee754<A>
    {
        HeadRows<T> keyRows = HeadRows<T>.Of(k, batch, keyHead), valueRows = HeadRows<T>.Of(v, batch, keyHead);
        HeadRows<A> keyGradients = HeadRows<A>.Of(dk, batch, keyHead), valueGradients = HeadRows<A>.Of(dv, batch, keyHead);
        int d = extents.KeyWidth, e = extents.ValueWidth;
        long group = extents.Heads / extents.KeyHeads;
        using Workspace scratch = Workspace.Rent<A>(SoftmaxGradientTile<A>.Scratch(d, e));
        var pair = new SoftmaxGradientTile<A>(scratch, d, e, A.CreateTruncating(scale));
        for (long key = 0; key < extents.Keys; key += KeyTile)
        {
            int keys = (int)Math.Min(KeyTile, extents.Keys - key);
            keyRows.Gather(key, keys, pair.Keys);
            valueRows.Gather(key, keys, pair.Values);
            for (long head = keyHead * group; head < (keyHead + 1) * group; head++)
            {
                HeadRows<T> queryRows = HeadRows<T>.Of(q, batch, head), outputGradients = HeadRows<T>.Of(dO, batch, head);
                HeadRows<A> queryGradients = HeadRows<A>.Of(dq, batch, head), statistics = HeadRows<A>.Of(logSumExp, batch, head), deltas = HeadRows<A>.Of(delta, batch, head);
                for (long tile = 0; tile < extents.QueryTiles; tile++)
                {
                    long first = tile * QueryTile, start = Math.Max(key, seen[tile].Start);
                    int count = extents.TileLength(tile), width = (int)(Math.Min(key + keys, seen[tile].End) - start);
                    if (width <= 0 || !visible.Any(first, count, start, width)) continue;
                    queryRows.Gather(first, count, pair.Queries);
                    outputGradients.Gather(first, count, pair.OutputGradients);
                    pair.Weigh(count, (int)(start - key), width, first, start, visible, statistics, deltas);
                    pair.AddTo(queryGradients, first, keyGradients, valueGradients, start);
                }
            }
        }
    }
}
