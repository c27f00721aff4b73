using System.Text.Json;
using LaspNative.Runtime;

namespace LaspNative.Model;

/// <summary>One tensor of a header: the bytes [Begin, End) of the file's data.</summary>
internal sealed record SafetensorsEntry(string DType, long[] Shape, long Begin, long End);

/// <summary>
/// The JSON header of a safetensors file: { name: { "dtype", "shape", "data_offsets": [begin, end] }, "__metadata__": { text: text } }.
/// The tensors' bytes must fill the file's data exactly: no overlap, no hole, nothing left over.
/// </summary>
internal sealed class SafetensorsHeader
{
    internal const string MetadataKey = "__metadata__";

    private readonly string _path;
    private readonly Dictionary<string, SafetensorsEntry> _entries = new(StringComparer.Ordinal);
    private readonly Dictionary<string, string> _metadata = new(StringComparer.Ordinal);

    private SafetensorsHeader(string path) => _path = path;

    public IReadOnlyDictionary<string, SafetensorsEntry> Entries => _entries;

    public IReadOnlyDictionary<string, string> Metadata => _metadata;

    public IReadOnlyList<string> Names { get; private set; } = [];

    /// <param name="path">Named in errors.</param>
    /// <param name="text">The header's bytes.</param>
    /// <param name="dataBytes">Bytes of the file behind the header.</param>
    public static SafetensorsHeader Parse(string path, ReadOnlyMemory<byte> text, long dataBytes)
    {
        var header = new SafetensorsHeader(path);
        try
        {
            using JsonDocument document = JsonDocument.Parse(text);
            if (document.RootElement.ValueKind != JsonValueKind.Object) throw new LaspException($"{path}: the header is a JSON {document.RootElement.ValueKind}, not an object of tensors");
            foreach (JsonProperty property in document.RootElement.EnumerateObject())
            {
                if (property.Name == MetadataKey) header.ReadMetadata(property.Value);
                else header.ReadEntry(property.Name, property.Value);
            }
        }
        catch (Exception e) when (e is JsonException or InvalidOperationException)
        {
            throw new LaspException($"{path}: the header is not valid JSON: {e.Message}", e);
        }
        header.CheckLayout(dataBytes);
        return header;
    }

    private void ReadMetadata(JsonElement value)
    {
        if (value.ValueKind != JsonValueKind.Object) throw new LaspException($"{_path}: {MetadataKey} is a JSON {value.ValueKind}, not an object of texts");
        foreach (JsonProperty item in value.EnumerateObject())
        {
            if (item.Value.ValueKind != JsonValueKind.String) throw new LaspException($"{_path}: {MetadataKey} '{item.Name}' is not a text");
            _metadata[item.Name] = item.Value.GetString()!;
        }
    }

    private void ReadEntry(string name, JsonElement value)
    {
        if (value.ValueKind != JsonValueKind.Object) throw new LaspException($"{_path}: tensor '{name}' is described by a JSON {value.ValueKind}, not an object");
        if (!value.TryGetProperty("dtype", out JsonElement dtype) || dtype.ValueKind != JsonValueKind.String) throw new LaspException($"{_path}: tensor '{name}' has no dtype");
        long[] shape = Integers(name, value, "shape");
        long[] offsets = Integers(name, value, "data_offsets");
        if (offsets.Length != 2) throw new LaspException($"{_path}: tensor '{name}' has {offsets.Length} data_offsets instead of a begin and an end");
        var entry = new SafetensorsEntry(dtype.GetString()!, shape, offsets[0], offsets[1]);
        long bytes = Bytes(name, shape, ElementBytes(name, entry.DType));
        if (entry.End - entry.Begin != bytes)
            throw new LaspException($"{_path}: tensor '{name}' of {entry.DType} [{string.Join(", ", shape)}] takes {bytes} bytes, but its data_offsets [{entry.Begin}, {entry.End}] hold {entry.End - entry.Begin}");
        if (!_entries.TryAdd(name, entry)) throw new LaspException($"{_path}: tensor '{name}' is described twice");
    }

    private long[] Integers(string name, JsonElement value, string key)
    {
        if (!value.TryGetProperty(key, out JsonElement list) || list.ValueKind != JsonValueKind.Array) throw new LaspException($"{_path}: tensor '{name}' has no {key}");
        var values = new long[list.GetArrayLength()];
        for (int i = 0; i < values.Length; i++)
        {
            if (list[i].ValueKind != JsonValueKind.Number || !list[i].TryGetInt64(out values[i]) || values[i] < 0)
                throw new LaspException($"{_path}: tensor '{name}' has {key} {list.GetRawText()}, which are not integers of 0 or more");
        }
        return values;
    }

    private long Bytes(string name, long[] shape, long elementBytes)
    {
        try
        {
            return shape.Aggregate(elementBytes, (product, extent) => checked(product * extent));
        }
        catch (OverflowException e)
        {
            throw new LaspException($"{_path}: tensor '{name}' of shape [{string.Join(", ", shape)}] is larger than any file", e);
        }
    }

    /// <summary>Sets <see cref="Names"/>, in the order of the bytes.</summary>
    private void CheckLayout(long dataBytes)
    {
        KeyValuePair<string, SafetensorsEntry>[] ordered = [.. _entries.OrderBy(e => e.Value.Begin).ThenBy(e => e.Value.End)];
        long position = 0;
        string before = "the header";
        foreach ((string name, SafetensorsEntry entry) in ordered)
        {
            if (entry.End > dataBytes) throw new LaspException($"{_path}: tensor '{name}' ends at byte {entry.End} of the data, which has only {dataBytes} bytes; the file is cut off");
            if (entry.Begin < position) throw new LaspException($"{_path}: tensor '{name}' begins at byte {entry.Begin} of the data and overlaps {before}, which ends at {position}");
            if (entry.Begin > position) throw new LaspException($"{_path}: tensor '{name}' begins at byte {entry.Begin} of the data, a gap behind {before}, which ends at {position}");
            position = entry.End;
            before = $"tensor '{name}'";
        }
        if (position < dataBytes) throw new LaspException($"{_path}: {dataBytes - position} bytes at the end belong to no tensor; the header and the data do not fit together");
        Names = [.. ordered.Select(e => e.Key)];
    }

    internal static bool TryDType(string text, out DType dtype)
    {
        DType? known = text switch
        {
            "F64" => DType.F64,
            "F32" => DType.F32,
            "BF16" => DType.BF16,
            "I64" => DType.I64,
            "I32" => DType.I32,
            _ => null,
        };
        dtype = known.GetValueOrDefault();
        return known.HasValue;
    }

    /// <summary>Element sizes of the format, also of the types that cannot be loaded: other tensors of such a file can.</summary>
    private int ElementBytes(string name, string dtype) => dtype switch
    {
        "F64" or "I64" or "U64" => 8,
        "F32" or "I32" or "U32" => 4,
        "F16" or "BF16" or "I16" or "U16" => 2,
        "BOOL" or "I8" or "U8" or "F8_E4M3" or "F8_E5M2" => 1,
        _ => throw new LaspException($"{_path}: tensor '{name}' has the unknown element type {dtype}; F64, F32, BF16, I64 and I32 are supported"),
    };
}
