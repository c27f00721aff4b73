namespace LaspNative.Runtime;

/// <summary>Element types. F64 exists on the CPU only; BF16 is stored as its 16 bits (<see cref="BF16"/>).</summary>
public enum DType
{
    F64,
    F32,
    BF16,
    I64,
    I32,
}

public static class DTypes
{
    /// <summary>Bytes of one element.</summary>
    public static int Size(this DType dtype) => dtype switch
    {
        DType.F64 or DType.I64 => 8,
        DType.F32 or DType.I32 => 4,
        _ => 2,
    };

    public static bool IsFloat(this DType dtype) => dtype is DType.F64 or DType.F32 or DType.BF16;

    /// <summary>The type of recurrent states, decays, statistics and gradients of parameters: F64 beside F64, otherwise F32.</summary>
    public static DType Accumulator(this DType dtype) => dtype == DType.F64 ? DType.F64 : DType.F32;

    /// <summary>The dtype that stores the C# type <typeparamref name="T"/>.</summary>
    public static DType Of<T>() where T : unmanaged
    {
        if (typeof(T) == typeof(double)) return DType.F64;
        if (typeof(T) == typeof(float)) return DType.F32;
        if (typeof(T) == typeof(BF16)) return DType.BF16;
        if (typeof(T) == typeof(long)) return DType.I64;
        if (typeof(T) == typeof(int)) return DType.I32;
        throw new LaspException($"no tensor element type stores {typeof(T).Name}; use double, float, BF16, long or int");
    }
}
