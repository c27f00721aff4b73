using System.Numerics;
using System.Runtime.Intrinsics;

namespace LaspNative.Runtime.Cpu;

/// <summary>
/// The gradient of the log decay. Per head it is taken forward-mode: T = dS/dg is walked along with S, so nothing is ever subtracted. Per sub-chunk of C tokens
///     dg += sum_s scale exp(G_s) q_s (T + s S) . do_s + sum_{j&lt;s} (s-j) exp((s-j) g) scale (q_s.k_j)(do_s.v_j)
///     T &lt;- exp(C g) (T + C S) + sum_i (C-i) exp(G_C - G_i) k_i^T v_i
/// and &lt;T, dFinalState&gt; at the end. Scalars are summed in fp64. Per token and per channel: LinearAttentionDecayPaths.cs.
/// </summary>
internal sealed unsafe partial class CpuBackend
{
    public void LinearAttentionBackwardDecay(
        Tensor q, Tensor k, Tensor v, Tensor dO, Tensor decay, Tensor? initialState, Tensor? dFinalState, double scale, Tensor dDecay, Tensor? entering = null, Tensor? leaving = null,
        PackedRuns? runs = null)
    {
        if (runs is not null)
        {
            RunByRun.BackwardDecay(this, runs, q, k, v, dO, decay, initialState, dFinalState, scale, dDecay);
            return;
        }
        AttentionExtents extents = AttentionExtents.Of(q, k, v, dO);
        RequireAttention(extents, decay, initialState, q, k, v, dO);
        RequireAttention(extents, dDecay, dFinalState, q);
        if (dDecay.Shape != decay.Shape) throw new LaspException($"the gradient of a decay of shape {decay.Shape} cannot be {dDecay.Shape}; expected the same shape");
        if (decay.Shape.Rank == 1) HeadDecayGradient(extents, q, k, v, dO, decay, initialState, dFinalState, scale, dDecay);
        else PathDecayGradient(extents, q, k, v, dO, decay, initialState, dFinalState, scale, dDecay);
    }

    private void HeadDecayGradient(
        AttentionExtents extents, Tensor q, Tensor k, Tensor v, Tensor dO, Tensor decay, Tensor? initialState, Tensor? dFinalState, double scale, Tensor dDecay)
    {
        long tasks = extents.Batches * extents.Heads;
        using Workspace scratch = Workspace.Rent<double>(tasks);
        double* sums = scratch.Take<double>(tasks);
        ForEach(tasks, task =>
        {
            (long batch, long head) = Math.DivRem(task, extents.Heads);
            if (q.DType == DType.F64) sums[task] = HeadDecayGradient<double, double>(extents, batch, head, q, k, v, dO, decay, initialState, dFinalState, scale);
            else if (q.DType == DType.F32) sums[task] = HeadDecayGradient<float, float>(extents, batch, head, q, k, v, dO, decay, initialState, dFinalState, scale);
            else sums[task] = HeadDecayGradient<BF16, float>(extents, batch, head, q, k, v, dO, decay, initialState, dFinalState, scale);
        });
        for (long head = 0; head < extents.Heads; head++)
        {
            double sum = 0;
            for (long batch = 0; batch < extents.Batches; batch++) sum += sums[(batch * extents.Heads) + head];
            if (dDecay.DType == DType.F64) ((double*)dDecay.Pointer)[head] = sum;
            else ((float*)dDecay.Pointer)[head] = (float)sum;
        }
    }

    private static double HeadDecayGradient<T, A>(
        AttentionExtents extents, long batch, long head, Tensor q, Tensor k, Tensor v, Tensor dO, Tensor decay, Tensor? initialState, Tensor? dFinalState, double scale)
        where T : unmanaged where A : unmanaged, IBinaryFloatingPointIeee754<A>
    {
        HeadRows<T> queryRows = HeadRows<T>.Of(q, batch, head), gradientRows = HeadRows<T>.Of(dO, batch, head);
        HeadRows<T> keyRows = HeadRows<T>.Of(k, batch, extents.KeyHead(head)), valueRows = HeadRows<T>.Of(v, batch, extents.KeyHead(head));
        int d = extents.KeyWidth, e = extents.ValueWidth;
        using var chunk = ChunkDecay<A>.Of(decay, d);
        int length = chunk.Length;
        using Workspace scratch = Workspace.Rent<A>((length * ((2L * d) + (3L * e))) + (2 * length * length) + (2L * d * e));
        A* queries = scratch.Take<A>(length * (long)d), keys = scratch.Take<A>(length * (long)d);
        A* values = scratch.Take<A>(length * (long)e), gradients = scratch.Take<A>(length * (long)e), outputs = scratch.Take<A>(length * (long)e);
        A* scores = scratch.Take<A>(length * length), gains = scratch.Take<A>(length * length);
        A* s = scratch.Take<A>((long)d * e), t = scratch.Take<A>((long)d * e);
        A factor = A.CreateTruncating(scale);
        LoadState(initialState, (batch * extents.Heads) + head, d * e, s);
        new Span<A>(t, d * e).Clear();
        double total = 0;
        for (long start = 0; start < extents.Tokens; start += length)
        {
            int count = (int)Math.Min(length, extents.Tokens - start);
            chunk.Load(batch, head, start, count);
            queryRows.Gather(start, count, queries);
            keyRows.Gather(start, count, keys);
            valueRows.Gather(start, count, values);
            gradientRows.Gather(start, count, gradients);

            chunk.Scores(queries, keys, factor, scores);
            MatrixProduct.Dense(gradients, false, values, true, count, count, e, A.One, A.Zero, gains);
            total += DistanceSum(scores, gains, count);

            chunk.ScaleFromStart(queries, factor);
            MatrixProduct.Dense(queries, false, t, false, count, e, d, A.One, A.Zero, outputs);
            for (int i = 0; i < count; i++) Rows.Scale(A.CreateTruncating(i + 1), queries + ((long)i * d), d);
            MatrixProduct.Dense(queries, false, s, false, count, e, d, A.One, A.One, outputs);
            total += Rows.Dot(outputs, gradients, count * (long)e);

            AddScaledState(s, A.CreateTruncating(count), t, (long)d * e);
            chunk.ScaleState(t, e);
            chunk.StepForward(keys, values, e, s);
            for (int i = 0; i < count; i++) Rows.Scale(A.CreateTruncating(count - 1 - i), keys + ((long)i * d), d);
            MatrixProduct.Dense(keys, true, values, false, d, e, count, A.One, A.One, t);
        }
        if (dFinalState is null) return total;
        return total + Rows.Dot(t, (A*)dFinalState.Pointer + (((batch * extents.Heads) + head) * d * e), (long)d * e);
    }

    /// <summary>t += factor * s.</summary>
    private static void AddScaledState<A>(A* s, A factor, A* t, long elements) where A : unmanaged
    {
        for (long i = 0; i < elements; i += Vector512<A>.Count)
            Element.Store(VectorMath.Fma(Vector512.Create(factor), Element.Load<A, A>(s + i, elements - i), Element.Load<A, A>(t + i, elements - i)), t + i, elements - i);
    }

    /// <summary>sum over j &lt; s of (s - j) x[s, j] y[s, j].</summary>
    private static double DistanceSum<A>(A* x, A* y, int count) where A : unmanaged, IBinaryFloatingPointIeee754<A>
    {
        double sum = 0;
        for (int s = 0; s < count; s++, x += count, y += count)
            for (int j = 0; j < s; j++) sum += (s - j) * double.CreateTruncating(x[j] * y[j]);
        return sum;
    }
}
