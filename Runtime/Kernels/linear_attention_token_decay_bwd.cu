// Gradient of a log decay per token of linear attention, on tensor cores. Every chunk of 64 tokens is on its own: P is the state that enters it and D the gradient of the one that
// leaves it. Every path that crosses token i's decay is counted once, and nothing is subtracted; G = sum of g from the chunk's entry, A = exp(G_last):
//     dg_i = sum_{s >= i} scale exp(G_s) q_s . (dO_s P^T)  +  sum_{j < i} exp(G_last - G_j) k_j . (v_j D^T)  +  A <P, D>  +  sum_{j < i <= s} scale exp(G_s - G_j) (q_s . k_j) (dO_s . v_j)
// q [B, N, H, D], dO [B, N, H, E], k [B, N, Hk, D], v [B, N, Hk, E] bf16, D and E multiples of 8 up to 128, rows at multiples of 16 bytes; decay and d_decay fp32 [B, N, H];
// entering and leaving bf16: P and D as chunk_states of linear_attention_channel_decay. Products of bf16 with fp32 sums; all else fp32, in a fixed order.
// Launch: 256 threads; one block per (chunk, b, h), h fastest; 99616 bytes of shared memory.
#include "channel_decay.cuh"
#if LASP_ELEMENT_BF16 && __CUDA_ARCH__ >= 900

constexpr int WIDTH = 128, SLAB = 64;               // columns of the operands; channels of P and D that are here at a time
constexpr int THREADS = 256, WARPS = THREADS / WARP;
constexpr int CHUNK_STATE = WIDTH * WIDTH;
constexpr int PITCH = CHUNK + 4;                    // floats between rows of the pairs' paths
constexpr int PARTS = THREADS / CHUNK;              // threads that share a token in the end: 16 others each

typedef Tile<WIDTH> WideTile;
typedef Tile<SLAB> SlabTile;

constexpr int WIDE_BYTES = CHUNK * WideTile::ROW_BYTES, STATE_BYTES = WIDTH * SlabTile::ROW_BYTES, ROW_SUMS = CHUNK * 4;
constexpr int Q = 0, K = Q + WIDE_BYTES, V = K + WIDE_BYTES, OUT = V + WIDE_BYTES, ENTERING = OUT + WIDE_BYTES, LEAVING = ENTERING + STATE_BYTES;
constexpr int PATHS = ENTERING;                     // when the states have been read
constexpr int SUMS = LEAVING + STATE_BYTES;         // of the log decay, as powers of two
constexpr int ARRIVING = SUMS + ROW_SUMS, DEPARTING = ARRIVING + 2 * ROW_SUMS, THROUGH = DEPARTING + 2 * ROW_SUMS;  // the first two by halves of the channels; by warps

__device__ __forceinline__ int lane_of() { return threadIdx.x % WARP; }
__device__ __forceinline__ int warp_of() { return threadIdx.x / WARP; }
__device__ __forceinline__ int row_block() { return warp_of() % ROW_BLOCKS * ROW_BLOCK; }
__device__ __forceinline__ int half_of() { return warp_of() / ROW_BLOCKS; }

// The first warp, two tokens a lane.
__device__ __forceinline__ void sum_decay(const Decay& g, int64 first, int rows, unsigned sums)
{
    if (warp_of() != 0) return;
    const int row = 2 * lane_of();
    const float a = row < rows ? LOG2_E * g.start[(first + row) * g.stride] : 0.0f, b = row + 1 < rows ? LOG2_E * g.start[(first + row + 1) * g.stride] : 0.0f;
    float sum = a + b;
#pragma unroll
    for (int lanes = 1; lanes < WARP; lanes *= 2) {
        const float below = __shfl_up_sync(0xFFFFFFFFu, sum, lanes);
        if (lane_of() >= lanes) sum += below;
    }
    store_shared(sums + row * 4, make_float2(sum - b, sum));
}

__device__ __forceinline__ void fetch_state(const bf16* from, SlabTile tile)
{
    constexpr int PIECES = SLAB / 8, STRIDE = THREADS / PIECES;
    const int row = threadIdx.x / PIECES, piece = threadIdx.x % PIECES;
#pragma unroll
    for (int i = 0; i < WIDTH; i += STRIDE) copy16_async(tile.piece(row, piece) + i * SlabTile::ROW_BYTES, from + (row + i) * WIDTH + piece * 8, 16);
}

// sum[i] += own . (x state) over 32 channels of the slab, for this warp's rows l / 4 + 8 i; each lane its columns. own holds all channels.
__device__ __forceinline__ void add_inter(WideTile x, SlabTile state, WideTile own, int slab, float (&sum)[2])
{
    const int column = half_of() * (SLAB / 2);
    MmaSums products[2][2] = {};
#pragma unroll
    for (int e = 0; e < WIDTH; e += MMA_SUMMANDS) {
        unsigned left[4];
        x.left(row_block(), e, left);
#pragma unroll
        for (int n = 0; n < 2; ++n) {
            unsigned right[4];
            state.right(e, column + 16 * n, right);
            multiply_add(left, right[0], right[1], products[n][0]);
            multiply_add(left, right[2], right[3], products[n][1]);
        }
    }
    // the columns of a state hold pairs 0 2 4 6, 1 3 5 7 of 16 channels: a lane has four neighbours
#pragma unroll
    for (int n = 0; n < 2; ++n)
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            const int channel = slab + column + 16 * n + lane_of() % 4 * 4;
            const float2 pairs = load_float2(own.piece(row_block() + lane_of() / 4 + 8 * i, channel / 8) + channel % 8 * 2);
            const unsigned low = __float_as_uint(pairs.x), high = __float_as_uint(pairs.y);
            sum[i] = fmaf(low_of(low), products[n][0].at[2 * i], fmaf(high_of(low), products[n][0].at[2 * i + 1], sum[i]));
            sum[i] = fmaf(low_of(high), products[n][1].at[2 * i], fmaf(high_of(high), products[n][1].at[2 * i + 1], sum[i]));
        }
}

// sum += this warp's share of <P, D>
__device__ __forceinline__ void multiply_states(SlabTile p, SlabTile d, float& sum)
{
#pragma unroll
    for (int e = 0; e < WIDTH; e += WARPS) {
        const unsigned offset = lane_of() % 4 * 4;
        const unsigned x = __float_as_uint(load_float(p.piece(e + warp_of(), lane_of() / 4) + offset)), y = __float_as_uint(load_float(d.piece(e + warp_of(), lane_of() / 4) + offset));
        sum = fmaf(low_of(x), low_of(y), fmaf(high_of(x), high_of(y), sum));
    }
}

// A 16 x 16 block of x y^T
__device__ __forceinline__ void correlate(WideTile x, int row, WideTile y, int column, MmaSums (&sums)[2])
{
#pragma unroll
    for (int e = 0; e < WIDTH; e += MMA_SUMMANDS) {
        unsigned left[4], right[4];
        x.left(row, e, left);
        y.right_of_transpose(column, e, right);
        multiply_add(left, right[0], right[1], sums[0]);
        multiply_add(left, right[2], right[3], sums[1]);
    }
}

// Paths of the pairs (s, j), j < s, of one block; each block below the diagonal, or on it, has one warp.
__device__ __forceinline__ void pair_paths(unsigned shared, int column, float scale, float (&paths)[OWN])
{
    MmaSums queries[2] = {}, outputs[2] = {};
    correlate({ shared + Q }, row_block(), { shared + K }, column, queries);
    correlate({ shared + OUT }, row_block(), { shared + V }, column, outputs);
#pragma unroll
    for (int i = 0; i < OWN; ++i) {
        const int s = row_block() + lane_of() / 4 + i / 2 % 2 * 8, j = column + i / 4 * 8 + lane_of() % 4 * 2 + i % 2;
        const float decay = exp2_approximate(load_float(shared + SUMS + s * 4) - load_float(shared + SUMS + j * 4));
        paths[i] = j < s ? scale * decay * queries[i / 4].at[i % 4] * outputs[i / 4].at[i % 4] : 0.0f;
    }
}

__device__ __forceinline__ void store_paths(const float (&paths)[OWN], unsigned tile, int column)
{
#pragma unroll
    for (int p = 0; p < 4; ++p)
        store_shared(tile + ((row_block() + lane_of() / 4 + p % 2 * 8) * PITCH + column + p / 2 * 8 + lane_of() % 4 * 2) * 4, make_float2(paths[2 * p], paths[2 * p + 1]));
}

// paths[s][j] becomes the sum over tokens up to j. Four threads a row, which then holds what the row's token receives from before each position.
__device__ __forceinline__ void sum_paths(unsigned tile)
{
    const int s = threadIdx.x / PARTS, part = threadIdx.x % PARTS;
    const unsigned at = tile + (s * PITCH + part * (CHUNK / PARTS)) * 4;
    const int blocks = s / ROW_BLOCK + 1;  // of 16 columns; the others were not made
    float sum = 0.0f, x[CHUNK / PARTS];
#pragma unroll
    for (int j = 0; j < CHUNK / PARTS; ++j) x[j] = sum += part < blocks ? load_float(at + j * 4) : 0.0f;
    float before = 0.0f;
#pragma unroll
    for (int p = 0; p < PARTS; ++p) {
        const float other = __shfl_sync(0xFFFFFFFFu, sum, p, PARTS);
        before += p < part ? other : 0.0f;
    }
#pragma unroll
    for (int j = 0; j < CHUNK / PARTS; ++j) store_shared(at + j * 4, __float_as_uint(before + x[j]));
}

// Four threads a token: each counts the paths that end at, or begin in, its 16 tokens.
__device__ __forceinline__ float gather(unsigned shared, int token, int part)
{
    const float last = load_float(shared + SUMS + (CHUNK - 1) * 4);
    float sum = 0.0f;
#pragma unroll
    for (int t = part * (CHUNK / PARTS); t < (part + 1) * (CHUNK / PARTS); ++t) {
        const float log = load_float(shared + SUMS + t * 4);
        if (t >= token) {
            sum = fmaf(exp2_approximate(log), load_float(shared + ARRIVING + t * 4) + load_float(shared + ARRIVING + ROW_SUMS + t * 4), sum);
            if (token > 0) sum += load_float(shared + PATHS + (t * PITCH + token - 1) * 4);
        } else {
            sum = fmaf(exp2_approximate(last - log), load_float(shared + DEPARTING + t * 4) + load_float(shared + DEPARTING + ROW_SUMS + t * 4), sum);
        }
    }
    if (part == 0) {
        float through = 0.0f;
#pragma unroll
        for (int w = 0; w < WARPS; ++w) through += load_float(shared + THROUGH + w * 4);
        sum = fmaf(exp2_approximate(last), through, sum);
    }
#pragma unroll
    for (int lanes = 1; lanes < PARTS; lanes *= 2) sum += __shfl_xor_sync(0xFFFFFFFFu, sum, lanes);
    return sum;
}

KERNEL __launch_bounds__(THREADS, 2) linear_attention_bwd_decay_per_token(
    const bf16* q, const bf16* k, const bf16* v, const bf16* d_out, const float* decay, int64 tokens, int heads, int key_heads, int width, int value_width, int64 batches,
    float scale, const bf16* entering, const bf16* leaving, float* d_decay)
{
    extern __shared__ __align__(1024) unsigned char memory[];
    const unsigned shared = shared_address(memory), unit = blockIdx.x;  // (chunk, b, h)
    const int64 head = unit % heads, batch = unit / heads % (unsigned)batches, first = (int64)(unit / heads / (unsigned)batches) * CHUNK, key_head = head / (heads / key_heads);
    const int rows = tokens - first < CHUNK ? (int)(tokens - first) : CHUNK;
    const SlabTile p_tile = { shared + ENTERING }, d_tile = { shared + LEAVING };
    const WideTile q_tile = { shared + Q }, k_tile = { shared + K }, v_tile = { shared + V }, out_tile = { shared + OUT };

    rows_of(q, batch, tokens, heads, head, width).fetch<THREADS>(first, rows, q_tile);
    rows_of(k, batch, tokens, key_heads, key_head, width).fetch<THREADS>(first, rows, k_tile);
    rows_of(v, batch, tokens, key_heads, key_head, value_width).fetch<THREADS>(first, rows, v_tile);
    rows_of(d_out, batch, tokens, heads, head, value_width).fetch<THREADS>(first, rows, out_tile);
    fetch_state(entering + (int64)unit * CHUNK_STATE, p_tile);
    fetch_state(leaving + (int64)unit * CHUNK_STATE, d_tile);
    commit_copies();
    sum_decay(decay_of(decay, PER_TOKEN, batch, tokens, heads, head, width), first, rows, shared + SUMS);
    wait_copies<0>();
    __syncthreads();

    float arriving[2] = {}, departing[2] = {}, through = 0.0f;
    const auto add_states = [&](int slab) {
        add_inter(out_tile, p_tile, q_tile, slab, arriving);
        add_inter(v_tile, d_tile, k_tile, slab, departing);
        multiply_states(p_tile, d_tile, through);
        __syncthreads();
    };
    add_states(0);
    const bool wide = width > SLAB;
    if (wide) {
        fetch_state(entering + (int64)unit * CHUNK_STATE + SLAB, p_tile);
        fetch_state(leaving + (int64)unit * CHUNK_STATE + SLAB, d_tile);
    }
    commit_copies();
    float paths[2][OWN];
#pragma unroll
    for (int i = 0; i < 2; ++i)
        if ((2 * i + half_of()) * ROW_BLOCK <= row_block()) pair_paths(shared, (2 * i + half_of()) * ROW_BLOCK, scale, paths[i]);
    wait_copies<0>();
    __syncthreads();
    if (wide) add_states(SLAB);

#pragma unroll
    for (int i = 0; i < 2; ++i)
        if ((2 * i + half_of()) * ROW_BLOCK <= row_block()) store_paths(paths[i], shared + PATHS, (2 * i + half_of()) * ROW_BLOCK);
    through = warp_reduce(through, Sum());
    if (lane_of() == 0) store_shared(shared + THROUGH + warp_of() * 4, __float_as_uint(through));
#pragma unroll
    for (int i = 0; i < 2; ++i) {
#pragma unroll
        for (int lanes = 1; lanes < 4; lanes *= 2) {
            arriving[i] += __shfl_xor_sync(0xFFFFFFFFu, arriving[i], lanes);
            departing[i] += __shfl_xor_sync(0xFFFFFFFFu, departing[i], lanes);
        }
        if (lane_of() % 4 != 0) continue;
        const unsigned at = half_of() * ROW_SUMS + (row_block() + lane_of() / 4 + 8 * i) * 4;
        store_shared(shared + ARRIVING + at, __float_as_uint(scale * arriving[i]));
        store_shared(shared + DEPARTING + at, __float_as_uint(departing[i]));
    }
    __syncthreads();
    sum_paths(shared + PATHS);
    __syncthreads();
    const int token = threadIdx.x / PARTS;
    const float sum = gather(shared, token, threadIdx.x % PARTS);
    if (threadIdx.x % PARTS == 0 && token < rows) d_decay[(batch * tokens + first + token) * heads + head] = sum;
}

#endif
