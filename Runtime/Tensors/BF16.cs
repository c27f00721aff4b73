using System.Runtime.CompilerServices;

namespace LaspNative.Runtime;

/// <summary>The upper 16 bits of an IEEE float. Conversion from float rounds to nearest even; NaN stays NaN.</summary>
public readonly record struct BF16(ushort Bits)
{
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static explicit operator BF16(float value)
    {
        uint bits = BitConverter.SingleToUInt32Bits(value);
        if ((bits & 0x7FFF_FFFFu) > 0x7F80_0000u) return new BF16((ushort)((bits >> 16) | 0x40u));
        return new BF16((ushort)((bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16));
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static implicit operator float(BF16 value) => BitConverter.UInt32BitsToSingle((uint)value.Bits << 16);

    public override string ToString() => ((float)this).ToString();
}
