namespace LaspNative.Runtime;

/// <summary>
/// A shape on the heap. The thousands of tensors of a step, most of them views that live for one call, have a few dozen shapes: each thread keeps those it saw last, and a tensor holds
/// eight bytes in place of forty-eight.
/// </summary>
internal sealed class SharedShape
{
    private const int Slots = 256;

    [ThreadStatic]
    private static SharedShape?[]? s_recent;

    private SharedShape(Shape value) => Value = value;

    public Shape Value { get; }

    public static SharedShape Of(Shape shape)
    {
        SharedShape?[] recent = s_recent ??= new SharedShape?[Slots];
        ref SharedShape? slot = ref recent[shape.GetHashCode() & (Slots - 1)];
        if (slot is null || slot.Value != shape) slot = new SharedShape(shape);
        return slot;
    }
}
