using System.Text.Json;
using LaspNative.Runtime;

namespace LaspNative.Model;

/// <summary>metrics.jsonl of a run: one JSON object per step, on disk as soon as the step is over.</summary>
public sealed class MetricsLog : IDisposable
{
    public const string FileName = "metrics.jsonl";

    private readonly StreamWriter _writer;

    private MetricsLog(StreamWriter writer) => _writer = writer;

    /// <summary>
    /// Opens the log of an output folder, keeping the lines of steps up to <paramref name="lastStep"/> (0: none) and dropping the rest, which a resumed run writes again.
    /// Throws <see cref="LaspException"/> when the folder cannot be written.
    /// </summary>
    public static MetricsLog Open(string output, long lastStep)
    {
        string path = Path.Combine(output, FileName);
        try
        {
            Directory.CreateDirectory(output);
            string[] kept = lastStep > 0 && File.Exists(path) ? [.. File.ReadLines(path).Where(line => StepOf(line) is { } step && step <= lastStep)] : [];
            string partial = path + ".partial";
            File.WriteAllLines(partial, kept);
            File.Move(partial, path, overwrite: true);
            return new MetricsLog(new StreamWriter(new FileStream(path, FileMode.Append, FileAccess.Write, FileShare.Read)) { NewLine = "\n" });
        }
        catch (Exception error) when (error is IOException or UnauthorizedAccessException)
        {
            throw new LaspException($"cannot write {path}: {error.Message.ReplaceLineEndings(" ").TrimEnd('.')}; choose another output folder", error);
        }
    }

    public void Write(StepRecord record)
    {
        _writer.WriteLine(record.ToJson());
        _writer.Flush();
    }

    /// <summary>The step of a line; null for a line that is none, such as one cut off by a crash.</summary>
    private static long? StepOf(string line)
    {
        try
        {
            using var json = JsonDocument.Parse(line);
            return json.RootElement.ValueKind == JsonValueKind.Object && json.RootElement.TryGetProperty("step", out JsonElement step) && step.TryGetInt64(out long value) ? value : null;
        }
        catch (JsonException)
        {
            return null;
        }
    }

    public void Dispose() => _writer.Dispose();
}
