using System.Buffers.Binary;
using System.Text;

namespace LaspNative.Runtime.Cuda;

/// <summary>
/// What a cubin tells of itself. It is a 64-bit little-endian ELF file (the System V ABI's object files): at byte 40 of its header the place of the section table, from byte 58 on the size of an entry, how many
/// there are, and which of them holds the names. Each kernel has a section ".nv.constant0.KERNEL" for its arguments.
/// </summary>
internal static class Cubin
{
    public const byte FirstByte = 0x7f;

    private const int TableOffset = 40;
    private const int EntrySizeOffset = 58;
    private const int EntryCountOffset = 60;
    private const int NamesIndexOffset = 62;
    private const int SectionOffset = 24; // within an entry: where the section's bytes are

    private static readonly byte[] s_arguments = ".nv.constant0."u8.ToArray();

    /// <summary>Names of the kernels, in the order of their sections. Throws when the image ends before what it tells of.</summary>
    public static IReadOnlyList<string> KernelNames(ReadOnlySpan<byte> image)
    {
        try
        {
            return ArgumentSections(image);
        }
        catch (ArgumentOutOfRangeException error)
        {
            throw new LaspException($"a cubin of {image.Length} bytes is cut off; delete the folder of compiled kernels (LASP_KERNEL_CACHE) and start again", error);
        }
    }

    private static List<string> ArgumentSections(ReadOnlySpan<byte> image)
    {
        ReadOnlySpan<byte> table = image[(int)BinaryPrimitives.ReadInt64LittleEndian(image[TableOffset..])..];
        int size = BinaryPrimitives.ReadUInt16LittleEndian(image[EntrySizeOffset..]), count = BinaryPrimitives.ReadUInt16LittleEndian(image[EntryCountOffset..]);
        int names = BinaryPrimitives.ReadUInt16LittleEndian(image[NamesIndexOffset..]);
        ReadOnlySpan<byte> strings = image[(int)BinaryPrimitives.ReadInt64LittleEndian(table[(names * size + SectionOffset)..])..];
        var found = new List<string>();
        for (int i = 0; i < count; i++)
        {
            ReadOnlySpan<byte> name = strings[BinaryPrimitives.ReadInt32LittleEndian(table[(i * size)..])..];
            name = name[..name.IndexOf((byte)0)];
            if (name.StartsWith(s_arguments)) found.Add(Encoding.UTF8.GetString(name[s_arguments.Length..]));
        }
        return found;
    }
}
