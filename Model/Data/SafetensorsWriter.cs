using System.Buffers.Binary;
using System.Text.Json;
using LaspNative.Runtime;

namespace LaspNative.Model;

/// <summary>A tensor to be written. <see cref="Load"/> is called once, in the file's order; its result, which the caller disposes, has this type and shape.</summary>
internal readonly record struct SafetensorsSource(string Name, DType DType, Shape Shape, Func<Tensor> Load)
{
    public long Bytes => Shape.Count * DType.Size();
}

/// <summary>
/// Writes safetensors files. The bytes depend only on the tensors: wider element types come first, then names in ordinal order, so that every tensor is aligned
/// to its elements and the order of the arguments does not matter. The file appears under its name only when it is complete.
/// </summary>
public static class SafetensorsWriter
{
    private const int PieceBytes = 8 << 20;

    /// <summary>Writes tensors of any device, streamed in pieces, with optional free text for __metadata__. An existing file is replaced.</summary>
    public static void Write(string path, IEnumerable<(string Name, Tensor Tensor)> tensors, IReadOnlyDictionary<string, string>? metadata = null)
    {
        ArgumentNullException.ThrowIfNull(path);
        ArgumentNullException.ThrowIfNull(tensors);
        Write(path, tensors.Select(t => new SafetensorsSource(t.Name, t.Tensor.DType, t.Tensor.Shape, t.Tensor.Share)), metadata);
    }

    /// <summary>The order in which a file holds its tensors.</summary>
    internal static SafetensorsSource[] InFileOrder(IEnumerable<SafetensorsSource> entries) => [.. entries.OrderByDescending(t => t.DType.Size()).ThenBy(t => t.Name, StringComparer.Ordinal)];

    /// <summary>As the other, for tensors that are fetched one at a time.</summary>
    internal static void Write(string path, IEnumerable<SafetensorsSource> entries, IReadOnlyDictionary<string, string>? metadata = null)
    {
        SafetensorsSource[] ordered = InFileOrder(entries);
        byte[] header = Header(path, ordered, metadata);
        string partial = path + ".partial";
        try
        {
            using (FileStream stream = new(partial, FileMode.Create, FileAccess.Write, FileShare.None, bufferSize: 0))
            {
                stream.Write(header);
                foreach (SafetensorsSource entry in ordered)
                {
                    using Tensor tensor = entry.Load();
                    Copy(tensor, stream);
                }
                stream.Flush(flushToDisk: true);
            }
            File.Move(partial, path, overwrite: true);
        }
        catch (Exception e)
        {
            TryDelete(partial);
            if (e is IOException or UnauthorizedAccessException) throw new LaspException($"{path}: cannot be written: {e.Message}", e);
            throw;
        }
    }

    /// <summary>Length, JSON, and spaces up to a multiple of 8 bytes.</summary>
    private static byte[] Header(string path, ReadOnlySpan<SafetensorsSource> ordered, IReadOnlyDictionary<string, string>? metadata)
    {
        using var text = new MemoryStream();
        text.Write(stackalloc byte[sizeof(ulong)]);
        var names = new HashSet<string>(StringComparer.Ordinal);
        using (var json = new Utf8JsonWriter(text))
        {
            json.WriteStartObject();
            if (metadata is { Count: > 0 }) WriteMetadata(json, metadata);
            long position = 0;
            foreach (SafetensorsSource entry in ordered)
            {
                string name = entry.Name;
                if (name == SafetensorsHeader.MetadataKey || !names.Add(name)) throw new LaspException($"{path}: a tensor cannot be named '{name}': the name is {(name == SafetensorsHeader.MetadataKey ? "the format's own" : "taken twice")}");
                WriteEntry(json, entry, position);
                position += entry.Bytes;
            }
            json.WriteEndObject();
        }
        while (text.Length % 8 != 0) text.WriteByte((byte)' ');
        byte[] header = text.ToArray();
        BinaryPrimitives.WriteUInt64LittleEndian(header, (ulong)(header.Length - sizeof(ulong)));
        return header;
    }

    private static void WriteMetadata(Utf8JsonWriter json, IReadOnlyDictionary<string, string> metadata)
    {
        json.WriteStartObject(SafetensorsHeader.MetadataKey);
        foreach ((string key, string value) in metadata.OrderBy(m => m.Key, StringComparer.Ordinal)) json.WriteString(key, value);
        json.WriteEndObject();
    }

    private static void WriteEntry(Utf8JsonWriter json, SafetensorsSource entry, long position)
    {
        json.WriteStartObject(entry.Name);
        json.WriteString("dtype", entry.DType.ToString());
        json.WriteStartArray("shape");
        foreach (long extent in entry.Shape) json.WriteNumberValue(extent);
        json.WriteEndArray();
        json.WriteStartArray("data_offsets");
        json.WriteNumberValue(position);
        json.WriteNumberValue(position + entry.Bytes);
        json.WriteEndArray();
        json.WriteEndObject();
    }

    private static void Copy(Tensor tensor, FileStream stream)
    {
        var piece = new byte[Math.Min(PieceBytes, tensor.Bytes)];
        for (long done = 0; done < tensor.Bytes; done += piece.Length)
        {
            Span<byte> part = piece.AsSpan(0, (int)Math.Min(piece.Length, tensor.Bytes - done));
            tensor.Device.CopyToHost(tensor.Pointer + (nint)done, part);
            stream.Write(part);
        }
    }

    private static void TryDelete(string path)
    {
        try
        {
            File.Delete(path);
        }
        catch (Exception e) when (e is IOException or UnauthorizedAccessException)
        {
            // The first error is the one to report; a name that ends in .partial tells the rest.
        }
    }
}
