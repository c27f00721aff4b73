using System.Runtime.InteropServices;

namespace LaspNative.Runtime.Cuda;

/// <summary>How many blocks of how many threads a kernel runs with. Blocks are one-dimensional.</summary>
/// <param name="SharedBytes">Dynamic shared memory per block.</param>
public readonly record struct LaunchShape(uint GridX, uint GridY, uint GridZ, uint BlockX, uint SharedBytes = 0)
{
    /// <summary>Enough blocks of <paramref name="block"/> threads for <paramref name="items"/> items, at most <paramref name="maximum"/>: kernels walk the rest with a grid stride.</summary>
    public static LaunchShape For(long items, uint block = 256, uint maximum = int.MaxValue) =>
        new((uint)Math.Min((items + block - 1) / block, maximum), 1, 1, block);
}

/// <summary>
/// One kernel argument: a pointer or a scalar in eight bytes. Integers are sign-extended, so that an int may fill a 64-bit parameter and a small long
/// a 32-bit one; float and double must match the parameter. A tensor map goes by its address.
/// </summary>
[StructLayout(LayoutKind.Explicit, Size = 16)]
public readonly struct KernelArg
{
    [FieldOffset(0)] private readonly long _integer;
    [FieldOffset(0)] private readonly float _single;
    [FieldOffset(0)] private readonly double _double;

    [FieldOffset(8)] private readonly bool _isAddress;

    private KernelArg(long value) => _integer = value;

    private KernelArg(long address, bool isAddress) => (_integer, _isAddress) = (address, isAddress);

    private KernelArg(float value) => _single = value;

    private KernelArg(double value) => _double = value;

    /// <summary>The eight bytes.</summary>
    internal long Bits => _integer;

    /// <summary>Whether the bytes are the host address of the value.</summary>
    internal bool IsAddress => _isAddress;

    /// <summary>A map on the stack of the caller, who launches before it returns.</summary>
    internal static unsafe KernelArg At(TensorMap* map) => new((long)map, isAddress: true);

    public static implicit operator KernelArg(nint value) => new((long)value);

    public static implicit operator KernelArg(int value) => new((long)value);

    public static implicit operator KernelArg(uint value) => new((long)value);

    public static implicit operator KernelArg(long value) => new(value);

    public static implicit operator KernelArg(ulong value) => new((long)value);

    public static implicit operator KernelArg(float value) => new(value);

    public static implicit operator KernelArg(double value) => new(value);
}
