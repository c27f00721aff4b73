namespace LaspNative.Runtime;

/// <summary>
/// A tensor as a matrix product reads or writes it: [rows, columns], or a batch of such. A value: taking [B, N, H, D] as the matrix [B N, H D] makes no tensor.
/// It borrows the tensor, and a tensor of two or three dimensions is one as it stands.
/// </summary>
public readonly record struct Matrix
{
    private Matrix(Tensor elements, long batches, long rows, long columns) => (Elements, Batches, Rows, Columns) = (elements, batches, rows, columns);

    public Tensor Elements { get; }

    /// <summary>Matrices, one behind the other.</summary>
    public long Batches { get; }

    public long Rows { get; }

    public long Columns { get; }

    public DType DType => Elements.DType;

    public nint Pointer => Elements.Pointer;

    /// <summary>All elements, in their order, as one matrix. Throws when their number is another.</summary>
    public static Matrix Of(Tensor elements, long rows, long columns)
    {
        ArgumentNullException.ThrowIfNull(elements);
        if (rows < 0 || columns < 0 || elements.Count != checked(rows * columns))
            throw new LaspException($"a tensor of shape {elements.Shape} cannot be read as a matrix [{rows}, {columns}]: {elements.Count} elements against {rows * columns}");
        return new Matrix(elements, 1, rows, columns);
    }

    /// <summary>The tensor as it stands: [M, N], or a batch [G, M, N]. Throws for other ranks.</summary>
    public static Matrix From(Tensor elements)
    {
        ArgumentNullException.ThrowIfNull(elements);
        Shape shape = elements.Shape;
        return shape.Rank switch
        {
            2 => new Matrix(elements, 1, shape[0], shape[1]),
            3 => new Matrix(elements, shape[0], shape[1], shape[2]),
            _ => throw new LaspException($"a tensor of shape {shape} is no matrix [M, N] and no batch [G, M, N] of matrices; say with Matrix.Of which it is"),
        };
    }

    public static implicit operator Matrix(Tensor elements) => From(elements);

    public override string ToString() => $"{DType} {(Batches == 1 ? "" : $"{Batches} x ")}[{Rows}, {Columns}]";
}
