using LaspNative.Runtime;

namespace LaspNative.Model;

/// <summary>What the host knows of a step when it has queued it.</summary>
/// <param name="PeakMemoryBytes">Of the device, so far.</param>
internal readonly record struct QueuedStep(long Step, double LearningRate, long PeakMemoryBytes);

/// <summary>What the device says of a step.</summary>
/// <param name="Seconds">From the step's first work to its last, on the device.</param>
internal readonly record struct FinishedStep(QueuedStep Queued, double Loss, bool Stop, double SquaredNorm, double Seconds);

/// <summary>
/// The numbers of steps on their way from the device. Where it works on its own they are read one step late: while the host waits for those of step k, step k + 1 is queued already, and the
/// device never runs dry. Every rank reads the same numbers after queueing the same step, so ranks agree without a word more.
/// </summary>
internal sealed class StepReports : IDisposable
{
    private readonly int _lag;
    private readonly Readback[] _readbacks;
    private readonly Queue<QueuedStep> _queued = new();

    /// <param name="lag">Steps that are queued before the numbers of one are read; null: one where the device works on its own, else none.</param>
    public StepReports(Device device, int? lag = null)
    {
        _lag = lag ?? (device.IsAsynchronous ? 1 : 0);
        _readbacks = new Readback[_lag + 1];
        for (int i = 0; i <= _lag; i++) _readbacks[i] = device.OpenReadback();
    }

    /// <summary>Whether a step has been queued whose numbers were not taken.</summary>
    public bool Any => _queued.Count > 0;

    /// <summary>Whether the next numbers are to be taken now, for the next step needs their place.</summary>
    public bool IsDue => _queued.Count > _lag;

    /// <summary>The step's first work is about to be queued.</summary>
    public void Begin(long step) => ReadbackOf(step).Begin();

    /// <summary>All of the step is queued.</summary>
    /// <param name="numbers">[3]: loss, ranks that were told to stop, squared norm of the gradient.</param>
    public void Add(QueuedStep step, Tensor numbers)
    {
        ReadbackOf(step.Step).Start(numbers);
        _queued.Enqueue(step);
    }

    /// <summary>The numbers of the step that was queued first, when they have arrived.</summary>
    public FinishedStep Take()
    {
        QueuedStep step = _queued.Dequeue();
        Span<double> numbers = stackalloc double[3];
        TimeSpan elapsed = ReadbackOf(step.Step).Take(numbers);
        return new FinishedStep(step, numbers[0], numbers[1] > 0, numbers[2], elapsed.TotalSeconds);
    }

    private Readback ReadbackOf(long step) => _readbacks[step % _readbacks.Length];

    public void Dispose()
    {
        foreach (Readback readback in _readbacks) readback.Dispose();
    }
}
