using System.Buffers.Binary;
using System.Text.Json;
using LaspNative.Runtime;

namespace LaspNative.Model;

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
        (string Name, Tensor Tensor)[] ordered = [.. tensors.OrderByDescending(t => t.Tensor.DType.Size()).ThenBy(t => t.Name, StringComparer.Ordinal)];
        byte[] header = Header(path, ordered, metadata);
        string partial = path + ".partial";
        try
        {
            using (FileStream stream = new(partial, FileMode.Create, FileAccess.Write, FileShare.None, bufferSize: 0))
            {
                stream.Write(header);
                foreach ((_, Tensor tensor) in ordered) Copy(tensor, stream);
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
    private static byte[] Header(string path, ReadOnlySpan<(string Name, Tensor Tensor)> ordered, IReadOnlyDictionary<string, string>? metadata)
    {
        using var text = new MemoryStream();
        text.Write(stackalloc byte[sizeof(ulong)]);
        var names = new HashSet<string>(StringComparer.Ordinal);
        using (var json = new Utf8JsonWriter(text))
        {
            json.WriteStartObject();
            if (metadata is { Count: > 0 }) WriteMetadata(json, metadata);
            long position = 0;
            foreach ((string name, Tensor tensor) in ordered)
            {
                if (name == SafetensorsHeader.MetadataKey || !names.Add(name)) throw new LaspException($"{path}: a tensor cannot be named '{name}': the name is {(name == SafetensorsHeader.MetadataKey ? "the format's own" : "taken twice")}");
                WriteEntry(json, name, tensor, position);
                position += tensor.Bytes;
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

    private static void WriteEntry(Utf8JsonWriter json, string name, Tensor tensor, long position)
    {
        json.WriteStartObject(name);
        json.WriteString("dtype", tensor.DType.ToString());
        json.WriteStartArray("shape");
        foreach (long extent in tensor.Shape) json.WriteNumberValue(extent);
        json.WriteEndArray();
        json.WriteStartArray("data_offsets");
        json.WriteNumberValue(position);
        json.WriteNumberValue(position + tensor.Bytes);
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
