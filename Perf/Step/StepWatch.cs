namespace LaspNative.Perf;

/// <summary>
/// Says once which step each rank's host has begun when none has begun another for a while: a limit on steps is looked at between them, and says nothing of a hang inside one. A step may of course take that long.
/// </summary>
internal sealed class StepWatch : IDisposable
{
    private readonly Lock _lock = new();
    private readonly long[] _steps; // by rank; 0: none
    private readonly TimeSpan _patience;
    private readonly TextWriter _text;
    private readonly Timer _alarm;

    public StepWatch(int ranks, TimeSpan patience, TextWriter text)
    {
        (_steps, _patience, _text) = (new long[ranks], patience, text);
        _alarm = new Timer(_ => Tell(), null, patience, Timeout.InfiniteTimeSpan);
    }

    /// <summary>Call on a rank before it begins a step.</summary>
    public void Begins(int rank, long step)
    {
        lock (_lock)
        {
            _steps[rank] = step;
            _alarm.Change(_patience, Timeout.InfiniteTimeSpan);
        }
    }

    private void Tell()
    {
        lock (_lock)
        {
            IEnumerable<string> places = _steps.Select((step, rank) => step == 0 ? $"rank {rank} before its first" : $"rank {rank} in step {step}");
            _text.WriteLine(FormattableString.Invariant($"no step has begun for {_patience.TotalSeconds:0.##} s: {string.Join(", ", places)}"));
        }
    }

    public void Dispose() => _alarm.Dispose();
}
