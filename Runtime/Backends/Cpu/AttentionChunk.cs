using System.Numerics;

namespace LaspNative.Runtime.Cpu;

/// <summary>The rows of one head in a tensor [B, N, H, width]: row i lies at Data + i * Stride.</summary>
internal readonly unsafe struct HeadRows<T>(T* data, long stride, int width) where T : unmanaged
{
    public readonly T* Data = data;
    public readonly long Stride = stride;
    public readonly int Width = width;

    public static HeadRows<T> Of(Tensor tensor, long batch, long head)
    {
        long tokens = tensor.Shape[1], heads = tensor.Shape[2], width = tensor.Shape[3];
        return new HeadRows<T>((T*)tensor.Pointer + (((batch * tokens * heads) + head) * width), heads * width, checked((int)width));
    }

    /// <summary>The numbers of one head in a tensor [B, N, H], as rows of width 1.</summary>
    public static HeadRows<T> OfScalars(Tensor tensor, long batch, long head)
    {
        long tokens = tensor.Shape[1], heads = tensor.Shape[2];
        return new HeadRows<T>((T*)tensor.Pointer + (batch * tokens * heads) + head, heads, 1);
    }

    public T* At(long row) => Data + (row * Stride);

    /// <summary>Rows [start, start + count), widened and packed.</summary>
    public void Gather<A>(long start, int count, A* packed) where A : unmanaged
    {
        T* row = Data + (start * Stride);
        for (int i = 0; i < count; i++, row += Stride, packed += Width) Rows.Copy<T, A, A>(row, packed, Width);
    }

    /// <summary>The inverse of <see cref="Gather"/>.</summary>
    public void Scatter<A>(A* packed, long start, int count) where A : unmanaged
    {
        T* row = Data + (start * Stride);
        for (int i = 0; i < count; i++, row += Stride, packed += Width) Rows.Copy<A, T, A>(packed, row, Width);
    }
}

/// <summary>
/// What one head's decay does inside a sub-chunk of at most <see cref="Length"/> tokens: powers exp(i g), and the causal weights exp((i - j) g).
/// Always differences of positions, never quotients of exponentials.
/// </summary>
internal readonly unsafe ref struct ChunkDecay<A> where A : unmanaged, IBinaryFloatingPointIeee754<A>
{
    public const int Length = 64;

    /// <summary>Elements of scratch that a table takes.</summary>
    public const int Scratch = Length + 64 + (Length * Length);

    private readonly A* _powers;  // [Length + 1]
    private readonly A* _weights; // [Length, Length], zero where the key is later than the query

    /// <summary>Tables in scratch, to be filled.</summary>
    public ChunkDecay(Workspace scratch)
    {
        _powers = scratch.Take<A>(Length + 1);
        _weights = scratch.Take<A>(Length * Length);
    }

    /// <summary>The tables of one head; decay null means g = 0.</summary>
    public ChunkDecay(Tensor? decay, long head, Workspace scratch) : this(scratch) => Fill(decay, head);

    public void Fill(Tensor? decay, long head)
    {
        double g = decay is null ? 0 : double.CreateTruncating(((A*)decay.Pointer)[head]);
        for (int i = 0; i <= Length; i++) _powers[i] = A.CreateTruncating(Math.Exp(i * g));
        for (int i = 0; i < Length; i++)
            for (int j = 0; j < Length; j++) _weights[(i * Length) + j] = j <= i ? _powers[i - j] : A.Zero;
    }

    /// <summary>exp(i g).</summary>
    public A Power(int i) => _powers[i];

    /// <summary>Row i of x [count, width] times scale * exp((i + 1) g): the decay from the sub-chunk's start through token i.</summary>
    public void ScaleFromStart(A* x, int count, int width, A scale)
    {
        for (int i = 0; i < count; i++) Rows.Scale(scale * _powers[i + 1], x + ((long)i * width), width);
    }

    /// <summary>Row i of x [count, width] times exp((count - 1 - i) g): the decay from after token i to the sub-chunk's end.</summary>
    public void ScaleToEnd(A* x, int count, int width)
    {
        for (int i = 0; i < count; i++) Rows.Scale(_powers[count - 1 - i], x + ((long)i * width), width);
    }

    /// <summary>scores [query i, key j] times the causal weight; zero for j later than i.</summary>
    public void Weigh(A* scores, int count)
    {
        for (int i = 0; i < count; i++, scores += count) Rows.Multiply(_weights + (i * Length), scores, count);
    }
}
