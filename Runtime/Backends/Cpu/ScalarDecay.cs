using System.Numerics;

namespace LaspNative.Runtime.Cpu;

/// <summary>No decay, or one log decay per head or per token: E(i, j) is a number, kept in one table, and multiplies whole scores. Sub-chunks of 64 tokens.</summary>
internal sealed unsafe class ScalarDecay<A> : ChunkDecay<A> where A : unmanaged, IBinaryFloatingPointIeee754<A>
{
    private const int Tokens = 64;
    private const int Positions = Tokens + 1;

    private readonly Tensor? _decay;
    private readonly bool _perToken;
    private readonly A* _g;        // [Tokens]
    private readonly double* _sum; // [Positions]
    private readonly A* _table;    // E [Positions, Positions], zero above the diagonal
    private readonly A* _scores;   // [Tokens, Tokens]
    private long _head = -1;

    public ScalarDecay(Tensor? decay, int keyWidth) : base(keyWidth, Tokens + Positions + (Positions * Positions) + (Tokens * Tokens))
    {
        _decay = decay;
        _perToken = decay?.Shape.Rank == 3;
        _g = Scratch.Take<A>(Tokens);
        _sum = Scratch.Take<double>(Positions);
        _table = Scratch.Take<A>(Positions * Positions);
        _scores = Scratch.Take<A>(Tokens * Tokens);
        new Span<A>(_table, Positions * Positions).Clear();
    }

    public override int Length => Tokens;

    /// <summary>E of position i and all positions from j on.</summary>
    private A* Between(int i, int j) => _table + (i * Positions) + j;

    public override void ScaleFromStart(A* x, A scale)
    {
        for (int i = 0; i < Count; i++) Rows.Scale(scale * *Between(i + 1, 0), x + ((long)i * KeyWidth), KeyWidth);
    }

    public override void ScaleToEnd(A* x)
    {
        for (int j = 0; j < Count; j++) Rows.Scale(*Between(Count, j + 1), x + ((long)j * KeyWidth), KeyWidth);
    }

    public override void ScaleState(A* state, int valueWidth) => Rows.Scale(*Between(Count, 0), state, KeyWidth * valueWidth);

    public override void Scores(A* queries, A* keys, A scale, A* scores)
    {
        MatrixProduct.Dense(queries, false, keys, true, Count, Count, KeyWidth, scale, A.Zero, scores);
        Weigh(scores);
    }

    public override void AddOverKeys(A* x, A* keys, A* y)
    {
        Buffer.MemoryCopy(x, _scores, Tokens * Tokens * sizeof(A), (long)Count * Count * sizeof(A));
        Weigh(_scores);
        MatrixProduct.Dense(_scores, false, keys, false, Count, KeyWidth, Count, A.One, A.One, y);
    }

    public override void AddOverQueries(A* x, A* queries, A* y)
    {
        Buffer.MemoryCopy(x, _scores, Tokens * Tokens * sizeof(A), (long)Count * Count * sizeof(A));
        Weigh(_scores);
        MatrixProduct.Dense(_scores, true, queries, false, Count, KeyWidth, Count, A.One, A.One, y);
    }

    /// <summary>Sums are fp64. The rectangle j &lt; i &lt;= s is summed over s first: column j holds the readers from i on.</summary>
    public override void Gradient(in DecayPaths<A> paths, A* dDecay)
    {
        Scores(paths.Queries, paths.Keys, paths.Scale, _scores);
        double through = double.CreateTruncating(*Between(Count, 0)) * Rows.Dot(paths.Entering, paths.Leaving, KeyWidth * paths.ValueWidth);
        double* columns = stackalloc double[Tokens];
        new Span<double>(columns, Tokens).Clear();
        double* dg = stackalloc double[Tokens];
        double fromEntry = 0, toExit = 0;
        for (int i = Count - 1; i >= 0; i--)
        {
            fromEntry += Rows.Dot(paths.Queries + ((long)i * KeyWidth), paths.QueryGradients + ((long)i * KeyWidth), KeyWidth);
            dg[i] = through + fromEntry;
            for (int j = 0; j < i; j++)
            {
                columns[j] += double.CreateTruncating(_scores[(i * Count) + j] * paths.Gains[(i * Count) + j]);
                dg[i] += columns[j];
            }
        }
        for (int i = 0; i < Count; i++)
        {
            dDecay[i] = A.CreateTruncating(dg[i] + toExit);
            toExit += Rows.Dot(paths.Keys + ((long)i * KeyWidth), paths.KeyGradients + ((long)i * KeyWidth), KeyWidth);
        }
    }

    protected override void Load(long batch, long head, long start)
    {
        if (!_perToken && head == _head) return;
        _head = head;
        if (_perToken) HeadRows<A>.Of(_decay!, batch, head).Gather(start, Count, _g);
        else new Span<A>(_g, Tokens).Fill(_decay is null ? A.Zero : ((A*)_decay.Pointer)[head]);
        int positions = _perToken ? Count + 1 : Positions;
        _sum[0] = 0;
        for (int i = 1; i < positions; i++) _sum[i] = _sum[i - 1] + double.CreateTruncating(_g[i - 1]);
        for (int i = 0; i < positions; i++)
        {
            for (int j = 0; j <= i; j++) *Between(i, j) = A.CreateTruncating(_sum[i] - _sum[j]);
            Rows.Exp(Between(i, 0), i + 1);
        }
    }

    private void Weigh(A* scores)
    {
        for (int i = 0; i < Count; i++) Rows.Multiply(Between(i + 1, 1), scores + ((long)i * Count), Count);
    }
}
