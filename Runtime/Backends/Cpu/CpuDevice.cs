using System.Runtime.InteropServices;

namespace LaspNative.Runtime.Cpu;

/// <summary>
/// Host memory and a number of threads. Work runs on the calling thread and at most <see cref="Threads"/> - 1 pool threads,
/// and has run when a backend call returns.
/// </summary>
public sealed class CpuDevice : Device
{
    private const int Alignment = 64;

    /// <param name="threads">Threads that one backend call may use, at least 1. Rank threads share the cores: give each rank cores / ranks.</param>
    public CpuDevice(int threads) : base("cpu", DeviceKind.Cpu)
    {
        if (threads < 1) throw new LaspException($"a CPU device needs at least 1 thread, got {threads}");
        Threads = threads;
        Backend = new CpuBackend(this);
    }

    public int Threads { get; }

    public override IBackend Backend { get; }

    protected override unsafe nint AllocateCore(long bytes)
    {
        void* pointer = NativeMemory.AlignedAlloc((nuint)Math.Max(bytes, 1), Alignment);
        if (LaspOptions.Current.Poison) NativeMemory.Fill(pointer, (nuint)bytes, 0xFF);
        return (nint)pointer;
    }

    protected override unsafe void FreeCore(nint pointer, long bytes) => NativeMemory.AlignedFree((void*)pointer);

    public override unsafe void CopyFromHost(ReadOnlySpan<byte> source, nint destination) => source.CopyTo(new Span<byte>((void*)destination, source.Length));

    public override unsafe void CopyToHost(nint source, Span<byte> destination) => new ReadOnlySpan<byte>((void*)source, destination.Length).CopyTo(destination);

    public override unsafe void Copy(nint source, nint destination, long bytes) => Buffer.MemoryCopy((void*)source, (void*)destination, bytes, bytes);

    public override Readback OpenReadback() => new CpuReadback(this);

    public override void Synchronize() { }

    public override void Dispose() { }
}
