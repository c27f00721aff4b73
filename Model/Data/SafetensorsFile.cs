using System.Buffers.Binary;
using System.Runtime.InteropServices;
using LaspNative.Runtime;
using Microsoft.Win32.SafeHandles;

namespace LaspNative.Model;

/// <summary>What a safetensors file says about one tensor.</summary>
public readonly record struct SafetensorsInfo(DType DType, Shape Shape);

/// <summary>
/// A safetensors file, open for reading: eight bytes of header length, a JSON header, then the tensors' bytes without gaps.
/// The header is checked whole when the file is opened; tensors are read by offset when they are asked for, so a file may be larger than memory.
/// Every error is a <see cref="LaspException"/> that names the file and the tensor. Reading is thread-safe.
/// </summary>
public sealed class SafetensorsFile : IDisposable
{
    /// <summary>The format's own limit on its header.</summary>
    internal const long MaxHeaderBytes = 100_000_000;
    private const int PieceBytes = 8 << 20;
    private readonly SafeFileHandle _handle;
    private readonly SafetensorsHeader _header;
    private readonly long _dataStart;

    private SafetensorsFile(string path, SafeFileHandle handle, SafetensorsHeader header, long dataStart)
    {
        Path = path;
        _handle = handle;
        _header = header;
        _dataStart = dataStart;
    }

    public string Path { get; }

    /// <summary>The tensors' names in the order of their bytes.</summary>
    public IReadOnlyList<string> Names => _header.Names;

    /// <summary>The header's free text, __metadata__.</summary>
    public IReadOnlyDictionary<string, string> Metadata => _header.Metadata;

    public static SafetensorsFile Open(string path)
    {
        ArgumentNullException.ThrowIfNull(path);
        SafeFileHandle handle;
        try
        {
            handle = File.OpenHandle(path, FileMode.Open, FileAccess.Read, FileShare.Read);
        }
        catch (Exception e) when (e is IOException or UnauthorizedAccessException)
        {
            throw new LaspException(e is FileNotFoundException or DirectoryNotFoundException
                ? $"{path}: no such file; give the path of a safetensors file"
                : $"{path}: cannot be read: {(Directory.Exists(path) ? "it is a folder; give the path of a safetensors file" : e.Message)}", e);
        }
        try
        {
            return Open(path, handle);
        }
        catch
        {
            handle.Dispose();
            throw;
        }
    }

    private static SafetensorsFile Open(string path, SafeFileHandle handle)
    {
        long length = RandomAccess.GetLength(handle);
        Span<byte> prefix = stackalloc byte[8];
        if (length < prefix.Length) throw new LaspException($"{path}: {length} bytes are too few for a safetensors file, which starts with an 8-byte header length");
        ReadExactly(handle, 0, prefix, path);
        ulong headerBytes = BinaryPrimitives.ReadUInt64LittleEndian(prefix);
        if (headerBytes > MaxHeaderBytes) throw new LaspException($"{path}: a header of {headerBytes} bytes is over the format's limit of {MaxHeaderBytes}; this is not a safetensors file");
        long dataStart = prefix.Length + (long)headerBytes;
        if (dataStart > length) throw new LaspException($"{path}: the header of {headerBytes} bytes reaches beyond the end of the file ({length} bytes); the file is cut off");
        var text = new byte[headerBytes];
        ReadExactly(handle, prefix.Length, text, path);
        return new SafetensorsFile(path, handle, SafetensorsHeader.Parse(path, text, length - dataStart), dataStart);
    }

    public bool Contains(string name) => _header.Entries.ContainsKey(name);

    /// <summary>Element type and shape. Throws when there is no such tensor, or its element type has no counterpart here.</summary>
    public SafetensorsInfo Info(string name)
    {
        SafetensorsEntry entry = Entry(name);
        if (!SafetensorsHeader.TryDType(entry.DType, out DType dtype))
            throw new LaspException($"{Path}: tensor '{name}' has element type {entry.DType}, which is not supported; convert it to F64, F32, BF16, I64 or I32");
        if (entry.Shape.Length > Shape.MaxRank)
            throw new LaspException($"{Path}: tensor '{name}' has {entry.Shape.Length} dimensions; at most {Shape.MaxRank} are supported");
        return new SafetensorsInfo(dtype, new Shape(entry.Shape));
    }

    /// <summary>The tensor on a device, copied there in pieces.</summary>
    public Tensor Load(string name, Device device, MemoryCategory category = MemoryCategory.Activations)
    {
        SafetensorsInfo info = Info(name);
        Tensor tensor = Tensor.Empty(info.Shape, info.DType, device, category);
        try
        {
            ReadToDevice(name, 0, device, tensor.Pointer, tensor.Bytes);
            return tensor;
        }
        catch
        {
            tensor.Dispose();
            throw;
        }
    }

    /// <summary>All elements of a tensor; throws when <typeparamref name="T"/> does not store its element type.</summary>
    public T[] ReadArray<T>(string name) where T : unmanaged
    {
        SafetensorsInfo info = Info(name);
        if (DTypes.Of<T>() != info.DType) throw new LaspException($"{Path}: tensor '{name}' is {info.DType} and cannot be read as {typeof(T).Name}");
        if (info.Shape.Count > Array.MaxLength) throw new LaspException($"{Path}: tensor '{name}' of shape {info.Shape} does not fit one array; load it to a device");
        var values = new T[info.Shape.Count];
        const int piece = 1 << 24;
        for (int start = 0; start < values.Length; start += piece)
        {
            Span<T> part = values.AsSpan(start, Math.Min(piece, values.Length - start));
            Read(name, (long)start * info.DType.Size(), MemoryMarshal.AsBytes(part));
        }
        return values;
    }

    /// <summary>Elements of one floating-point tensor, from element <paramref name="first"/> on, whatever their type.</summary>
    internal void ReadDoubles(string name, long first, Span<double> values)
    {
        DType dtype = Info(name).DType;
        var bytes = new byte[values.Length * dtype.Size()];
        Read(name, first * dtype.Size(), bytes);
        for (int i = 0; i < values.Length; i++)
        {
            values[i] = dtype switch
            {
                DType.F64 => MemoryMarshal.Cast<byte, double>(bytes)[i],
                DType.F32 => MemoryMarshal.Cast<byte, float>(bytes)[i],
                DType.BF16 => (float)MemoryMarshal.Cast<byte, BF16>(bytes)[i],
                _ => throw new LaspException($"{Path}: tensor '{name}' is {dtype}; give F64, F32 or BF16"),
            };
        }
    }

    /// <summary>Bytes of one tensor from <paramref name="offset"/> within it.</summary>
    internal void Read(string name, long offset, Span<byte> destination)
    {
        SafetensorsEntry entry = Entry(name);
        if (offset < 0 || offset + destination.Length > entry.End - entry.Begin)
            throw new ArgumentOutOfRangeException(nameof(offset), offset, $"{destination.Length} bytes from there do not lie in tensor '{name}'");
        ReadExactly(_handle, _dataStart + entry.Begin + offset, destination, Path);
    }

    /// <summary>Copies bytes of one tensor, from <paramref name="offset"/> within it, to device memory.</summary>
    internal void ReadToDevice(string name, long offset, Device device, nint destination, long bytes)
    {
        var piece = new byte[Math.Min(PieceBytes, bytes)];
        for (long done = 0; done < bytes; done += piece.Length)
        {
            Span<byte> part = piece.AsSpan(0, (int)Math.Min(piece.Length, bytes - done));
            Read(name, offset + done, part);
            device.CopyFromHost(part, destination + (nint)done);
        }
    }

    private SafetensorsEntry Entry(string name) =>
        _header.Entries.TryGetValue(name, out SafetensorsEntry? entry) ? entry : throw new LaspException($"{Path}: there is no tensor '{name}'; the file has {Listing()}");

    private string Listing()
    {
        const int shown = 8;
        if (Names.Count == 0) return "none";
        return string.Join(", ", Names.Take(shown)) + (Names.Count > shown ? $" and {Names.Count - shown} more" : "");
    }

    private static void ReadExactly(SafeFileHandle handle, long offset, Span<byte> destination, string path)
    {
        try
        {
            while (destination.Length > 0)
            {
                int read = RandomAccess.Read(handle, destination, offset);
                if (read == 0) throw new LaspException($"{path}: the file ended while it was read, at byte {offset}; was it being written?");
                destination = destination[read..];
                offset += read;
            }
        }
        catch (IOException e)
        {
            throw new LaspException($"{path}: cannot be read: {e.Message}", e);
        }
    }

    public void Dispose() => _handle.Dispose();
}
