using System.Diagnostics;
using System.Runtime.InteropServices;

namespace LaspNative.Runtime.Cpu;

/// <summary>Work has run when it returns, so the copy is made at once.</summary>
internal sealed unsafe class CpuReadback : Readback
{
    private const int Capacity = 64;
    private nint _copy = (nint)NativeMemory.Alloc(Capacity);
    private long _begun = Stopwatch.GetTimestamp();
    private TimeSpan _elapsed;

    public CpuReadback(CpuDevice device) : base(device, Capacity) { }

    public override void Begin() => _begun = Stopwatch.GetTimestamp();

    private protected override void StartCore(nint source, int bytes)
    {
        Buffer.MemoryCopy((void*)source, (void*)_copy, Capacity, bytes);
        _elapsed = Stopwatch.GetElapsedTime(_begun);
    }

    private protected override nint TakeCore(out TimeSpan elapsed)
    {
        elapsed = _elapsed;
        return _copy;
    }

    public override void Dispose()
    {
        NativeMemory.Free((void*)_copy);
        _copy = 0;
    }
}
