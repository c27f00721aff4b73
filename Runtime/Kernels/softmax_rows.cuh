// What the kernels of softmax attention for heads of 64 and 128 channels share: which block works on which queries, and the arithmetic of rows of scores.
#ifndef LASP_SOFTMAX_ROWS
#define LASP_SOFTMAX_ROWS
#include "shared_memory.cuh"
#include "softmax_visibility.cuh"

constexpr int64 L2_SHARE = 24 << 20;      // bytes of keys and values that blocks running at the same time should read

struct Extents {
    int64 queries;
    int keys, heads, key_heads;
    int64 batches;
};

// Queries [token, token + rows) of one head of one batch.
struct Unit {
    int64 batch, token;
    int head, key_head, rows;
};

// Blocks that run together share keys and values: as many key heads at a time as fit L2_SHARE, and among them the last queries, which see the most under a causal mask, first.
__device__ __forceinline__ Unit unit_of(const Extents& x, int width, int block_queries)
{
    const int group = x.heads / x.key_heads;
    const int64 tiles = (x.queries + block_queries - 1) / block_queries, lines = x.batches * x.key_heads;
    const int64 share = max((int64)1, min(lines, L2_SHARE / max((int64)1, (int64)x.keys * width * 4)));
    const int64 section = blockIdx.x / (share * group * tiles), here = min(share, lines - section * share) * group;
    const int64 rest = blockIdx.x - section * share * group * tiles, tile = tiles - 1 - rest / here;
    const int64 line = section * share + rest % here / group, token = tile * block_queries;
    const int key_head = line % x.key_heads;
    return { line / x.key_heads, token, (int)(key_head * group + rest % here % group), key_head, (int)min((int64)block_queries, x.queries - token) };
}

// Over the four lanes that share a row of sums; each gets the result.
template <typename Op> __device__ __forceinline__ float row_reduce(float x, Op op)
{
    x = op(x, __shfl_xor_sync(0xFFFFFFFFu, x, 1));
    return op(x, __shfl_xor_sync(0xFFFFFFFFu, x, 2));
}

__device__ __forceinline__ void store_pair(float low, float high, bf16* to) { *(unsigned*)to = pack_bf16(low, high); }

__device__ __forceinline__ void store_pair(float low, float high, float* to) { *(float2*)to = make_float2(low, high); }

#endif
