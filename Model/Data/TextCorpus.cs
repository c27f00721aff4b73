using LaspNative.Runtime;

namespace LaspNative.Model;

/// <summary>
/// The text files under the paths that a user named, in an order that depends on their names only.
/// Folders are read recursively; what is not training text is left out: dot-folders, build output (bin, obj, artifacts), the run's own output, the output of
/// other runs (folders with a metrics.jsonl), links to folders, and binary files (a NUL byte in the first 8 KiB).
/// </summary>
public sealed class TextCorpus
{
    private const int SniffedBytes = 8192;
    private static readonly HashSet<string> s_skippedFolders = new(["bin", "obj", "artifacts"], StringComparer.OrdinalIgnoreCase);

    private TextCorpus(TokenStream tokens, int binaryFiles)
    {
        Tokens = tokens;
        BinaryFiles = binaryFiles;
    }

    public TokenStream Tokens { get; }

    /// <summary>Text files read, one document each; empty ones do not count.</summary>
    public int Documents => Tokens.Documents;

    /// <summary>Files left out because they are binary.</summary>
    public int BinaryFiles { get; }

    /// <summary>
    /// Reads and tokenizes. <paramref name="output"/> is the run's own output folder.
    /// Throws <see cref="LaspException"/> when a path does not exist, cannot be read, or nothing holds text.
    /// </summary>
    public static TextCorpus Read(IReadOnlyList<string> paths, Tokenizer tokenizer, string? output = null)
    {
        string? skipped = output is null ? null : Path.TrimEndingDirectorySeparator(Path.GetFullPath(output));
        var documents = new List<int[]>();
        int binary = 0;
        foreach (string file in paths.SelectMany(path => FilesOf(path, skipped)))
        {
            byte[] bytes = ReadBytes(file);
            if (bytes.AsSpan(0, Math.Min(bytes.Length, SniffedBytes)).Contains((byte)0)) binary++;
            else if (bytes.Length > 0) documents.Add(tokenizer.Encode(bytes));
        }
        var stream = new TokenStream(documents);
        if (stream.Count < 2)
            throw new LaspException($"no text to train on in {string.Join(", ", paths)} ({binary} binary files skipped); name a text file or a folder that has some");
        return new TextCorpus(stream, binary);
    }

    private static IEnumerable<string> FilesOf(string path, string? skipped)
    {
        if (File.Exists(path)) return [path];
        if (!Directory.Exists(path)) throw new LaspException($"data path '{path}' does not exist; name a text file or a folder");
        var files = new List<(string Key, string File)>();
        Collect(new DirectoryInfo(path), "", skipped, files);
        return files.OrderBy(f => f.Key, StringComparer.Ordinal).Select(f => f.File);
    }

    private static void Collect(DirectoryInfo folder, string prefix, string? skipped, List<(string Key, string File)> files)
    {
        try
        {
            foreach (FileInfo file in folder.EnumerateFiles()) files.Add((prefix + file.Name, file.FullName));
            foreach (DirectoryInfo child in folder.EnumerateDirectories())
                if (IsRead(child, skipped)) Collect(child, prefix + child.Name + "/", skipped, files);
        }
        catch (UnauthorizedAccessException error)
        {
            throw new LaspException($"cannot read folder {folder.FullName}: {error.Message}; grant access or name other paths", error);
        }
    }

    private static bool IsRead(DirectoryInfo folder, string? skipped) =>
        !folder.Name.StartsWith('.')
        && !s_skippedFolders.Contains(folder.Name)
        && !folder.Attributes.HasFlag(FileAttributes.ReparsePoint)
        && !string.Equals(folder.FullName, skipped, StringComparison.Ordinal)
        && !File.Exists(Path.Combine(folder.FullName, MetricsLog.FileName));

    private static byte[] ReadBytes(string file)
    {
        try
        {
            return File.ReadAllBytes(file);
        }
        catch (Exception error) when (error is IOException or UnauthorizedAccessException)
        {
            throw new LaspException($"cannot read {file}: {error.Message.ReplaceLineEndings(" ")}; grant access or name other paths", error);
        }
    }
}
