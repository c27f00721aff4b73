using LaspNative.Runtime.Interop;

namespace LaspNative.Runtime.Cuda;

/// <summary>
/// A tensor [B, N, H, D] as Hopper's copy engine sees it, in boxes of one head, some tokens and 128 bytes of columns, which reach shared memory in the layout of the tensor cores' panels
/// (TensorMap of stages.cuh). Boxes may reach beyond the tensor: what they read there is zero, what they would write is left out.
/// </summary>
internal unsafe struct TensorMap
{
    private const int Bytes = 128, Alignment = 64, Rank = 4, BoxRow = 128;

    private fixed ulong _opaque[Bytes / sizeof(ulong)];

    /// <param name="tokens">Tokens of a box, at most 256.</param>
    public static TensorMap Of(Tensor x, int tokens)
    {
        int element = x.DType == DType.BF16 ? sizeof(ushort) : sizeof(float);
        (ulong batches, ulong length, ulong heads, ulong width) = ((ulong)x.Shape[0], (ulong)x.Shape[1], (ulong)x.Shape[2], (ulong)x.Shape[3]);
        ulong row = width * (ulong)element;
        ulong* dimensions = stackalloc ulong[Rank] { width, heads, length, batches };
        ulong* strides = stackalloc ulong[Rank - 1] { row, heads * row, length * heads * row };
        uint* box = stackalloc uint[Rank] { (uint)(BoxRow / element), 1, (uint)tokens, 1 };
        uint* steps = stackalloc uint[Rank] { 1, 1, 1, 1 };
        byte* space = stackalloc byte[Bytes + Alignment];
        byte* aligned = (byte*)(((nint)space + Alignment - 1) & -Alignment);
        CudaDriver.cuTensorMapEncodeTiled(
            aligned, x.DType == DType.BF16 ? CUtensorMapDataType.CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 : CUtensorMapDataType.CU_TENSOR_MAP_DATA_TYPE_FLOAT32, Rank, x.Pointer,
            dimensions, strides, box, steps, CUtensorMapInterleave.CU_TENSOR_MAP_INTERLEAVE_NONE, CUtensorMapSwizzle.CU_TENSOR_MAP_SWIZZLE_128B,
            CUtensorMapL2promotion.CU_TENSOR_MAP_L2_PROMOTION_L2_128B, CUtensorMapFloatOOBfill.CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE).Check();
        return *(TensorMap*)aligned;
    }
}
