// y = x with its dimensions in another order, for words of 2, 4, 8 or 16 bytes: y[i0, .., i4] = x[i0 s0 + .. + i4 s4]. Extents e1 .. e4 are y's (e0 follows from
// count) and strides s0 .. s4 x's, both in words; missing leading dimensions have extent 1. The host drops and merges dimensions and takes the widest word that
// both tensors' runs, strides and addresses allow.
// Launch: 4 words per thread, a block's width apart, so that a warp writes consecutive words, and reads them where the last dimension stays last. Nothing is computed.
#include "common.cuh"

constexpr int WORDS = 4;  // per thread

// Quotients of 32 bits where the tensor allows: the division costs more than the copy otherwise.
template <typename Index>
__device__ __forceinline__ int64 source_of(Index i, int64 e1, int64 e2, int64 e3, int64 e4, int64 s0, int64 s1, int64 s2, int64 s3, int64 s4)
{
    const Index i0123 = i / (Index)e4, i012 = i0123 / (Index)e3, i01 = i012 / (Index)e2, i0 = i01 / (Index)e1;
    return i0 * s0 + (int64)(i01 - i0 * (Index)e1) * s1 + (int64)(i012 - i01 * (Index)e2) * s2
        + (int64)(i0123 - i012 * (Index)e3) * s3 + (int64)(i - i0123 * (Index)e4) * s4;
}

template <typename Word>
__device__ __forceinline__ void permute(
    const Word* x, int64 e1, int64 e2, int64 e3, int64 e4, int64 s0, int64 s1, int64 s2, int64 s3, int64 s4, int64 count, Word* y)
{
#pragma unroll
    for (int n = 0; n < WORDS; ++n) {
        const int64 i = (blockIdx.x * (int64)WORDS + n) * blockDim.x + threadIdx.x;
        if (i >= count) return;
        const int64 from = count <= 0xFFFFFFFFll ? source_of((unsigned)i, e1, e2, e3, e4, s0, s1, s2, s3, s4)
                                                 : source_of(i, e1, e2, e3, e4, s0, s1, s2, s3, s4);
        y[i] = x[from];
    }
}

KERNEL permute_16(const unsigned short* x, int64 e1, int64 e2, int64 e3, int64 e4, int64 s0, int64 s1, int64 s2, int64 s3, int64 s4, int64 count, unsigned short* y)
{
    permute(x, e1, e2, e3, e4, s0, s1, s2, s3, s4, count, y);
}

KERNEL permute_32(const unsigned* x, int64 e1, int64 e2, int64 e3, int64 e4, int64 s0, int64 s1, int64 s2, int64 s3, int64 s4, int64 count, unsigned* y)
{
    permute(x, e1, e2, e3, e4, s0, s1, s2, s3, s4, count, y);
}

KERNEL permute_64(const int64* x, int64 e1, int64 e2, int64 e3, int64 e4, int64 s0, int64 s1, int64 s2, int64 s3, int64 s4, int64 count, int64* y)
{
    permute(x, e1, e2, e3, e4, s0, s1, s2, s3, s4, count, y);
}

KERNEL permute_128(const uint4* x, int64 e1, int64 e2, int64 e3, int64 e4, int64 s0, int64 s1, int64 s2, int64 s3, int64 s4, int64 count, uint4* y)
{
    permute(x, e1, e2, e3, e4, s0, s1, s2, s3, s4, count, y);
}
