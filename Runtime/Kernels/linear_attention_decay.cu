// Gradient of a log decay per token or per channel: every path that crosses a token's decay is counted once, and nothing is subtracted. Per sub-chunk of C tokens
// entered with P, whose leaving state has the gradient D, per channel (products without a sum are elementwise in the channel):
//     dg_i = sum_{s>=i} q_s . X_s          X_s = scale exp(G_s) . (dO_s P^T)           paths from before the sub-chunk to a later token of it
//          + sum_{j<i} k_j . Y_j           Y_j = exp(G_C - G_j) . (v_j D^T)            paths from an earlier token to behind it
//          + exp(G_C) . sum_e P_e D_e                                                  paths across the whole sub-chunk
//          + sum_{j<i<=s} scale exp(G_s - G_j) . q_s . k_j (dO_s v_j^T)                paths inside it
// A decay per token is the same in all channels, so its gradient is their sum.
// q [B, N, H, D], dO [B, N, H, E], k [B, N, Hk, D], v [B, N, Hk, E]; decay and d_decay [B, N, H] or [B, N, H, D] fp32;
// entering and leaving [chunks, B, H, D, E] fp32: the states P and the gradients D of every sub-chunk of 64 tokens. fp32; deterministic.
#include "attention_decay.cuh"

constexpr int LANES = PARTS;                     // neighbouring lanes that share a channel here: 16 rows each

// The channel of this thread within a slab, and which 16 rows of it.
__device__ __forceinline__ int own_channel() { return threadIdx.x / LANES; }

__device__ __forceinline__ int own_part() { return threadIdx.x % LANES; }

// Sum of x over this channel's parts before (or after) this one.
__device__ __forceinline__ float other_parts(float x, bool after)
{
    float sum = 0.0f;
#pragma unroll
    for (int part = 0; part < LANES; ++part) {
        const float value = __shfl_sync(0xFFFFFFFFu, x, part, LANES);
        if (after ? part > own_part() : part < own_part()) sum += value;
    }
    return sum;
}

// result rows ty + 16 i, columns tx + 16 j, as correlate leaves them, into a tile
__device__ __forceinline__ void store_correlation(const Fragment& x, float* tile)
{
    const int tx = threadIdx.x % SIDE, ty = threadIdx.x / SIDE;
#pragma unroll
    for (int i = 0; i < 4; ++i)
#pragma unroll
        for (int j = 0; j < 4; ++j) tile[(ty + SIDE * i) * PITCH + tx + SIDE * j] = x.at[i][j];
}

// Fills a tile with 64 x 64 of a state [D, E], zero beyond it.
__device__ __forceinline__ void load_state_tile(const float* state, int row, int column, int width, int value_width, float* tile)
{
#pragma unroll 1
    for (int p = threadIdx.x; p < TILE * TILE; p += THREADS) {
        const int d = row + p / TILE, e = column + p % TILE;
        tile[p / TILE * PITCH + p % TILE] = d < width && e < value_width ? state[(int64)d * value_width + e] : 0.0f;
    }
}

// Paths inside the sub-chunk: one step per token s, from which this thread's 16 tokens j keep their keys decayed up to s. With R the sum of
// the paths from tokens <= j to s, the path from j crosses position j + 1, and so do those from before it: crossing[t] is that of position first + t + 1.
__device__ __forceinline__ void count_inner_paths(const float* scores, const float* q, const float* k, const HeadDecay& g, int channels, const Chunk& chunk, float scale_factor,
    float (&crossing)[PART_ROWS])
{
    const int channel = own_channel(), first = own_part() * PART_ROWS;
    float key[PART_ROWS];
#pragma unroll
    for (int t = 0; t < PART_ROWS; ++t) key[t] = k[(first + t) * PITCH + channel];
#pragma unroll 1
    for (int s = 1; s < chunk.rows; ++s) {
        const float step = channel < channels ? expf(g.at(chunk.token(s), channel)) : 1.0f, query = scale_factor * q[s * PITCH + channel];
        float paths[PART_ROWS], sum = 0.0f;
#pragma unroll
        for (int t = 0; t < PART_ROWS; t += 4) {
            float score[4];
            unpack(read4(scores + s * PITCH + first + t), score);
#pragma unroll
            for (int u = 0; u < 4; ++u) {
                if (first + t + u < s) {
                    key[t + u] *= step;
                    sum = fmaf(score[u], key[t + u], sum);
                }
                paths[t + u] = sum;
            }
        }
        const float before = other_parts(sum, false);
#pragma unroll
        for (int t = 0; t < PART_ROWS; ++t)
            if (first + t < s) crossing[t] = fmaf(query, before + paths[t], crossing[t]);
    }
}

__device__ __forceinline__ void store_inner_paths(const float (&crossing)[PART_ROWS], float* dg)
{
    const int channel = own_channel(), first = own_part() * PART_ROWS;
    if (first == 0) dg[channel] = 0.0f;  // nothing begins before token 0
#pragma unroll
    for (int t = 0; t < PART_ROWS; ++t)
        if (first + t + 1 < TILE) dg[(first + t + 1) * PITCH + channel] = crossing[t];
}

// Adds the paths that come from before the sub-chunk or go on behind it to this thread's rows of dg. x = dO P^T, y = v D^T, through = this part's share of sum_e P_e D_e.
__device__ __forceinline__ void add_outer_paths(
    const float* x, const float* y, const float* q, const float* k, float through, const HeadDecay& g, int channels, const Chunk& chunk, float scale_factor, float* dg)
{
    const int channel = own_channel(), first = own_part() * PART_ROWS;
    const auto log = [&](int row) { return row < chunk.rows && channel < channels ? g.at(chunk.token(row), channel) : 0.0f; };
    float sum = 0.0f;
#pragma unroll 1
    for (int t = 0; t < PART_ROWS; ++t) sum += log(first + t);
    const float before = other_parts(sum, false), after = other_parts(sum, true);
#pragma unroll
    for (int lanes = 1; lanes < LANES; lanes *= 2) through += __shfl_xor_sync(0xFFFFFFFFu, through, lanes);
    through *= expf(before + sum + after);

    float queries[PART_ROWS], keys[PART_ROWS], query_sum = 0.0f, key_sum = 0.0f, from_entry = before, to_exit = after;
#pragma unroll
    for (int t = 0; t < PART_ROWS; ++t) {
        const int at = (first + t) * PITCH + channel;
        from_entry += log(first + t);
        queries[t] = scale_factor * q[at] * expf(from_entry) * x[at];
        query_sum += queries[t];
    }
#pragma unroll
    for (int t = PART_ROWS - 1; t >= 0; --t) {
        const int at = (first + t) * PITCH + channel;
        keys[t] = k[at] * expf(to_exit) * y[at];
        key_sum += keys[t];
        to_exit += log(first + t);
    }

    float arriving = other_parts(query_sum, true), leaving = other_parts(key_sum, false);
#pragma unroll
    for (int t = PART_ROWS - 1; t >= 0; --t) {
        arriving += queries[t];  // at tokens s >= i
        dg[(first + t) * PITCH + channel] += arriving + through;
    }
#pragma unroll
    for (int t = 0; t < PART_ROWS; ++t) {
        dg[(first + t) * PITCH + channel] += leaving;  // from tokens j < i
        leaving += keys[t];
    }
}

// This thread's share of sum_e P_e D_e for its channel
__device__ __forceinline__ float state_product(const float* p_tile, const float* d_tile)
{
    float sum = 0.0f;
#pragma unroll
    for (int e = 0; e < PART_ROWS; e += 4) {
        float p[4], d[4];
        unpack(read4(p_tile + own_channel() * PITCH + own_part() * PART_ROWS + e), p);
        unpack(read4(d_tile + own_channel() * PITCH + own_part() * PART_ROWS + e), d);
#pragma unroll
        for (int u = 0; u < 4; ++u) sum = fmaf(p[u], d[u], sum);
    }
    return sum;
}

// Writes dg [rows, 64 channels] to d_decay where every channel has its own.
__device__ __forceinline__ void store_channels(const float* dg, int rows, int channels, int64 stride, float* to)
{
#pragma unroll 1
    for (int p = threadIdx.x; p < rows * TILE; p += THREADS)
        if (p % TILE < channels) to[p / TILE * stride + p % TILE] = dg[p / TILE * PITCH + p % TILE];
}

// This thread's share of row own_channel() of dg, summed over its channels
__device__ __forceinline__ float channel_sum(const float* dg, int channels)
{
    float sum = 0.0f;
#pragma unroll
    for (int c = 0; c < PART_ROWS; ++c)
        if (own_part() * PART_ROWS + c < channels) sum += dg[own_channel() * PITCH + own_part() * PART_ROWS + c];
    return sum;
}

// Launch: 256 threads; one block per (sub-chunk, b, h); 5 tiles of shared memory.
KERNEL __launch_bounds__(THREADS, 2) linear_attention_bwd_decay(
    const element* q, const element* k, const element* v, const element* d_out, const float* decay, int kind, const float* entering, const float* leaving, int64 tokens,
    int heads, int key_heads, int width, int value_width, int64 batches, float scale_factor, float* d_decay)
{
    extern __shared__ __align__(16) float shared[];
    float *tile[5] = { shared, shared + TILE_FLOATS, shared + 2 * TILE_FLOATS, shared + 3 * TILE_FLOATS, shared + 4 * TILE_FLOATS };
    const int tx = threadIdx.x % SIDE, ty = threadIdx.x / SIDE;
    const int64 state = blockIdx.x;  // (sub-chunk, b, h)
    const int64 head = state % heads, batch = state / heads % batches, key_head = head / (heads / key_heads);
    const Segment segment = segment_of(state / heads / batches, TILE, tokens, 0);
    const Chunk chunk = chunk_of(segment, 0);
    const int64 offset = state * width * value_width;
    const HeadDecay g = head_decay(decay, kind, batch, tokens, heads, head, width);
    const int64 first_row = (batch * tokens + chunk.first) * heads + head;

    float token_sum = 0.0f;
#pragma unroll 1
    for (int slab = 0; slab < width; slab += TILE) {
        Fragment x = {}, y = {}, scores = {};
        float through = 0.0f;
#pragma unroll 1
        for (int e = 0; e < value_width; e += TILE) {
            load_tile(head_columns(d_out, batch, tokens, heads, head, value_width, e), chunk.first, 1, chunk.rows, tile[0]);
            load_tile(head_columns(v, batch, tokens, key_heads, key_head, value_width, e), chunk.first, 1, chunk.rows, tile[1]);
            load_state_tile(entering + offset, slab, e, width, value_width, tile[2]);
            load_state_tile(leaving + offset, slab, e, width, value_width, tile[3]);
            __syncthreads();
            correlate(tile[0], tile[2], tx, ty, x);
            correlate(tile[1], tile[3], tx, ty, y);
            correlate(tile[0], tile[1], tx, ty, scores);
            through += state_product(tile[2], tile[3]);
            __syncthreads();
        }

        const HeadColumns queries = head_columns(q, batch, tokens, heads, head, width, slab);
        const HeadDecay slab_decay = g.from(slab);
        float* dg = tile[0];
        store_correlation(scores, tile[0]);
        store_correlation(x, tile[1]);
        store_correlation(y, tile[2]);
        load_tile(queries, chunk.first, 1, chunk.rows, tile[3]);
        load_tile(head_columns(k, batch, tokens, key_heads, key_head, width, slab), chunk.first, 1, chunk.rows, tile[4]);
        __syncthreads();
        float crossing[PART_ROWS] = {};
        count_inner_paths(tile[0], tile[3], tile[4], slab_decay, queries.columns, chunk, scale_factor, crossing);
        __syncthreads();  // the scores have been read
        store_inner_paths(crossing, dg);
        __syncthreads();
        add_outer_paths(tile[1], tile[2], tile[3], tile[4], through, slab_decay, queries.columns, chunk, scale_factor, dg);
        __syncthreads();
        if (kind == DECAY_PER_CHANNEL) store_channels(dg, chunk.rows, queries.columns, (int64)heads * width, d_decay + first_row * width + slab);
        else token_sum += channel_sum(dg, queries.columns);
        __syncthreads();
    }
    if (kind == DECAY_PER_CHANNEL) return;
#pragma unroll
    for (int lanes = 1; lanes < LANES; lanes *= 2) token_sum += __shfl_xor_sync(0xFFFFFFFFu, token_sum, lanes);
    if (own_part() == 0 && own_channel() < chunk.rows) d_decay[first_row + (int64)own_channel() * heads] = token_sum;
}
