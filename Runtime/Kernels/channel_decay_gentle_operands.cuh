// A gentle chunk of linear_attention_channel_decay.cu, through which no channel decays by more than GENTLE and none grows: one operand is decayed from the chunk's entry (backwards: to its exit), the other divided
// by as much, and all scores are one product of the two.
#ifndef LASP_CHANNEL_DECAY_GENTLE_OPERANDS
#define LASP_CHANNEL_DECAY_GENTLE_OPERANDS
#include "channel_decay_operands.cuh"
#if LASP_ELEMENT_BF16 && __CUDA_ARCH__ >= 900

// exp(g) of this thread's rows, and their products for the other threads. The caller synchronises. False: a channel grows, or decays by more than GENTLE within the group already.
__device__ __forceinline__ bool multiply_groups(unsigned decays, unsigned products, float2 (&a)[GROUP])
{
    const int pair = threadIdx.x % PAIRS, group = threadIdx.x / PAIRS;
    float2 product = make_float2(1.0f, 1.0f);
    float most = 0.0f;
#pragma unroll
    for (int i = 0; i < GROUP; ++i) {
        a[i] = load_float2(decay_piece(decays, group * GROUP + i, pair / 2) + pair % 2 * 8);
        most = fmaxf(most, fmaxf(a[i].x, a[i].y));
        a[i].x = exp2_approximate(LOG2_E * a[i].x), a[i].y = exp2_approximate(LOG2_E * a[i].y);
        product.x *= a[i].x, product.y *= a[i].y;
    }
    store_shared(products + (group * WIDTH + 2 * pair) * 4, product);
    return most <= 0.0f && product.x >= GENTLE && product.y >= GENTLE;
}

// Forwards near = scale q . from and far = k / from; backwards near = k . to and far = scale q / to. Also the decay through the chunk. False: this thread's channels are not gentle.
template <bool REVERSE> __device__ __forceinline__ bool weigh_operands(const float2 (&a)[GROUP], unsigned products, RowTile q, RowTile k, float scale, RowTile near, RowTile far, unsigned through)
{
    const int pair = threadIdx.x % PAIRS, group = threadIdx.x / PAIRS;
    const RowTile near_source = REVERSE ? k : q, far_source = REVERSE ? q : k;
    const float near_scale = REVERSE ? 1.0f : scale, far_scale = REVERSE ? scale : 1.0f;
    float2 weight = make_float2(1.0f, 1.0f), all = weight;
#pragma unroll
    for (int other = 0; other < GROUPS; ++other) {
        const float2 y = load_float2(products + (other * WIDTH + 2 * pair) * 4);
        const bool counts = REVERSE ? other > group : other < group;
        weight.x *= counts ? y.x : 1.0f, weight.y *= counts ? y.y : 1.0f;
        all.x *= y.x, all.y *= y.y;
    }
    if (group == 0) store_shared(through + 2 * pair * 4, all);
    unsigned x[GROUP];
    load_pairs(near_source, x);
#pragma unroll
    for (int n = 0; n < GROUP; ++n) {
        const int i = REVERSE ? GROUP - 1 - n : n;
        if (!REVERSE) weight.x *= a[i].x, weight.y *= a[i].y;
        store_shared(near.start + own_pair(i), pack_bf16(near_scale * low_of(x[i]) * weight.x, near_scale * high_of(x[i]) * weight.y));
        if (REVERSE && n + 1 < GROUP) weight.x *= a[i].x, weight.y *= a[i].y;
    }
    load_pairs(far_source, x);
    float2 inverse = make_float2(reciprocal_approximate(weight.x), reciprocal_approximate(weight.y));
#pragma unroll
    for (int n = GROUP - 1; n >= 0; --n) {
        const int i = REVERSE ? GROUP - 1 - n : n;
        if (REVERSE && n + 1 < GROUP) inverse.x *= a[i].x, inverse.y *= a[i].y;
        store_shared(far.start + own_pair(i), pack_bf16(far_scale * low_of(x[i]) * inverse.x, far_scale * high_of(x[i]) * inverse.y));
        if (!REVERSE) inverse.x *= a[i].x, inverse.y *= a[i].y;
    }
    return all.x >= GENTLE && all.y >= GENTLE;
}

// The ten 16 x 16 blocks of q k^T on and below the diagonal, by as many warps. What lies above the diagonal becomes zero.
__device__ __forceinline__ void make_gentle_scores(RowTile q, RowTile k, ScoreTile scores)
{
    unsigned block = warp_of();
    keep_in_loop(block);
    const int row = block < 1 ? 0 : block < 3 ? 1 : block < 6 ? 2 : 3, column = block - row * (row + 1) / 2;
    if (block >= ROW_BLOCKS * (ROW_BLOCKS + 1) / 2) return;
    MmaSums sums[2] = {};
#pragma unroll
    for (int channel = 0; channel < WIDTH; channel += MMA_SUMMANDS) {
        unsigned left[4], right[4];
        q.left(row * ROW_BLOCK, channel, left);
        k.right_of_transpose(column * ROW_BLOCK, channel, right);
        multiply_add(left, right[0], right[1], sums[0]);
        multiply_add(left, right[2], right[3], sums[1]);
    }
    const int ahead = lane_of() % 4 * 2 - lane_of() / 4;  // of the column before the row, within 8 x 8
#pragma unroll
    for (int p = 0; p < 4; ++p) {
        const float low = sums[p / 2].at[p % 2 * 2], high = sums[p / 2].at[p % 2 * 2 + 1];
        const bool own = row == column, keeps = !own || p == 1, loses = own && p == 2;
        scores.store_pair(row * ROW_BLOCK, column * ROW_BLOCK, p, pack_bf16(!loses && (keeps || ahead <= 0) ? low : 0.0f, !loses && (keeps || ahead < 0) ? high : 0.0f));
    }
}

#endif

#endif
