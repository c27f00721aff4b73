using System.Text.Json;
using System.Text.Json.Serialization;
using LaspNative.Runtime;

namespace LaspNative.Cli;

/// <summary>
/// The result of a command for machines: to the file of --json ("-" is standard output), or, where that was not given and standard output is a file or pipe,
/// there, as one line.
/// </summary>
internal static class JsonReport
{
    private static readonly JsonSerializerOptions s_indented = new()
    {
        PropertyNamingPolicy = JsonNamingPolicy.SnakeCaseLower,
        NumberHandling = JsonNumberHandling.AllowNamedFloatingPointLiterals,
        Converters = { new JsonStringEnumConverter(JsonNamingPolicy.SnakeCaseLower) },
        WriteIndented = true,
        NewLine = "\n",
    };

    private static readonly JsonSerializerOptions s_line = new(s_indented) { WriteIndented = false };

    /// <summary>Refuses a file that could not be written later, before any work is done.</summary>
    public static void Check(string? file)
    {
        if (file is null or "-") return;
        string folder = Path.GetDirectoryName(Path.GetFullPath(file))!;
        if (!Directory.Exists(folder)) throw new LaspException($"--json {file}: there is no folder {folder}; make it first");
        if (Directory.Exists(file)) throw new LaspException($"--json {file} is a folder; give the name of a file");
    }

    public static void Write<T>(T report, string? file, Terminal terminal)
    {
        if (file is not null and not "-") File.WriteAllText(file, JsonSerializer.Serialize(report, s_indented) + "\n");
        else if (file is "-" || terminal.IsOutputRedirected) terminal.Output.WriteLine(JsonSerializer.Serialize(report, s_line));
    }
}
