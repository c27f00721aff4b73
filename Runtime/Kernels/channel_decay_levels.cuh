// Gradients of q, k and the log decay in a chunk of linear_attention_channel_decay_bwd.cu through which anything may decay: 16 rows x 16 channels of a warp, as sums over the levels of channel_decay.cuh, over
// the other blocks of 16 rows, and over what P and D give (its equations).
// A level's queries and keys form one operand and its A_ij a symmetric matrix, so that one product gives dq in the upper rows and dk in the lower ones. Sums over rows inside 16 are
// products with matrices of ones and zeros. Pairs in different blocks of 16 rows: block by block by Horner's rule, the decay of the blocks between acting on the sum.
#ifndef LASP_CHANNEL_DECAY_LEVELS
#define LASP_CHANNEL_DECAY_LEVELS
#include "channel_decay_scores.cuh"
#if LASP_ELEMENT_BF16 && __CUDA_ARCH__ >= 900

constexpr int SHARE_STEPS = SHARE / CHANNELS;

struct Gradients {
    float dq[OWN] = {}, dk[OWN] = {};
    MmaSums dg[2] = {};
};

// Pairs within the 16 rows.
template <bool DECAY, int LEVEL> __device__ __forceinline__ void add_level(const unsigned (&q)[4], const unsigned (&k)[4], const float (&factor)[OWN], const LevelScores& scores, Gradients& d)
{
    unsigned own[4], x[4], a[4];
    choose_rows<LEVEL>(q, k, own);
    scale_pairs(own, factor, x);
    scores.operand<LEVEL>(a);
    MmaSums y[2] = {};
    multiply_rows(a, x, y);
    float w[OWN];
    unpack(own, w);
#pragma unroll
    for (int i = 0; i < OWN; ++i) {
        const bool upper = LEVEL == 8 ? second_row(i) : is_upper<LEVEL>();
        const float part = y[i / 4].at[i % 4] * factor[i];
        if (LEVEL == 8) (second_row(i) ? d.dq[i] : d.dk[i]) += part;
        else add_to(upper, part, d.dq[i], d.dk[i]);
        w[i] *= part;
        if (DECAY && LEVEL == 1) d.dg[i / 4].at[i % 4] += upper ? w[i] : 0.0f;
    }
    if (!DECAY || LEVEL == 1) return;
    pack(w, x);
    const unsigned ones[4] = { LEVEL == 8 ? ones_before_row() : ones_of_level<LEVEL>(), 0, 0, LEVEL == 8 ? ones_from_row() : ones_of_level<LEVEL>() };
    multiply_rows(ones, x, d.dg);
}

// Each token with itself, without decay.
template <bool QUERY, bool KEY> __device__ __forceinline__ void add_own(const unsigned (&q)[4], const unsigned (&k)[4], const float (&own)[2], Gradients& d)
{
    float x[OWN];
    unpack(k, x);
#pragma unroll
    for (int i = 0; i < OWN && QUERY; ++i) d.dq[i] = fmaf(own[second_row(i)], x[i], d.dq[i]);
    unpack(q, x);
#pragma unroll
    for (int i = 0; i < OWN && KEY; ++i) d.dk[i] = fmaf(own[second_row(i)], x[i], d.dk[i]);
}

// sums . decay over one block of rows
__device__ __forceinline__ void decay_sums(unsigned decays, int block, int channel, MmaSums (&sums)[2])
{
    float x[4];
    load_sums(decays, block, channel, x);
#pragma unroll
    for (int i = 0; i < OWN; ++i) sums[i / 4].at[i % 4] *= x[channel_of(i)];
}

// factor[c] = scale . decay over blocks first .. last - 1
__device__ __forceinline__ void decay_over(unsigned decays, int first, int last, int channel, float scale, float (&factor)[4])
{
#pragma unroll
    for (int c = 0; c < 4; ++c) factor[c] = scale;
#pragma unroll 1
    for (int b = first; b < last; ++b) {
        float x[4];
        load_sums(decays, b, channel, x);
#pragma unroll
        for (int c = 0; c < 4; ++c) factor[c] *= x[c];
    }
}

__device__ __forceinline__ void weigh(const MmaSums (&sums)[2], const unsigned (&own)[4], const float (&factor)[OWN], float (&x)[OWN])
{
    unpack(own, x);
#pragma unroll
    for (int i = 0; i < OWN; ++i) x[i] *= sums[i / 4].at[i % 4] * factor[i];
}

// Pairs with earlier blocks: sums of A_ij exp(..) k_j, decayed up to the entry of this block. Where pairs across the chunk's middle cross block 2, their paths are summed.
template <bool DECAY> __device__ __forceinline__ void add_earlier_blocks(unsigned shared, int column, int channel, const unsigned (&q)[4], const float (&from)[OWN], MmaSums (&sums)[2])
{
    const SlabTile scores = { shared + SCORES }, keys = { shared + KEYS };
#pragma unroll 1
    for (int b = 0; b < block_of(); ++b) {
        unsigned left[4], right[4];
        if (b > 0) decay_sums(shared + DECAYS, b, channel, sums);
        if (DECAY && b == 2) {
            float x[OWN];
            weigh(sums, q, from, x);
            store_sums(x, shared + MIDDLE, channel);
        }
        scores.left(block_of() * ROW_BLOCK, b * ROW_BLOCK, left);
        keys.right(b * ROW_BLOCK, column, right);
        multiply_add(left, right[0], right[1], sums[0]);
        multiply_add(left, right[2], right[3], sums[1]);
    }
}

// And with later blocks: sums of A_ij exp(..) q_i, decayed from the exit of this block.
template <bool DECAY> __device__ __forceinline__ void add_later_blocks(unsigned shared, int column, int channel, const unsigned (&k)[4], const float (&to)[OWN], MmaSums (&sums)[2])
{
    const SlabTile scores = { shared + SCORES }, queries = { shared + QUERIES };
#pragma unroll 1
    for (int b = ROW_BLOCKS - 1; b > block_of(); --b) {
        unsigned left[4], right[4];
        if (b < ROW_BLOCKS - 1) decay_sums(shared + DECAYS, b, channel, sums);
        if (DECAY && b == 1) {
            float x[OWN];
            weigh(sums, k, to, x);
            store_sums(x, shared + MIDDLE, channel);
        }
        scores.left_of_transpose(b * ROW_BLOCK, block_of() * ROW_BLOCK, left);
        queries.right(b * ROW_BLOCK, column, right);
        multiply_add(left, right[0], right[1], sums[0]);
        multiply_add(left, right[2], right[3], sums[1]);
    }
}

// The chunk's rows x (dO or v) times a state, for this warp's rows and 16 channels.
__device__ __forceinline__ void multiply_state(WideTile x, SlabTile state, int column, MmaSums (&sums)[2])
{
#pragma unroll
    for (int e = 0; e < WIDTH; e += MMA_SUMMANDS) {
        unsigned left[4], right[4];
        x.left(block_of() * ROW_BLOCK, e, left);
        state.right(e, column, right);
        multiply_add(left, right[0], right[1], sums[0]);
        multiply_add(left, right[2], right[3], sums[1]);
    }
}

// One side of the gradients outside the 16 rows: d += factor . (pairs + outer . inter). Also its paths: their sums from each row on (or before it) in dg, those of the inter part over all rows.
template <bool DECAY, bool QUERY> __device__ __forceinline__ void add_outside(
    const MmaSums (&pairs)[2], const MmaSums (&inter)[2], const unsigned (&own)[4], const float (&factor)[OWN], const float (&outer)[4], unsigned sums, int channel, float (&d)[OWN], MmaSums (&dg)[2])
{
    float x[OWN], path[OWN];
    unpack(own, x);
#pragma unroll
    for (int i = 0; i < OWN; ++i) {
        const float part = factor[i] * outer[channel_of(i)] * inter[i / 4].at[i % 4], both = fmaf(factor[i], pairs[i / 4].at[i % 4], part);
        d[i] += both;
        path[i] = x[i] * part;
        x[i] *= both;
    }
    if (!DECAY) return;
    store_sums(path, sums, channel);
    unsigned high[4], low[4];
    pack(x, high);
    unpack(high, path);
#pragma unroll
    for (int i = 0; i < OWN; ++i) x[i] -= path[i];  // what the rounding left: these sums carry most of dg
    pack(x, low);
    const unsigned triangle = QUERY ? ones_from_row() : ones_before_row(), ones[4] = { triangle, QUERY ? 0 : ONES, QUERY ? ONES : 0, triangle };
    multiply_rows(ones, high, dg);
    multiply_rows(ones, low, dg);
}

// Paths that end or begin in other blocks of rows, or pass through the chunk.
__device__ __forceinline__ void add_other_blocks(unsigned shared, int channel, MmaSums (&dg)[2])
{
    float sum[4] = {}, through[4] = {}, x[4];
    const auto add = [&](unsigned sums, int block, float (&to)[4]) {
        load_sums(sums, block, channel, x);
#pragma unroll
        for (int c = 0; c < 4; ++c) to[c] += x[c];
    };
#pragma unroll 1
    for (int warp = 0; warp < WARPS; ++warp) add(shared + THROUGH, warp, through);
    decay_over(shared + DECAYS, 0, ROW_BLOCKS, channel, 1.0f, sum);
#pragma unroll
    for (int c = 0; c < 4; ++c) sum[c] *= through[c];
#pragma unroll 1
    for (int b = block_of() + 1; b < ROW_BLOCKS; ++b) add(shared + ARRIVING, b, sum);
#pragma unroll 1
    for (int b = 0; b < block_of(); ++b) add(shared + DEPARTING, b, sum);
    if (block_of() == 1) add(shared + MIDDLE, 0, sum);
    if (block_of() == 2) add(shared + MIDDLE, 3, sum);
#pragma unroll
    for (int i = 0; i < OWN; ++i) dg[i / 4].at[i % 4] += sum[channel_of(i)];
}

#endif

#endif
