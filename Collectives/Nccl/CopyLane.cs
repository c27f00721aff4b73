using LaspNative.Runtime.Cuda;

namespace LaspNative.Collectives;

/// <summary>A stream of copies, and points of it for the compute stream to wait for. It waits for none that lies before one it has waited for: each wait that is queued keeps the next kernel from starting early.</summary>
internal sealed class CopyLane(CudaDevice device) : IDisposable
{
    /// <param name="Number">Of the lane's points, from 1.</param>
    public readonly record struct Point(CudaEvent Event, long Number);

    private readonly EventPool _marks = new(device.Context);
    private long _marked, _passed;

    public CudaStream Stream { get; } = new(device.Context, urgent: true);

    /// <summary>The point behind what is queued so far; pass it once.</summary>
    public Point Mark() => new(_marks.Mark(Stream), ++_marked);

    /// <summary>What is computed from now on finds everything before the point done. Forgets the point.</summary>
    public void Pass(ref Point? point)
    {
        if (point is not { } at) return;
        if (at.Number > _passed)
        {
            device.Stream.WaitFor(at.Event);
            _passed = at.Number;
        }
        _marks.Return(at.Event);
        point = null;
    }

    public void Dispose()
    {
        _marks.Dispose();
        Stream.Dispose();
    }
}
