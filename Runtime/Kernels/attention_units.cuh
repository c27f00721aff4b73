// Which block of a kernel that multiplies queries with keys works on which queries.
#ifndef LASP_ATTENTION_UNITS
#define LASP_ATTENTION_UNITS
#include "common.cuh"

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

#endif
