namespace LaspNative.Runtime;

/// <summary>
/// Shape and element type, on the heap. The thousands of tensors of a step, most of them views that live for one call, have a few dozen of them: each thread keeps those that it has seen, and a tensor holds
/// eight bytes in place of fifty-two.
/// </summary>
internal sealed class TensorLayout
{
    /// <summary>More than any model's step has; whoever makes more starts afresh.</summary>
    private const int Most = 4096;

    [ThreadStatic]
    private static Dictionary<(Shape, DType), TensorLayout>? s_seen;

    private TensorLayout(Shape shape, DType dtype) => (Shape, DType, Count) = (shape, dtype, shape.Count);

    public Shape Shape { get; }

    public DType DType { get; }

    public long Count { get; }

    public static TensorLayout Of(Shape shape, DType dtype)
    {
        Dictionary<(Shape, DType), TensorLayout> seen = s_seen ??= [];
        if (seen.TryGetValue((shape, dtype), out TensorLayout? layout)) return layout;
        if (seen.Count == Most) seen.Clear();
        layout = new TensorLayout(shape, dtype);
        seen.Add((shape, dtype), layout);
        return layout;
    }
}
