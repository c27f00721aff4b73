// The gradient of a decay per token, found by the walks of attention_panels.cuh on their way: every path that crosses a token's decay is counted once. Within a sub-chunk with entering state P,
// gradient D of the leaving state, and decay A from entry to exit
//     dg_i = sum_{s >= i} arriving_s + sum_{j < i} departing_j + through + sum_{s >= i} pairs_s
//     arriving_s = q_s . dq_s as far as it comes from P         departing_j = k_j . dk_j as far as it comes from D         through = A <P, D>
//     pairs_s = sum_{j < s} Z_sj - sum_{t > s} Z_ts             Z_sj = (q_s . k_j, decayed and scaled, as bf16) (dO_s . v_j): its sum from i on is that of all pairs j < i <= s
// All from fp32 sums before they are rounded. Only in pairs_s is anything subtracted: both of its sums are made of the same numbers, so that what must cancel does, to fp32 and over at most 64 tokens.
// The walk of dq keeps P of every sub-chunk as bf16, and that of dk and dv, which has D, reads it: in the order of the registers of a consumer, so that both move whole lines.
#ifndef LASP_DECAY_PATHS
#define LASP_DECAY_PATHS
#include "attention_panels.cuh"

// Of one sub-chunk of one head; rows are its tokens, first to last.
struct ChunkPaths {
    float arriving[2][TILE];  // by panels of channels
    float departing[TILE];
    float pairs[TILE];
    float through[8];         // by warps: 4 for each panel of channels
};

#if __CUDA_ARCH_FEAT_SM90_ALL

// What the walk of dq leaves for that of dk and dv, and both for linear_attention_bwd_decay_from_paths: [sub-chunks, B, H].
struct DecayPaths {
    uint4* states;
    ChunkPaths* sums;
    int heads;  // B H
    int head;   // of the block, b H + h

    __device__ __forceinline__ int unit(const Chunk& chunk) const { return (int)(chunk.first / TILE) * heads + head; }

    __device__ __forceinline__ ChunkPaths& at(const Chunk& chunk) const { return sums[unit(chunk)]; }

    // Where this thread's share of P begins: 64 rows of D per consumer, rounded as left operands of E / 16 products, one after the other by WARPGROUP threads.
    template <int D, int E> __device__ __forceinline__ uint4* state(const Chunk& chunk) const
    {
        return states + (int64)(unit(chunk) * panels_of(D) + consumer()) * (E / SUMMANDS * WARPGROUP) + threadIdx.x % WARPGROUP;
    }
};

// Keeps the compiler from putting off what x is made of.
__device__ __forceinline__ void finish(float& x) { asm volatile("" : "+f"(x)); }

// sum += x y for a 16 x 16 block: y as pack_sums(x, step, y) lays it out. Rows l / 4 and l / 4 + 8 apart.
template <int N> __device__ __forceinline__ void multiply_block(const Sums<N>& x, int step, const unsigned (&y)[4], float (&sum)[2])
{
#pragma unroll
    for (int i = 0; i < 4; ++i) sum[i % 2] = fmaf(x.at[8 * step + 2 * i], low_of(y[i]), fmaf(x.at[8 * step + 2 * i + 1], high_of(y[i]), sum[i % 2]));
}

// x[0] to x[COUNT - 1] become sums over pairs of lanes `LANES` apart; the lower lane goes on with the first half of them, the upper one with the second.
template <int COUNT, int LANES> __device__ __forceinline__ void share_sums(float (&x)[16])
{
    const bool upper = threadIdx.x & LANES;
#pragma unroll
    for (int i = 0; i < COUNT / 2; ++i) {
        const float other = __shfl_xor_sync(0xFFFFFFFFu, upper ? x[i] : x[i + COUNT / 2], LANES);
        x[i] = (upper ? x[i + COUNT / 2] : x[i]) + other;
    }
}

// x[i] belongs to column 8 (i / 2) + 2 (l % 4) + i % 2 and comes from this thread's rows; the result is columns 2 l and 2 l + 1, summed over the warp's rows.
__device__ __forceinline__ float2 sum_columns(float (&x)[16])
{
    share_sums<16, 16>(x);
    share_sums<8, 8>(x);
    share_sums<4, 4>(x);
    return make_float2(x[0], x[1]);
}

// The sum of a row over the four lanes that share it.
__device__ __forceinline__ float sum_row(float x)
{
    x += __shfl_xor_sync(0xFFFFFFFFu, x, 1);
    return x + __shfl_xor_sync(0xFFFFFFFFu, x, 2);
}

// The column sums of a warpgroup's four warps, which lie one after the other in shared memory, for thread t < 64.
__device__ __forceinline__ float sum_warps(unsigned partials, int t)
{
    float sum = 0.0f;
#pragma unroll
    for (int warp = 0; warp < WARPGROUP / WARP; ++warp) sum += load_float(partials + (warp * TILE + t) * 4);
    return sum;
}

#endif

#endif
