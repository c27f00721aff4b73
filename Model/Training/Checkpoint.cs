using System.Globalization;
using System.Text.Json;
using LaspNative.Autograd;
using LaspNative.Runtime;

namespace LaspNative.Model;

/// <summary>
/// A folder checkpoint-STEP: model.safetensors, optimizer.safetensors (the moments, and the fp32 masters of narrower parameters), config.json, trainer_state.json.
/// It is written under another name and renamed when all of it is on disk, so that a folder of this name is always whole.
/// </summary>
internal sealed class Checkpoint
{
    private const string Prefix = "checkpoint-";
    private const string UnfinishedPrefix = ".unfinished-";
    private const string ModelFile = "model.safetensors";
    private const string OptimizerFile = "optimizer.safetensors";
    private const string ConfigFile = "config.json";
    private const string StateFile = "trainer_state.json";
    private const string MasterSuffix = ".master";

    private Checkpoint(string folder, TrainerState state)
    {
        Folder = folder;
        State = state;
    }

    public string Folder { get; }

    public TrainerState State { get; }

    public static string FolderOf(string output, long step) => Path.Combine(output, Prefix + step.ToString(CultureInfo.InvariantCulture));

    /// <summary>Writes the folder, on rank 0, while the other ranks <see cref="Contribute"/>. Tensors that are divided come one at a time.</summary>
    public static void Write(string output, TrainerState state, LinearLlamaConfig config, ModelReplica replica)
    {
        string folder = FolderOf(output, state.Step);
        string unfinished = Path.Combine(output, UnfinishedPrefix + state.Step.ToString(CultureInfo.InvariantCulture));
        try
        {
            Remove(unfinished);
            Directory.CreateDirectory(unfinished);
            SafetensorsWriter.Write(Path.Combine(unfinished, ModelFile), replica.Parameters(), new Dictionary<string, string>(StringComparer.Ordinal) { ["format"] = "pt" });
            SafetensorsWriter.Write(Path.Combine(unfinished, OptimizerFile), replica.OptimizerState());
            WriteText(Path.Combine(unfinished, ConfigFile), LinearLlamaConfigJson.Write(config));
            WriteText(Path.Combine(unfinished, StateFile), state.ToJson());
            Replace(unfinished, folder);
        }
        catch (Exception error) when (error is IOException or UnauthorizedAccessException)
        {
            throw new LaspException($"cannot write {folder}: {error.Message.ReplaceLineEndings(" ")}; free space or choose another --out", error);
        }
    }

    /// <summary>Hands rank 0 what it asks for while it writes.</summary>
    public static void Contribute(ModelReplica replica)
    {
        foreach (SafetensorsSource entry in SafetensorsWriter.InFileOrder(replica.Parameters())) entry.Load().Dispose();
        foreach (SafetensorsSource entry in SafetensorsWriter.InFileOrder(replica.OptimizerState())) entry.Load().Dispose();
    }

    /// <summary>Puts a finished folder in the place of an earlier one of that step.</summary>
    private static void Replace(string finished, string folder)
    {
        string replaced = finished + "-replaced";
        Remove(replaced);
        if (Directory.Exists(folder)) Directory.Move(folder, replaced);
        Directory.Move(finished, folder);
        Remove(replaced);
    }

    private static void Remove(string folder)
    {
        if (Directory.Exists(folder)) Directory.Delete(folder, recursive: true);
    }

    private static void WriteText(string path, string text)
    {
        using var stream = new FileStream(path, FileMode.Create, FileAccess.Write);
        using (var writer = new StreamWriter(stream, leaveOpen: true)) writer.WriteLine(text);
        stream.Flush(flushToDisk: true);
    }

    /// <summary>The complete checkpoint written last; null when there is none.</summary>
    public static Checkpoint? FindNewest(string output) => !Directory.Exists(output) ? null : Directory.EnumerateDirectories(output, Prefix + "*")
        .Where(IsComplete)
        .Select(Read)
        .OrderBy(c => c.State.SavedAt)
        .ThenBy(c => c.State.Step)
        .LastOrDefault();

    private static bool IsComplete(string folder) =>
        long.TryParse(Path.GetFileName(folder).AsSpan(Prefix.Length), NumberStyles.None, CultureInfo.InvariantCulture, out _)
        && Array.TrueForAll([ModelFile, OptimizerFile, ConfigFile, StateFile], file => File.Exists(Path.Combine(folder, file)));

    private static Checkpoint Read(string folder)
    {
        string path = Path.Combine(folder, StateFile);
        try
        {
            return new Checkpoint(folder, TrainerState.Parse(File.ReadAllText(path)));
        }
        catch (Exception error) when (error is JsonException or IOException or UnauthorizedAccessException)
        {
            throw new LaspException($"cannot read {path}: {error.Message.ReplaceLineEndings(" ")}; remove {folder} or restore it", error);
        }
    }

    /// <summary>Loads weights and optimizer state. Types may differ from the checkpoint's: the widest copy of a weight is taken and rounded.</summary>
    public void Load(LinearLlamaModel model, ModelReplica replica)
    {
        LinearLlamaConfig config = LinearLlamaConfigJson.ReadFile(Path.Combine(Folder, ConfigFile));
        if (config != model.Config) throw new LaspException($"{Folder} holds another model (see its config.json); use that preset or config, or another --out to start anew");
        using SafetensorsFile weights = SafetensorsFile.Open(Path.Combine(Folder, ModelFile)), states = SafetensorsFile.Open(Path.Combine(Folder, OptimizerFile));
        foreach (NamedParameter parameter in model.Parameters)
        {
            (string name, Variable variable, _) = parameter;
            using Tensor source = Find(name + MasterSuffix, variable.Device) ?? throw new LaspException($"{Folder}: there are no weights '{name}'; restore the file or start anew with another --out");
            if (source.Shape != variable.Shape) throw new LaspException($"{Folder}: '{name}' has shape {source.Shape}, the model needs {variable.Shape}; restore the file or start anew with another --out");
            replica.SetParameter(parameter, source);
        }
        Tensor? last = null;
        replica.ImportState(State.Step, name =>
        {
            last?.Dispose();
            return last = Find(name, model.Parameters[0].Variable.Device);
        });
        last?.Dispose();

        Tensor? Find(string name, Device device)
        {
            if (states.Contains(name)) return states.Load(name, device, MemoryCategory.Workspace);
            string weight = name.EndsWith(MasterSuffix, StringComparison.Ordinal) ? name[..^MasterSuffix.Length] : name;
            return weights.Contains(weight) ? weights.Load(weight, device, MemoryCategory.Workspace) : null;
        }
    }
}
