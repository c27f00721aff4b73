// Gradient of a log decay per token from the paths that the walks of dq (linear_attention_bwd_query_paths) and of dk and dv (linear_attention_bwd_key_value_paths) have found: decay_paths.cuh.
//     dg_i = sum_{s >= i} (arriving_s + pairs_s) + sum_{j < i} departing_j + through         within the sub-chunk of token i
// sums [sub-chunks, B, H], d_decay [B, N, H] fp32. fp32 sums in a fixed order, over at most 64 tokens.
// Launch: 256 threads; a warp per (sub-chunk, b, h), h fastest, and two tokens per lane. key_panels: D in panels of 64 channels, 1 or 2.
#include "decay_paths.cuh"

#if LASP_ELEMENT_BF16 && __CUDA_ARCH_FEAT_SM90_ALL

// The sum over all lanes before this one.
__device__ __forceinline__ float sum_before(float x)
{
    const int lane = threadIdx.x % WARP;
    x = __shfl_up_sync(0xFFFFFFFFu, x, 1);
    if (lane == 0) x = 0.0f;
#pragma unroll
    for (int lanes = 1; lanes < WARP; lanes *= 2) {
        const float other = __shfl_up_sync(0xFFFFFFFFu, x, lanes);
        if (lane >= lanes) x += other;
    }
    return x;
}

// The sum over all lanes after this one.
__device__ __forceinline__ float sum_after(float x)
{
    const int lane = threadIdx.x % WARP;
    x = __shfl_down_sync(0xFFFFFFFFu, x, 1);
    if (lane == WARP - 1) x = 0.0f;
#pragma unroll
    for (int lanes = 1; lanes < WARP; lanes *= 2) {
        const float other = __shfl_down_sync(0xFFFFFFFFu, x, lanes);
        if (lane + lanes < WARP) x += other;
    }
    return x;
}

KERNEL __launch_bounds__(THREADS) linear_attention_bwd_decay_from_paths(const ChunkPaths* sums, int64 tokens, int heads, int64 batches, int key_panels, float* d_decay)
{
    const int64 unit = global_thread() / WARP, head = unit % heads, batch = unit / heads % batches, first = unit / heads / batches * TILE;
    if (first >= tokens) return;
    const int lane = threadIdx.x % WARP, row = 2 * lane;
    const int rows = tokens - first < TILE ? (int)(tokens - first) : TILE;
    const ChunkPaths& paths = sums[unit];
    float later[2] = {}, earlier[2] = {};
#pragma unroll
    for (int i = 0; i < 2; ++i)
        if (row + i < rows) {
            later[i] = paths.pairs[row + i], earlier[i] = paths.departing[row + i];
            for (int panel = 0; panel < key_panels; ++panel) later[i] += paths.arriving[panel][row + i];
        }
    const float through = warp_reduce(lane < 4 * key_panels ? paths.through[lane] : 0.0f, Sum());
    const float after = sum_after(later[0] + later[1]) + later[1], before = sum_before(earlier[0] + earlier[1]) + through;
    float* to = d_decay + (batch * tokens + first + row) * heads + head;
    if (row < rows) to[0] = after + later[0] + before;
    if (row + 1 < rows) to[heads] = after + before + earlier[0];
}

#endif
