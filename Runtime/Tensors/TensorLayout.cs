namespace LaspNative.Runtime;

/// <summary>
/// Shape and element type, on the heap. The thousands of tensors of a step, most of them views that live for one call, have a few dozen of them: each thread keeps those it saw last, and a tensor holds
/// eight bytes in place of fifty-two.
/// </summary>
internal sealed class TensorLayout
{
    private const int Slots = 256;

    [ThreadStatic]
    private static TensorLayout?[]? s_recent;

    private TensorLayout(Shape shape, DType dtype)
    {
        (Shape, DType) = (shape, dtype);
        Count = shape.Count;
    }

    public Shape Shape { get; }

    public DType DType { get; }

    public long Count { get; }

    public static TensorLayout Of(Shape shape, DType dtype)
    {
        TensorLayout?[] recent = s_recent ??= new TensorLayout?[Slots];
        int slot = (shape.GetHashCode() + (int)dtype) & (Slots - 1);
        ref TensorLayout? newer = ref recent[slot];
        if (newer?.Is(shape, dtype) == true) return newer;
        ref TensorLayout? older = ref recent[slot ^ 1];
        if (older?.Is(shape, dtype) == true) return older;
        older = newer;
        return newer = new TensorLayout(shape, dtype);
    }

    private bool Is(Shape shape, DType dtype) => DType == dtype && Shape == shape;
}
