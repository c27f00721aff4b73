using System.Runtime.InteropServices;

namespace LaspNative.Runtime.Cpu;

/// <summary>
/// Scratch memory of the thread that rents it: grown to the largest need and kept for the thread's next call, freed when the thread is gone.
/// Uninitialised. Pieces are aligned to 64 bytes.
/// </summary>
internal sealed unsafe class Workspace : IDisposable
{
    private const int Alignment = 64;

    [ThreadStatic]
    private static Workspace? t_idle;

    private Workspace? _below; // the next idle one of this thread: rents nest, and each level keeps its own
    private byte* _memory;
    private long _capacity;
    private long _used;

    ~Workspace() => NativeMemory.AlignedFree(_memory);

    /// <summary>Scratch that holds the given number of elements of A in up to 16 pieces.</summary>
    public static Workspace Rent<A>(long elements) where A : unmanaged
    {
        Workspace workspace = t_idle ?? new Workspace();
        t_idle = workspace._below;
        workspace.Reserve((elements * sizeof(A)) + (16 * Alignment));
        return workspace;
    }

    public A* Take<A>(long count) where A : unmanaged
    {
        long start = _used;
        _used = (start + (count * sizeof(A)) + Alignment - 1) / Alignment * Alignment;
        if (_used > _capacity) throw new InvalidOperationException($"scratch of {_capacity} bytes does not hold {_used}");
        return (A*)(_memory + start);
    }

    /// <summary>Hands the memory back to this thread.</summary>
    public void Dispose()
    {
        _used = 0;
        _below = t_idle;
        t_idle = this;
    }

    private void Reserve(long bytes)
    {
        if (bytes <= _capacity) return;
        NativeMemory.AlignedFree(_memory);
        _memory = null;
        _memory = (byte*)NativeMemory.AlignedAlloc((nuint)bytes, Alignment);
        _capacity = bytes;
    }
}
