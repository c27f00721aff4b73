using System.Globalization;

namespace LaspNative.Cli;

/// <summary>Amounts of memory as people write them: 80GiB, 512 MB, 1.5GB; a bare number is bytes.</summary>
internal static class ByteSize
{
    private static readonly (string Unit, double Bytes)[] s_units = [("GiB", 1L << 30), ("MiB", 1L << 20), ("KiB", 1L << 10), ("GB", 1e9), ("MB", 1e6), ("KB", 1e3), ("B", 1), ("", 1)];

    /// <summary>Whole bytes, 0 or more; null for anything else.</summary>
    public static long? Parse(string text)
    {
        (string unit, double scale) = s_units.First(u => text.EndsWith(u.Unit, StringComparison.OrdinalIgnoreCase));
        return double.TryParse(text.AsSpan(0, text.Length - unit.Length).Trim(), NumberStyles.AllowDecimalPoint, CultureInfo.InvariantCulture, out double number) && number * scale < long.MaxValue
            ? (long)(number * scale)
            : null;
    }
}
