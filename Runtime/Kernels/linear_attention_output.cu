// The walk that makes o forward, and dq, dk, dv backward: with S the state and tokens in processing order,
//     S_i = exp(g) . S_{i-1} + k_scale k_i^T v_i          out_i = out_scale q_i S_i
//     o   q, k, v                          S_0 = initial state
//     dq  q = dO, k = v, v = k             S_0 = initial state transposed
//     dk  q = v, k = dO, v = q, reverse    S_0 = dFinalState transposed
//     dv  q = k, k = q, v = dO, reverse    S_0 = dFinalState
// The backward recursions differ as attention_decay.cuh says. A decay per channel multiplies the rows of S in o and dv ("keys": the channels are summed over)
// and, S being transposed, its columns in dq and dk ("values": the channels are those of the output).
// q [B, N, Hq, D]; k [B, N, Hk, D]; v [B, N, Hk, E]; out [B, N, Hq, E]; one of Hq, Hk divides the other, and there are H = max(Hq, Hk)
// states and decays. With Hk > Hq (dk, dv of grouped queries) an output sums the walks of its Hk / Hq heads in their order.
// entering [segments, B, H, D, E] fp32, or [.., E, D] when transposed = 1, holds the state that enters each segment (in processing order); null: zero. With Hk > Hq it is there and is overwritten.
// A shared decay is for fp32 tensors here; bf16 ones have linear_attention_mma.cu and linear_attention_output_wgmma.cu.
// Sub-chunks of 64 tokens: the intra part is masked (q k^T) v, the inter part reads the state; fp32 throughout, fixed order.
// Launch: 256 threads; one block per (segment, b, q head, 64 columns of E), the last fastest; shared memory TILES tiles and a state slice,
// (64 * TILES + D rounded up to 64) * 68 * 4 bytes, with 3 tiles for a shared decay and 4 for one per channel.
#include "attention_decay.cuh"

// One [D, 64] slice of a state between device memory and rows of PITCH floats in shared memory; what lies beyond D or E is zero there.
// A state [D, E] in memory, as it is or transposed, [E, D]; its slices have TILE columns, of which `columns` exist.
__device__ __forceinline__ int state_place(int d, int e, int width, int value_width, int transposed) { return transposed ? e * width + d : d * value_width + e; }

// from null: zero.
__device__ __forceinline__ void load_state(const float* from, int width, int value_width, int transposed, int columns, float* slice)
{
#pragma unroll 1
    for (int i = threadIdx.x; i < (width + TILE - 1) / TILE * TILE * TILE; i += THREADS) {
        const int d = i / TILE, e = i % TILE;
        slice[d * PITCH + e] = from && d < width && e < columns ? from[state_place(d, e, width, value_width, transposed)] : 0.0f;
    }
}

__device__ __forceinline__ void store_state(const float* slice, int width, int value_width, int transposed, int columns, float* to)
{
#pragma unroll 1
    for (int i = threadIdx.x; i < width * TILE; i += THREADS) {
        const int d = i / TILE, e = i % TILE;
        if (e < columns) to[state_place(d, e, width, value_width, transposed)] = slice[d * PITCH + e];
    }
}

// state = keep . state + sum_t weight(t) k_t^T v_t for one 64 x 64 tile of the state, each element by its owner
template <typename Keep, typename Weight> __device__ __forceinline__ void update_state(
    const float* k_tile, const float* v_tile, int rows, float* state, Keep keep, Weight weight)
{
    const int tx = threadIdx.x % SIDE, ty = threadIdx.x / SIDE;
    Fragment next;
#pragma unroll
    for (int i = 0; i < 4; ++i) unpack(read4(state + (4 * ty + i) * PITCH + 4 * tx), next.at[i]);
    weigh(next, keep);
    outer(k_tile, v_tile, rows, tx, ty, weight, next);
#pragma unroll
    for (int i = 0; i < 4; ++i) *(float4*)(state + (4 * ty + i) * PITCH + 4 * tx) = make_float4(next.at[i][0], next.at[i][1], next.at[i][2], next.at[i][3]);
}

// ---- The walks over one sub-chunk of one head: add its output to `out` and move the state slice past it. All threads are in step on entry and exit. ----

struct WalkOperands {
    HeadColumns q, k, v;  // v from this block's first column
    HeadDecay g;          // per channel: from the first channel of the slice where the channels are values
};

struct Scales {
    float k, out;
};

#if LASP_ELEMENT_F32

// One decay for all channels: P_ij = [i >= j] exp(G_i - G_j) (q_i . k_j) is a product and a mask.
struct SharedDecayWalk {
    static constexpr int TILES = 3;
    static constexpr bool PER_CHANNEL = false, CHANNELS_ARE_VALUES = false;

    static __device__ __forceinline__ void mask(const ChunkDecay& decay, float factor, int tx, int ty, const Fragment& p, float* tile)
    {
#pragma unroll
        for (int i = 0; i < 4; ++i)
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                const int row = ty + SIDE * i, column = tx + SIDE * j;
                tile[row * PITCH + column] = row >= column ? p.at[i][j] * decay.between(column, row) * factor : 0.0f;
            }
    }

    static __device__ __forceinline__ void run(const WalkOperands& x, const Chunk& chunk, Scales scales, float* tiles, float* slice, Fragment& out)
    {
        __shared__ ChunkDecay decay;
        float *q_tile = tiles, *k_tile = tiles + TILE_FLOATS, *v_tile = tiles + 2 * TILE_FLOATS;
        const int tx = threadIdx.x % SIDE, ty = threadIdx.x / SIDE;
        const float ones[4] = { 1.0f, 1.0f, 1.0f, 1.0f };
        load_decay(x.g, chunk, decay);
        load_tile(x.v, chunk.first, chunk.direction(), chunk.rows, v_tile);
        Fragment p = {};
#pragma unroll 1
        for (int d = 0; d < x.q.columns; d += TILE) {
            load_tile(x.q.from(d), chunk.first, chunk.direction(), chunk.rows, q_tile);
            load_tile(x.k.from(d), chunk.first, chunk.direction(), chunk.rows, k_tile);
            __syncthreads();
            float inter[4];  // weight of the entering state in each row of this thread
#pragma unroll
            for (int i = 0; i < 4; ++i) inter[i] = scales.out * decay.from_entry[ty + SIDE * i];
            correlate(q_tile, k_tile, tx, ty, p);
            multiply(q_tile, slice + d * PITCH, tx, ty, inter, out);
            __syncthreads();  // the state has been read
            update_state(k_tile, v_tile, chunk.rows, slice + d * PITCH, [&](int, int) { return decay.through; }, [&](int t) { return scales.k * decay.to_exit[t]; });
            __syncthreads();  // the tiles may be overwritten
        }
        mask(decay, scales.k * scales.out, tx, ty, p, q_tile);
        __syncthreads();
        multiply(q_tile, v_tile, tx, ty, ones, out);
        __syncthreads();
    }
};

#endif

// A decay per channel that is summed over: P_ij = sum_d q_i^d exp(G_i^d - G_j^d) k_j^d. Four neighbouring lanes hold a row's query, 16 channels each, and walk j
// down from i while the query decays step by step: a product of at most 64 factors, none above 1, and no exponential per pair. What is left of
// the query when the walk has passed entry is its inter weight.
struct KeyDecayWalk {
    static constexpr int TILES = 4;
    static constexpr bool PER_CHANNEL = true, CHANNELS_ARE_VALUES = false;
    static constexpr int LANES = THREADS / TILE;              // per row
    static constexpr int QUADS = TILE / (4 * LANES);          // float4s of a lane: channels 4 lane + 16 c ..
    static constexpr int WARP_ROWS = WARP / LANES;

    static __device__ __forceinline__ int quad(int row, int c) { return row * PITCH + 4 * (threadIdx.x % LANES) + 4 * LANES * c; }

    // Adds this slab's share to P, and leaves the queries that reach entry in the tile of the steps, through which the queries also come in.
    static __device__ __forceinline__ void correlate_decayed(const WalkOperands& x, int d, const Chunk& chunk, const float* k_tile, float* steps, float* p_tile)
    {
        const int row = threadIdx.x / LANES, lane = threadIdx.x % LANES, last_row = threadIdx.x / WARP * WARP_ROWS + WARP_ROWS - 1;
        load_tile(x.q.from(d), chunk.first, chunk.direction(), chunk.rows, steps);
        __syncthreads();
        float query[QUADS][4];
#pragma unroll
        for (int c = 0; c < QUADS; ++c) unpack(read4(steps + quad(row, c)), query[c]);
        __syncthreads();
        load_steps(x.g.from(d), x.q.columns - d, chunk, steps);
        __syncthreads();
#pragma unroll 1
        for (int j = last_row; j >= 0; --j) {
            const bool sees = j <= row;
            float sum = 0.0f;
#pragma unroll
            for (int c = 0; c < QUADS; ++c) {
                float key[4], step[4];
                unpack(read4(k_tile + quad(j, c)), key);
                unpack(read4(steps + quad(j, c)), step);
#pragma unroll
                for (int u = 0; u < 4; ++u) {
                    sum = fmaf(query[c][u], key[u], sum);
                    query[c][u] *= sees ? step[u] : 1.0f;
                }
            }
#pragma unroll
            for (int lanes = 1; lanes < LANES; lanes *= 2) sum += __shfl_xor_sync(0xFFFFFFFFu, sum, lanes);
            if (sees && lane == j % LANES) p_tile[row * PITCH + j] += sum;
        }
        __syncthreads();
#pragma unroll
        for (int c = 0; c < QUADS; ++c)
            *(float4*)(steps + quad(row, c)) = make_float4(query[c][0], query[c][1], query[c][2], query[c][3]);
    }

    static __device__ __forceinline__ void run(const WalkOperands& x, const Chunk& chunk, Scales scales, float* tiles, float* slice, Fragment& out)
    {
        __shared__ ChannelDecay decay;
        float *steps = tiles, *k_tile = tiles + TILE_FLOATS, *v_tile = tiles + 2 * TILE_FLOATS, *p_tile = tiles + 3 * TILE_FLOATS;
        const int tx = threadIdx.x % SIDE, ty = threadIdx.x / SIDE;
        const float inter[4] = { scales.out, scales.out, scales.out, scales.out }, intra[4] = { scales.k * scales.out, scales.k * scales.out, scales.k * scales.out, scales.k * scales.out };
        load_tile(x.v, chunk.first, chunk.direction(), chunk.rows, v_tile);
        for (int i = threadIdx.x; i < TILE_FLOATS; i += THREADS) p_tile[i] = 0.0f;
#pragma unroll 1
        for (int d = 0; d < x.q.columns; d += TILE) {
            load_tile(x.k.from(d), chunk.first, chunk.direction(), chunk.rows, k_tile);
            correlate_decayed(x, d, chunk, k_tile, steps, p_tile);
            weigh_to_exit(x.g.from(d), x.q.columns - d, chunk, k_tile, decay);
            __syncthreads();
            multiply(steps, slice + d * PITCH, tx, ty, inter, out);
            __syncthreads();  // the state has been read
            update_state(k_tile, v_tile, chunk.rows, slice + d * PITCH, [&](int channel, int) { return decay.through[channel]; }, [&](int) { return scales.k; });
            __syncthreads();  // the tiles may be overwritten
        }
        multiply(p_tile, v_tile, tx, ty, intra, out);
        __syncthreads();
    }
};

// A decay per channel of the output: out_i^e = exp(G_i^e) (q_i S)^e + sum_{j<=i} exp(G_i^e - G_j^e) (q_i . k_j) v_j^e, by Horner's rule over j from q_i S on.
struct ValueDecayWalk {
    static constexpr int TILES = 4;
    static constexpr bool PER_CHANNEL = true, CHANNELS_ARE_VALUES = true;

    static __device__ __forceinline__ void horner(const float* scores, const float* steps, const float* v_tile, int rows, int tx, int ty, Fragment& out)
    {
#pragma unroll 1
        for (int j = 0; j < rows; ++j) {
            float step[4], value[4];
            unpack(read4(steps + j * PITCH + 4 * tx), step);
            unpack(read4(v_tile + j * PITCH + 4 * tx), value);
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const int row = ty + SIDE * i;
                if (j > row) continue;
                const float score = scores[row * PITCH + j];
#pragma unroll
                for (int u = 0; u < 4; ++u) out.at[i][u] = fmaf(step[u], out.at[i][u], score * value[u]);
            }
        }
    }

    static __device__ __forceinline__ void run(const WalkOperands& x, const Chunk& chunk, Scales scales, float* tiles, float* slice, Fragment& out)
    {
        __shared__ ChannelDecay decay;
        float *q_tile = tiles, *k_tile = tiles + TILE_FLOATS, *v_tile = tiles + 2 * TILE_FLOATS, *steps = tiles + 3 * TILE_FLOATS;
        const int tx = threadIdx.x % SIDE, ty = threadIdx.x / SIDE;
        const float ones[4] = { 1.0f, 1.0f, 1.0f, 1.0f };
        Fragment p = {};
#pragma unroll 1
        for (int d = 0; d < x.q.columns; d += TILE) {
            load_tile(x.q.from(d), chunk.first, chunk.direction(), chunk.rows, q_tile);
            load_tile(x.k.from(d), chunk.first, chunk.direction(), chunk.rows, k_tile);
            __syncthreads();
            correlate(q_tile, k_tile, tx, ty, p);
            __syncthreads();
        }
        float* scores = k_tile;
#pragma unroll
        for (int i = 0; i < 4; ++i)
#pragma unroll
            for (int j = 0; j < 4; ++j) scores[(ty + SIDE * i) * PITCH + tx + SIDE * j] = scales.k * p.at[i][j];

        load_tile(x.v, chunk.first, chunk.direction(), chunk.rows, v_tile);
        load_steps(x.g, x.v.columns, chunk, steps);
        Fragment sum = {};
#pragma unroll 1
        for (int d = 0; d < x.q.columns; d += TILE) {
            load_tile(x.q.from(d), chunk.first, chunk.direction(), chunk.rows, q_tile);
            __syncthreads();
            multiply(q_tile, slice + d * PITCH, tx, ty, ones, sum);
            __syncthreads();
        }
        horner(scores, steps, v_tile, chunk.rows, tx, ty, sum);
#pragma unroll
        for (int i = 0; i < 4; ++i)
#pragma unroll
            for (int j = 0; j < 4; ++j) out.at[i][j] = fmaf(scales.out, sum.at[i][j], out.at[i][j]);
        __syncthreads();

        weigh_to_exit(x.g, x.v.columns, chunk, v_tile, decay);
#pragma unroll 1
        for (int d = 0; d < x.q.columns; d += TILE) {
            load_tile(x.k.from(d), chunk.first, chunk.direction(), chunk.rows, k_tile);
            __syncthreads();
            update_state(k_tile, v_tile, chunk.rows, slice + d * PITCH, [&](int, int channel) { return decay.through[channel]; }, [&](int) { return scales.k; });
            __syncthreads();
        }
    }
};

template <typename Walk> __device__ __forceinline__ void walk_segment(
    const element* q, const element* k, const element* v, const float* decay, int kind, int64 tokens, int q_heads, int k_heads, int width, int value_width, int64 batches,
    int64 segment_tokens, const SegmentRow* cut, int reverse, float k_scale, float out_scale, float* entering, int transposed, element* out)
{
    extern __shared__ __align__(16) float shared[];
    float* slice = shared + Walk::TILES * TILE_FLOATS;
    const int tx = threadIdx.x % SIDE, ty = threadIdx.x / SIDE;
    const int slices = (value_width + TILE - 1) / TILE, column = blockIdx.x % slices * TILE;
    const int columns = value_width - column < TILE ? value_width - column : TILE;
    const int64 unit = blockIdx.x / slices;  // (segment, b, q head)
    const int64 q_head = unit % q_heads, batch = unit / q_heads % batches, index = unit / q_heads / batches;
    const Segment segment = segment_of(index, segment_tokens, Walk::PER_CHANNEL ? nullptr : cut, tokens, reverse);

    const int heads = q_heads > k_heads ? q_heads : k_heads;
    const int group = k_heads > q_heads ? k_heads / q_heads : 1;             // heads summed by this block
    const int64 first_head = k_heads > q_heads ? q_head * group : q_head;    // of the states and decays
    const int64 shared_by = q_heads > k_heads ? q_heads / k_heads : 1;       // query heads that read one key head
    const int64 size = (int64)width * value_width;
    float* states = state_of(entering, segment, batches, batch, heads, first_head, size);
    if (states) states += state_place(0, column, width, value_width, transposed);
    element* to = out + (batch * tokens * q_heads + q_head) * value_width + column;

#pragma unroll 1
    for (int i = 0; i < segment.chunks(); ++i) {
        const Chunk chunk = chunk_of(segment, i);
        Fragment sum = {};
#pragma unroll 1
        for (int member = 0; member < group; ++member) {
            const int64 head = first_head + member, k_head = head / shared_by;
            if (group > 1 || i == 0) load_state(states + member * size, width, value_width, transposed, columns, slice);
            const WalkOperands operands = {
                head_columns(q, batch, tokens, q_heads, q_head, width, 0), head_columns(k, batch, tokens, k_heads, k_head, width, 0),
                head_columns(v, batch, tokens, k_heads, k_head, value_width, column),
                head_decay(decay, Walk::PER_CHANNEL ? DECAY_PER_CHANNEL : kind, batch, tokens, heads, head, Walk::CHANNELS_ARE_VALUES ? value_width : width).from(Walk::CHANNELS_ARE_VALUES ? column : 0)
            };
            Walk::run(operands, chunk, { k_scale, out_scale }, shared, slice, sum);
            if (group > 1) {
                store_state(slice, width, value_width, transposed, columns, states + member * size);
                __syncthreads();
            }
        }
        store_output(sum, tx, ty, chunk.rows, columns, chunk.first, chunk.direction(), (int64)q_heads * value_width, to);
    }
}

#if LASP_ELEMENT_F32
KERNEL __launch_bounds__(THREADS, 2) linear_attention_output(
    const element* q, const element* k, const element* v, const float* decay, int kind, int64 tokens, int q_heads, int k_heads, int width, int value_width, int64 batches,
    int64 segment_tokens, const SegmentRow* cut, int reverse, float k_scale, float out_scale, float* entering, int transposed, element* out)
{
    walk_segment<SharedDecayWalk>(q, k, v, decay, kind, tokens, q_heads, k_heads, width, value_width, batches, segment_tokens, cut, reverse, k_scale, out_scale, entering, transposed, out);
}
#endif

KERNEL __launch_bounds__(THREADS, 2) linear_attention_output_decayed_keys(
    const element* q, const element* k, const element* v, const float* decay, int kind, int64 tokens, int q_heads, int k_heads, int width, int value_width, int64 batches,
    int64 segment_tokens, const SegmentRow* cut, int reverse, float k_scale, float out_scale, float* entering, int transposed, element* out)
{
    walk_segment<KeyDecayWalk>(q, k, v, decay, kind, tokens, q_heads, k_heads, width, value_width, batches, segment_tokens, cut, reverse, k_scale, out_scale, entering, transposed, out);
}

KERNEL __launch_bounds__(THREADS, 2) linear_attention_output_decayed_values(
    const element* q, const element* k, const element* v, const float* decay, int kind, int64 tokens, int q_heads, int k_heads, int width, int value_width, int64 batches,
    int64 segment_tokens, const SegmentRow* cut, int reverse, float k_scale, float out_scale, float* entering, int transposed, element* out)
{
    walk_segment<ValueDecayWalk>(q, k, v, decay, kind, tokens, q_heads, k_heads, width, value_width, batches, segment_tokens, cut, reverse, k_scale, out_scale, entering, transposed, out);
}
