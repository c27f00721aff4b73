using LaspNative.Model;

namespace LaspNative.Tests.Training;

/// <summary>Keeps what a run reports, and may act on a step.</summary>
internal sealed class RecordingListener(Action<StepRecord>? onStep = null) : ITrainingListener
{
    public List<string> Notes { get; } = [];

    public List<StepRecord> Steps { get; } = [];

    public double[] Losses => [.. Steps.Select(s => s.Loss)];

    public void Note(string line) => Notes.Add(line);

    public void Step(StepRecord record)
    {
        Steps.Add(record);
        onStep?.Invoke(record);
    }
}
