using System.Numerics;

namespace LaspNative.Runtime.Cpu;

/// <summary>
/// The gradient of a log decay per token or per channel, sub-chunk by sub-chunk: every path from a source (an earlier token, or the entering state P) to a reader (this token, a later one, or what
/// lies behind the leaving state, whose gradient is D) is counted where it crosses a position (<see cref="ChunkDecay{A}.Gradient"/>). D is walked backwards; the states P are rebuilt from
/// checkpoints, one per segment of sub-chunks, so that scratch holds a small part of the states of a long run.
/// </summary>
internal sealed unsafe partial class CpuBackend
{
    /// <summary>Sub-chunks between two checkpoints.</summary>
    private const int SegmentChunks = 64;

    private void PathDecayGradient(
        AttentionExtents extents, Tensor q, Tensor k, Tensor v, Tensor dO, Tensor decay, Tensor? initialState, Tensor? dFinalState, double scale, Tensor dDecay)
    {
        ForEach(extents.Batches * extents.Heads, task =>
        {
            (long batch, long head) = Math.DivRem(task, extents.Heads);
            if (q.DType == DType.F64) PathDecayGradient<double, double>(extents, batch, head, q, k, v, dO, decay, initialState, dFinalState, scale, dDecay);
            else if (q.DType == DType.F32) PathDecayGradient<float, float>(extents, batch, head, q, k, v, dO, decay, initialState, dFinalState, scale, dDecay);
            else PathDecayGradient<BF16, float>(extents, batch, head, q, k, v, dO, decay, initialState, dFinalState, scale, dDecay);
        });
    }

    private static void PathDecayGradient<T, A>(
        AttentionExtents extents, long batch, long head, Tensor q, Tensor k, Tensor v, Tensor dO, Tensor decay, Tensor? initialState, Tensor? dFinalState, double scale, Tensor dDecay)
        where T : unmanaged where A : unmanaged, IBinaryFloatingPointIeee754<A>
    {
        using var chunk = ChunkDecay<A>.Of(decay, extents.KeyWidth);
        using var walk = new DecayWalk<T, A>(extents, batch, head, chunk, q, k, v, dO, dDecay, scale);
        int size = extents.KeyWidth * extents.ValueWidth;
        long segment = (long)chunk.Length * SegmentChunks, segments = (extents.Tokens + segment - 1) / segment;
        long held = segments > 1 ? SegmentChunks : (extents.Tokens / chunk.Length) + 1;
        using Workspace scratch = Workspace.Rent<A>((segments + held + 2) * size);
        A* checkpoints = scratch.Take<A>((segments + 1) * size), entering = scratch.Take<A>(held * size), leaving = scratch.Take<A>(size);
        LoadState(initialState, (batch * extents.Heads) + head, size, checkpoints);
        LoadState(dFinalState, (batch * extents.Heads) + head, size, leaving);
        for (long n = 0; n < segments - 1; n++)
        {
            A* state = checkpoints + ((n + 1) * size);
            Copy(checkpoints + (n * size), state, size);
            for (long start = n * segment; start < (n + 1) * segment; start += chunk.Length) walk.Forward(start, state);
        }
        for (long n = segments - 1; n >= 0; n--)
        {
            long first = n * segment;
            int chunks = (int)((Math.Min(segment, extents.Tokens - first) + chunk.Length - 1) / chunk.Length);
            Copy(checkpoints + (n * size), entering, size);
            for (int c = 1; c < chunks; c++)
            {
                A* state = entering + ((long)c * size);
                Copy(state - size, state, size);
                walk.Forward(first + ((long)(c - 1) * chunk.Length), state);
            }
            for (int c = chunks - 1; c >= 0; c--) walk.Backward(first + ((long)c * chunk.Length), entering + ((long)c * size), leaving);
        }
    }

    private static void Copy<A>(A* source, A* destination, int size) where A : unmanaged => new ReadOnlySpan<A>(source, size).CopyTo(new Span<A>(destination, size));

    /// <summary>One head's rows, and scratch for those of one sub-chunk.</summary>
    private sealed class DecayWalk<T, A> : IDisposable where T : unmanaged where A : unmanaged, IBinaryFloatingPointIeee754<A>
    {
        private readonly AttentionExtents _extents;
        private readonly long _batch, _head;
        private readonly ChunkDecay<A> _chunk;
        private readonly HeadRows<T> _queryRows, _keyRows, _valueRows, _outputGradientRows;
        private readonly HeadRows<A> _results;
        private readonly A _scale;
        private readonly Workspace _scratch;
        private readonly A* _queries, _keys, _values, _outputGradients, _queryGradients, _keyGradients, _gains, _dDecay;

        public DecayWalk(AttentionExtents extents, long batch, long head, ChunkDecay<A> chunk, Tensor q, Tensor k, Tensor v, Tensor dO, Tensor dDecay, double scale)
        {
            (_extents, _batch, _head, _chunk, _scale) = (extents, batch, head, chunk, A.CreateTruncating(scale));
            (_queryRows, _outputGradientRows) = (HeadRows<T>.Of(q, batch, head), HeadRows<T>.Of(dO, batch, head));
            (_keyRows, _valueRows) = (HeadRows<T>.Of(k, batch, extents.KeyHead(head)), HeadRows<T>.Of(v, batch, extents.KeyHead(head)));
            _results = HeadRows<A>.Of(dDecay, batch, head);
            long keyRow = chunk.Length * (long)extents.KeyWidth, valueRow = chunk.Length * (long)extents.ValueWidth, gains = (long)chunk.Length * chunk.Length;
            _scratch = Workspace.Rent<A>((5 * keyRow) + (2 * valueRow) + gains);
            _queries = _scratch.Take<A>(keyRow);
            _keys = _scratch.Take<A>(keyRow);
            _queryGradients = _scratch.Take<A>(keyRow);
            _keyGradients = _scratch.Take<A>(keyRow);
            _dDecay = _scratch.Take<A>(keyRow);
            _values = _scratch.Take<A>(valueRow);
            _outputGradients = _scratch.Take<A>(valueRow);
            _gains = _scratch.Take<A>(gains);
        }

        /// <summary>Takes the state over the sub-chunk.</summary>
        public void Forward(long start, A* state)
        {
            Load(start);
            _chunk.StepForward(_keys, _values, _extents.ValueWidth, state);
        }

        /// <summary>Writes the sub-chunk's gradients and takes D over it.</summary>
        public void Backward(long start, A* entering, A* leaving)
        {
            int count = Load(start), d = _extents.KeyWidth, e = _extents.ValueWidth;
            _queryRows.Gather(start, count, _queries);
            _outputGradientRows.Gather(start, count, _outputGradients);
            MatrixProduct.Dense(_outputGradients, false, entering, true, count, d, e, A.One, A.Zero, _queryGradients);
            _chunk.ScaleFromStart(_queryGradients, _scale);
            MatrixProduct.Dense(_values, false, leaving, true, count, d, e, A.One, A.Zero, _keyGradients);
            _chunk.ScaleToEnd(_keyGradients);
            MatrixProduct.Dense(_outputGradients, false, _values, true, count, count, e, A.One, A.Zero, _gains);
            var paths = new DecayPaths<A>
            {
                Queries = _queries,
                Keys = _keys,
                QueryGradients = _queryGradients,
                KeyGradients = _keyGradients,
                Gains = _gains,
                Entering = entering,
                Leaving = leaving,
                ValueWidth = e,
                Scale = _scale,
            };
            _chunk.Gradient(paths, _dDecay);
            _results.Scatter(_dDecay, start, count);
            _chunk.StepBackward(_queries, _outputGradients, e, _scale, leaving);
        }

        public void Dispose() => _scratch.Dispose();

        private int Load(long start)
        {
            int count = (int)Math.Min(_chunk.Length, _extents.Tokens - start);
            _chunk.Load(_batch, _head, start, count);
            _keyRows.Gather(start, count, _keys);
            _valueRows.Gather(start, count, _values);
            return count;
        }
    }
}
