using System.Buffers.Binary;
using System.Security.Cryptography;
using System.Text;

namespace LaspNative.Runtime.Cuda;

/// <summary>
/// Compiled kernels on disk, one file per key. A file is: magic, SHA-256 of the rest, length of the log, log, image. It appears under its name only when
/// whole (written beside and renamed); one that does not match its hash counts as absent. A folder that cannot be used means no cache, never an error.
/// Every change of a kernel, of the options or of NVRTC makes new entries; those that nobody has read for a month are deleted.
/// </summary>
internal sealed class KernelCache(string folder)
{
    private static readonly byte[] s_magic = "LASPK001"u8.ToArray();
    private static readonly int s_header = s_magic.Length + SHA256.HashSizeInBytes;
    private static readonly TimeSpan s_life = TimeSpan.FromDays(30);
    private static readonly TimeSpan s_day = TimeSpan.FromDays(1);
    private int _swept;

    /// <summary>The cache that the options ask for; null for none.</summary>
    public static KernelCache? Default { get; } = LaspOptions.Current.KernelCache switch
    {
        "off" => null,
        { Length: > 0 } chosen => new KernelCache(Path.GetFullPath(chosen)),
        _ => Environment.GetFolderPath(Environment.SpecialFolder.UserProfile) is { Length: > 0 } home ? new KernelCache(Path.Combine(home, ".cache", "lasp", "kernels")) : null,
    };

    public string Folder { get; } = folder;

    /// <summary>A name for what determines the result: every part enters with its length, so that no two lists of parts read the same.</summary>
    public static string Key(params IEnumerable<string> parts)
    {
        using var hash = IncrementalHash.CreateHash(HashAlgorithmName.SHA256);
        Span<byte> length = stackalloc byte[sizeof(int)];
        foreach (string part in parts)
        {
            byte[] bytes = Encoding.UTF8.GetBytes(part);
            BinaryPrimitives.WriteInt32LittleEndian(length, bytes.Length);
            hash.AppendData(length);
            hash.AppendData(bytes);
        }
        return Convert.ToHexStringLower(hash.GetHashAndReset());
    }

    public string FileOf(string key) => Path.Combine(Folder, key + ".kernel");

    public CompiledKernels? Read(string key, string file)
    {
        try
        {
            byte[] entry = File.ReadAllBytes(FileOf(key));
            if (entry.Length < s_header + sizeof(int) || !entry.AsSpan(0, s_magic.Length).SequenceEqual(s_magic)) return null;
            ReadOnlySpan<byte> payload = entry.AsSpan(s_header);
            if (!SHA256.HashData(payload).AsSpan().SequenceEqual(entry.AsSpan(s_magic.Length, SHA256.HashSizeInBytes))) return null;
            int log = BinaryPrimitives.ReadInt32LittleEndian(payload);
            MarkRead(FileOf(key));
            return new CompiledKernels(file, payload[(sizeof(int) + log)..].ToArray(), Encoding.UTF8.GetString(payload.Slice(sizeof(int), log)), fromCache: true);
        }
        catch (Exception e) when (e is IOException or UnauthorizedAccessException)
        {
            return null;
        }
    }

    public void Write(string key, CompiledKernels compiled)
    {
        byte[] log = Encoding.UTF8.GetBytes(compiled.Log);
        var entry = new byte[s_header + sizeof(int) + log.Length + compiled.Image.Length];
        Span<byte> payload = entry.AsSpan(s_header);
        BinaryPrimitives.WriteInt32LittleEndian(payload, log.Length);
        log.CopyTo(payload[sizeof(int)..]);
        compiled.Image.CopyTo(payload[(sizeof(int) + log.Length)..]);
        s_magic.CopyTo(entry, 0);
        SHA256.HashData(payload).CopyTo(entry, s_magic.Length);

        string temporary = Path.Combine(Folder, $".{key}.{Environment.ProcessId}.{Guid.NewGuid():N}");
        try
        {
            Directory.CreateDirectory(Folder);
            File.WriteAllBytes(temporary, entry);
            File.Move(temporary, FileOf(key), overwrite: true);
            if (Interlocked.Exchange(ref _swept, 1) == 0) DeleteUnread();
        }
        catch (Exception e) when (e is IOException or UnauthorizedAccessException)
        {
            // A cache that cannot be written only costs the next start its time.
        }
    }

    private static bool IsOlderThan(TimeSpan age, string path) => DateTime.UtcNow - File.GetLastWriteTimeUtc(path) > age;

    /// <summary>File systems seldom note when a file is read, so its time of writing says so, to the day.</summary>
    private static void MarkRead(string path)
    {
        try
        {
            if (IsOlderThan(s_day, path)) File.SetLastWriteTimeUtc(path, DateTime.UtcNow);
        }
        catch (Exception e) when (e is IOException or UnauthorizedAccessException)
        {
            // A folder that may only be read serves as well.
        }
    }

    private void DeleteUnread()
    {
        foreach (string path in Directory.EnumerateFiles(Folder, "*.kernel"))
            if (IsOlderThan(s_life, path)) File.Delete(path);
    }
}
