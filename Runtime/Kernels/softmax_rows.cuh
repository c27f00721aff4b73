// What the kernels of softmax attention for heads of 64 and 128 channels share: what a query sees, which block works on which queries, and the arithmetic of rows of scores.
#ifndef LASP_SOFTMAX_ROWS
#define LASP_SOFTMAX_ROWS
#include "attention_units.cuh"
#include "shared_memory.cuh"
#include "softmax_visibility.cuh"

// Over the four lanes that share a row of sums; each gets the result.
template <typename Op> __device__ __forceinline__ float row_reduce(float x, Op op)
{
    x = op(x, __shfl_xor_sync(0xFFFFFFFFu, x, 1));
    return op(x, __shfl_xor_sync(0xFFFFFFFFu, x, 2));
}

__device__ __forceinline__ void store_pair(float low, float high, bf16* to) { *(unsigned*)to = pack_bf16(low, high); }

__device__ __forceinline__ void store_pair(float low, float high, float* to) { *(float2*)to = make_float2(low, high); }

#endif
