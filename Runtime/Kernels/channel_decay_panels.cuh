// What the Hopper kernels of a decay per channel share: one warpgroup copies chunks of 64 tokens to panels and weighs them in place, two multiply, and each of these holds 64 columns of a state, transposed.
#ifndef LASP_CHANNEL_DECAY_PANELS
#define LASP_CHANNEL_DECAY_PANELS
#include "attention_panels.cuh"

#if LASP_ELEMENT_BF16 && __CUDA_ARCH_FEAT_SM90_ALL

constexpr int WIDTH = 128, CONSUMERS = 2, THREADS_OF_BLOCK = (1 + CONSUMERS) * WARPGROUP;
constexpr int ROWS_BYTES = panels_of(WIDTH) * PANEL_BYTES;           // 64 rows of bf16
constexpr int LOG_ROW = WIDTH * 4, LOGS_BYTES = TILE * LOG_ROW;
constexpr int PAIRS = WIDTH / 2, PART = TILE / (WARPGROUP / PAIRS);  // a producer's thread weighs 2 channels of 32 rows
constexpr int PRODUCER = 4;                                          // named barrier, behind those of the consumers
constexpr int CHUNK_STATE = WIDTH * WIDTH;

// A segment's chunks start at multiples of 64 tokens in both directions.
struct Run {
    int64 first, tokens;
    int reverse;

    __device__ __forceinline__ int chunks() const { return (int)((tokens + TILE - 1) / TILE); }

    __device__ __forceinline__ int place(int i) const { return reverse ? chunks() - 1 - i : i; }

    __device__ __forceinline__ int rows(int i) const
    {
        const int64 left = tokens - (int64)place(i) * TILE;
        return left < TILE ? (int)left : TILE;
    }

    __device__ __forceinline__ Chunk chunk(int i) const { return { first + (int64)place(i) * TILE + (reverse ? rows(i) - 1 : 0), rows(i), reverse }; }
};

// ---- Warpgroup 0: copies and weighs ----

// The log decays of one head.
struct ChannelLogs {
    const float* start;
    int stride, channels;
};

// Rows and channels that do not exist do not decay.
__device__ __forceinline__ void copy_logs(const ChannelLogs& x, const Chunk& chunk, unsigned to)
{
    constexpr int PACKS = WIDTH / QUAD, ROWS = WARPGROUP / PACKS;
    const int pack = threadIdx.x % PACKS, row = threadIdx.x / PACKS, step = ROWS * chunk.direction() * x.stride;
    const bool exists = pack * QUAD < x.channels;
    const float* from = x.start + (exists ? pack * QUAD : 0) + chunk.token(row) * x.stride;
    to += row * LOG_ROW + pack * 16;
    if (chunk.rows == TILE) {
#pragma unroll
        for (int i = 0; i < TILE / ROWS; ++i, from += step) copy16_async(to + i * ROWS * LOG_ROW, from, exists ? 16 : 0);
    } else {
#pragma unroll 1
        for (int i = row; i < TILE; i += ROWS, from += step, to += ROWS * LOG_ROW) copy16_async(to, i < chunk.rows ? from : x.start, exists && i < chunk.rows ? 16 : 0);
    }
}

// A number per row, where all channels decay alike.
__device__ __forceinline__ void copy_token_logs(const ChannelLogs& x, const Chunk& chunk, unsigned to)
{
    const int row = threadIdx.x;
    if (row < TILE) copy4_async(to + row * 4, row < chunk.rows ? x.start + chunk.token(row) * x.stride : x.start, row < chunk.rows ? 4 : 0);
}

// Where a producer's thread finds its pair of channels.
__device__ __forceinline__ int pair_of() { return threadIdx.x % PAIRS; }

__device__ __forceinline__ int part_of() { return threadIdx.x / PAIRS; }

__device__ __forceinline__ unsigned first_log(unsigned logs) { return logs + part_of() * PART * LOG_ROW + pair_of() * 8; }

__device__ __forceinline__ unsigned first_pair(unsigned panels) { return panels + pair_of() / 32 * PANEL_BYTES + part_of() * PART * PANEL_ROW + (pair_of() % 32 / 4 << 4) + pair_of() % 4 * 4; }

__device__ __forceinline__ unsigned pair_at(unsigned first, int i) { return (first ^ (i % 8 << 4)) + i * PANEL_ROW; }

// Multiplies this thread's pair of channels in its rows by the running product of their decays a, in order or from the last row BACK, each with its OWN decay or before it. Returns the last product.
// Some rows are read before any of them is written: the compiler cannot know that they do not overlap, and each would wait for the one before.
template <bool BACK, bool OWN> __device__ __forceinline__ float2 weigh_rows(unsigned panels, const float2 (&a)[PART], float2 weight)
{
    constexpr int AT_ONCE = 8;
    const unsigned first = first_pair(panels);
#pragma unroll
    for (int begin = 0; begin < PART; begin += AT_ONCE) {
        unsigned x[AT_ONCE];
#pragma unroll
        for (int n = 0; n < AT_ONCE; ++n) x[n] = load_unsigned(pair_at(first, BACK ? PART - 1 - begin - n : begin + n));
#pragma unroll
        for (int n = 0; n < AT_ONCE; ++n) {
            const int i = BACK ? PART - 1 - begin - n : begin + n;
            if (OWN) weight.x *= a[i].x, weight.y *= a[i].y;
            store_shared(pair_at(first, i), pack_bf16(low_of(x[n]) * weight.x, high_of(x[n]) * weight.y));
            if (!OWN) weight.x *= a[i].x, weight.y *= a[i].y;
        }
    }
    return weight;
}

// ---- Consumers ----

// body(element, channel, column of E)
template <typename Body> __device__ __forceinline__ void each(Sums<WIDTH>& state, Body body)
{
#pragma unroll
    for (int i = 0; i < Sums<WIDTH>::COUNT; ++i) body(state.at[i], sums_column(i), consumer() * PANEL + sums_row(i));
}

// out[e, channel of pair 0, 2, 4, 6, 1, 3, 5, 7 of 16] = the state as the products read it. Lanes two apart exchange rows, so that each writes 16 bytes.
__device__ __forceinline__ void store_chunk_state(const unsigned (&state)[WIDTH / SUMMANDS][4], bf16* to)
{
    const int lane = threadIdx.x % WARP, warp = threadIdx.x % WARPGROUP / WARP;
    const bool second = lane % 4 / 2;
    bf16* at = to + (consumer() * PANEL + 16 * warp + lane / 4 + (second ? 8 : 0)) * WIDTH + lane % 2 * 8;
#pragma unroll
    for (int step = 0; step < WIDTH / SUMMANDS; ++step) {
        const unsigned (&x)[4] = state[step];
        const unsigned low = __shfl_xor_sync(0xFFFFFFFFu, second ? x[0] : x[1], 2), high = __shfl_xor_sync(0xFFFFFFFFu, second ? x[2] : x[3], 2);
        store_global16(at + step * 16, second ? make_uint4(low, x[1], high, x[3]) : make_uint4(x[0], low, x[2], high));
    }
}

// Channel by channel.
__device__ __forceinline__ void scale_columns(Sums<WIDTH>& state, const float* factors)
{
#pragma unroll
    for (int i = 0; i < Sums<WIDTH>::COUNT; i += 4) {
        const float2 a = *(const float2*)(factors + sums_column(i));
        state.at[i] *= a.x, state.at[i + 1] *= a.y, state.at[i + 2] *= a.x, state.at[i + 3] *= a.y;
    }
}

#endif

#endif
