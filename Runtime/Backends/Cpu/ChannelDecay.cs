using System.Numerics;
using System.Runtime.Intrinsics;

namespace LaspNative.Runtime.Cpu;

/// <summary>
/// A log decay per token and key channel: E(i, j) is a row [D] and sits inside the dot product q.k, so that no factor exp(G_i) or exp(-G_j) can be drawn out without overflow. Every pair of a
/// sub-chunk is evaluated on its own; sub-chunks of 16 tokens make that less work than the products with the state.
/// </summary>
internal sealed unsafe class ChannelDecay<A> : ChunkDecay<A> where A : unmanaged, IBinaryFloatingPointIeee754<A>
{
    private const int Tokens = 16;

    private readonly Tensor _decay;
    private readonly int _stride;  // D rounded up, so that rows are whole vectors
    private readonly A* _g;        // [Tokens, D]
    private readonly double* _sum; // [Tokens + 1, stride]
    private readonly A* _between;  // [stride]
    private readonly A* _columns;  // [Tokens, D]
    private readonly A* _row;      // [D]

    public ChannelDecay(Tensor decay, int keyWidth) : base(keyWidth, ((3 * Tokens) + 3) * (long)RoundUp(keyWidth))
    {
        _decay = decay;
        _stride = RoundUp(keyWidth);
        _g = Scratch.Take<A>(Tokens * (long)keyWidth);
        _sum = Scratch.Take<double>((Tokens + 1) * (long)_stride);
        _between = Scratch.Take<A>(_stride);
        _columns = Scratch.Take<A>(Tokens * (long)keyWidth);
        _row = Scratch.Take<A>(keyWidth);
        new Span<double>(_sum, (Tokens + 1) * _stride).Clear();
    }

    public override int Length => Tokens;

    private static int RoundUp(int width) => (width + 15) / 16 * 16;

    /// <summary>E(i, j), in a row that the next call overwrites.</summary>
    private A* Between(int i, int j)
    {
        double* later = _sum + (i * _stride), earlier = _sum + (j * _stride);
        for (int d = 0; d < _stride; d += Vector512<A>.Count) VectorMath.Exp(VectorMath.Difference<A>(later + d, earlier + d)).Store(_between + d);
        return _between;
    }

    public override void ScaleFromStart(A* x, A scale)
    {
        for (int i = 0; i < Count; i++, x += KeyWidth)
        {
            Rows.Multiply(Between(i + 1, 0), x, KeyWidth);
            Rows.Scale(scale, x, KeyWidth);
        }
    }

    public override void ScaleToEnd(A* x)
    {
        for (int j = 0; j < Count; j++, x += KeyWidth) Rows.Multiply(Between(Count, j + 1), x, KeyWidth);
    }

    public override void ScaleState(A* state, int valueWidth)
    {
        A* factors = Between(Count, 0);
        for (int d = 0; d < KeyWidth; d++) Rows.Scale(factors[d], state + ((long)d * valueWidth), valueWidth);
    }

    public override void Scores(A* queries, A* keys, A scale, A* scores)
    {
        for (int i = 0; i < Count; i++)
        {
            for (int j = 0; j < Count; j++)
                scores[(i * Count) + j] = j > i ? A.Zero : scale * A.CreateTruncating(Rows.Dot(DecayedQuery(queries, i, j), keys + ((long)j * KeyWidth), KeyWidth));
        }
    }

    public override void AddOverKeys(A* x, A* keys, A* y)
    {
        for (int i = 0; i < Count; i++)
            for (int j = 0; j <= i; j++) Rows.AddProduct(x[(i * Count) + j], Between(i + 1, j + 1), keys + ((long)j * KeyWidth), y + ((long)i * KeyWidth), KeyWidth);
    }

    public override void AddOverQueries(A* x, A* queries, A* y)
    {
        for (int i = 0; i < Count; i++)
            for (int j = 0; j <= i; j++) Rows.AddProduct(x[(i * Count) + j], Between(i + 1, j + 1), queries + ((long)i * KeyWidth), y + ((long)j * KeyWidth), KeyWidth);
    }

    /// <summary>The rectangle j &lt; i &lt;= s is summed over s first: column j holds the readers from i on.</summary>
    public override void Gradient(in DecayPaths<A> paths, A* dDecay)
    {
        A* factors = Between(Count, 0);
        for (int d = 0; d < KeyWidth; d++)
        {
            double through = Rows.Dot(paths.Entering + ((long)d * paths.ValueWidth), paths.Leaving + ((long)d * paths.ValueWidth), paths.ValueWidth);
            _row[d] = factors[d] * A.CreateTruncating(through);
        }
        new Span<A>(_columns, Tokens * KeyWidth).Clear();
        for (int i = Count - 1; i >= 0; i--)
        {
            long at = (long)i * KeyWidth;
            A* dg = dDecay + at;
            Rows.AddProduct(A.One, paths.Queries + at, paths.QueryGradients + at, _row, KeyWidth); // the paths from the entry to tokens from i on
            Rows.Copy<A, A, A>(_row, dg, KeyWidth);
            for (int j = 0; j < i; j++)
            {
                A* column = _columns + ((long)j * KeyWidth);
                Rows.AddProduct(paths.Scale * paths.Gains[(i * Count) + j], DecayedQuery(paths.Queries, i, j), paths.Keys + ((long)j * KeyWidth), column, KeyWidth);
                Rows.Add(column, dg, KeyWidth);
            }
        }
        new Span<A>(_row, KeyWidth).Clear();
        for (int i = 0; i < Count; i++)
        {
            long at = (long)i * KeyWidth;
            Rows.Add(_row, dDecay + at, KeyWidth);
            Rows.AddProduct(A.One, paths.Keys + at, paths.KeyGradients + at, _row, KeyWidth); // the paths from tokens through i to the exit
        }
    }

    protected override void Load(long batch, long head, long start)
    {
        HeadRows<A>.Of(_decay, batch, head).Gather(start, Count, _g);
        for (int i = 0; i < Count; i++)
        {
            double* before = _sum + (i * _stride), after = before + _stride;
            for (int d = 0; d < KeyWidth; d++) after[d] = before[d] + double.CreateTruncating(_g[(i * KeyWidth) + d]);
        }
    }

    /// <summary>E(i + 1, j + 1) . q_i, in a row that the next call overwrites.</summary>
    private A* DecayedQuery(A* queries, int i, int j)
    {
        A* row = Between(i + 1, j + 1);
        Rows.Multiply(queries + ((long)i * KeyWidth), row, KeyWidth);
        return row;
    }
}
