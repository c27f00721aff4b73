using System.Diagnostics.CodeAnalysis;
using System.Runtime.CompilerServices;

namespace LaspNative.Runtime;

/// <summary>Up to five extents, row-major, as a value: building or passing one allocates nothing. Written <c>[b, n, h, d]</c>.</summary>
[CollectionBuilder(typeof(Shape), nameof(Create))]
public readonly struct Shape : IEquatable<Shape>
{
    public const int MaxRank = 5;

    [InlineArray(MaxRank)]
    [SuppressMessage("Style", "IDE0051", Justification = "The field is the inline array's element.")]
    private struct Extents { private long _first; }

    private readonly Extents _extents;

    public int Rank { get; }

    public Shape(ReadOnlySpan<long> extents)
    {
        if (extents.Length > MaxRank) throw new LaspException($"a tensor has at most {MaxRank} dimensions, got {extents.Length}; merge leading dimensions with View");
        Rank = extents.Length;
        for (int i = 0; i < extents.Length; i++)
        {
            if (extents[i] < 0) throw new LaspException($"dimension {i} of a tensor is {extents[i]}; extents are 0 or more");
            _extents[i] = extents[i];
        }
    }

    public static Shape Create(ReadOnlySpan<long> extents) => new(extents);

    /// <summary>Extent of a dimension; negative indices count from the last.</summary>
    public long this[int dimension]
    {
        get
        {
            int i = dimension < 0 ? Rank + dimension : dimension;
            if ((uint)i >= (uint)Rank) throw new ArgumentOutOfRangeException(nameof(dimension), dimension, $"the shape {this} has rank {Rank}");
            return _extents[i];
        }
    }

    /// <summary>Number of elements; 1 for a scalar.</summary>
    public long Count
    {
        get
        {
            long n = 1;
            for (int i = 0; i < Rank; i++) n = checked(n * _extents[i]);
            return n;
        }
    }

    /// <summary>Product of all extents but the last: the number of rows of the row-major matrix that this tensor is.</summary>
    public long Rows => Rank == 0 ? 1 : Count == 0 ? Leading() : Count / this[-1];

    private long Leading()
    {
        long n = 1;
        for (int i = 0; i < Rank - 1; i++) n *= _extents[i];
        return n;
    }

    /// <summary>The same shape with another last extent.</summary>
    public Shape WithLast(long extent)
    {
        Span<long> e = stackalloc long[Rank];
        for (int i = 0; i < Rank; i++) e[i] = _extents[i];
        e[^1] = extent;
        return new Shape(e);
    }

    /// <summary>This shape, <paramref name="count"/> times: [count, ...].</summary>
    public Shape Times(long count)
    {
        Span<long> e = stackalloc long[Rank + 1];
        e[0] = count;
        for (int i = 0; i < Rank; i++) e[i + 1] = _extents[i];
        return new Shape(e);
    }

    public Enumerator GetEnumerator() => new(this);

    public bool Equals(Shape other)
    {
        if (Rank != other.Rank) return false;
        for (int i = 0; i < Rank; i++)
            if (_extents[i] != other._extents[i]) return false;
        return true;
    }

    public override bool Equals(object? obj) => obj is Shape other && Equals(other);

    public override int GetHashCode()
    {
        var hash = new HashCode();
        for (int i = 0; i < Rank; i++) hash.Add(_extents[i]);
        return hash.ToHashCode();
    }

    public static bool operator ==(Shape left, Shape right) => left.Equals(right);

    public static bool operator !=(Shape left, Shape right) => !left.Equals(right);

    public override string ToString()
    {
        var parts = new string[Rank];
        for (int i = 0; i < Rank; i++) parts[i] = _extents[i].ToString();
        return $"[{string.Join(", ", parts)}]";
    }

    public struct Enumerator(Shape shape)
    {
        private int _index = -1;

        public readonly long Current => shape[_index];

        public bool MoveNext() => ++_index < shape.Rank;
    }
}
