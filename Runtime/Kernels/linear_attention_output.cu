// The walk that makes o forward, and dq, dk, dv backward: with S the state and tokens in processing order,
//     S_i = exp(g) S_{i-1} + k_scale k_i^T v_i          out_i = out_scale q_i S_i
//     o   q, k, v                          S_0 = initial state
//     dq  q = dO, k = v, v = k             S_0 = initial state transposed
//     dk  q = v, k = dO, v = q, reverse    S_0 = dFinalState transposed
//     dv  q = k, k = q, v = dO, reverse    S_0 = dFinalState
// Backwards the decay of a token acts after it, on what is handed to the next one, so the powers of exp(g) shift by one: `reverse` is that number.
// q [B, N, Hq, D]; k [B, N, Hk, D]; v [B, N, Hk, E]; out [B, N, Hq, E]; one of Hq, Hk divides the other, and there are H = max(Hq, Hk)
// states and decays. With Hk > Hq (dk, dv of grouped queries) an output sums the walks of its Hk / Hq heads in their order.
// entering [segments, B, H, D, E] fp32 holds the state that enters each segment (in processing order); it is scratch and is overwritten.
// Sub-chunks of 64 tokens: the intra part is masked (q k^T) v, the inter part reads the state; fp32 throughout, fixed order.
// Launch: 256 threads; one block per (segment, b, q head, 64 columns of E), the last fastest; shared memory 3 tiles and a state slice,
// (3 * 64 + D rounded up to 64) * 68 * 4 bytes.
#include "attention_tiles.cuh"

// P_ij = [i >= j] exp((i - j) g) (q_i . k_j) * factor, from the owners' fragments into a tile
__device__ __forceinline__ void mask(const float* powers, float factor, int tx, int ty, const Fragment& p, float* tile)
{
#pragma unroll
    for (int i = 0; i < 4; ++i)
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            const int row = ty + SIDE * i, column = tx + SIDE * j;
            tile[row * PITCH + column] = row >= column ? p.at[i][j] * powers[row - column] * factor : 0.0f;
        }
}

// One [D, 64] slice of a state between device memory and rows of PITCH floats in shared memory; what lies beyond D or E is zero there.
__device__ __forceinline__ void load_state(const float* from, int width, int value_width, int columns, float* slice)
{
#pragma unroll 1
    for (int i = threadIdx.x; i < (width + TILE - 1) / TILE * TILE * TILE; i += THREADS) {
        const int d = i / TILE, e = i % TILE;
        slice[d * PITCH + e] = d < width && e < columns ? from[(int64)d * value_width + e] : 0.0f;
    }
}

__device__ __forceinline__ void store_state(const float* slice, int width, int value_width, int columns, float* to)
{
#pragma unroll 1
    for (int i = threadIdx.x; i < width * TILE; i += THREADS) {
        const int d = i / TILE, e = i % TILE;
        if (e < columns) to[(int64)d * value_width + e] = slice[d * PITCH + e];
    }
}

// One sub-chunk of one head: adds its output to `out` and moves the state slice past it. v_tile is loaded; all threads are in step on exit.
__device__ __forceinline__ void walk_chunk(
    HeadColumns q, HeadColumns k, int64 token, int rows, int reverse, float k_scale, float out_scale, const float* powers, float* q_tile, float* k_tile,
    const float* v_tile, float* slice, Fragment& out)
{
    const int tx = threadIdx.x % SIDE, ty = threadIdx.x / SIDE;
    const float ones[4] = { 1.0f, 1.0f, 1.0f, 1.0f };
    Fragment p = {};
    for (int d = 0; d < q.columns; d += TILE) {
        load_tile(q.from(d), token, reverse ? -1 : 1, rows, q_tile);
        load_tile(k.from(d), token, reverse ? -1 : 1, rows, k_tile);
        __syncthreads();
        float inter[4];  // weight of the entering state in each row of this thread
#pragma unroll
        for (int i = 0; i < 4; ++i) inter[i] = out_scale * powers[ty + SIDE * i + 1 - reverse];
        float* state = slice + d * PITCH;
        correlate(q_tile, k_tile, tx, ty, p);
        multiply(q_tile, state, tx, ty, inter, out);
        __syncthreads();  // the state has been read, and is updated by the owner of each element

        Fragment next;
#pragma unroll
        for (int i = 0; i < 4; ++i) unpack(read4(state + (4 * ty + i) * PITCH + 4 * tx), next.at[i]);
        scale(powers[rows], next);
        outer(k_tile, v_tile, rows, tx, ty, [&](int t) { return k_scale * powers[rows - 1 - t + reverse]; }, next);
#pragma unroll
        for (int i = 0; i < 4; ++i) *(float4*)(state + (4 * ty + i) * PITCH + 4 * tx) = make_float4(next.at[i][0], next.at[i][1], next.at[i][2], next.at[i][3]);
        __syncthreads();  // the tiles may be overwritten
    }

    mask(powers, k_scale * out_scale, tx, ty, p, q_tile);
    __syncthreads();
    multiply(q_tile, v_tile, tx, ty, ones, out);
    __syncthreads();
}

__device__ __forceinline__ void store_output(const Fragment& out, int tx, int ty, int rows, int columns, int64 token, int direction, int64 stride, element* to)
{
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        const int row = ty + SIDE * i;
        if (row >= rows) continue;
        element* at = to + (token + (int64)row * direction) * stride;
#pragma unroll
        for (int j = 0; j < 4; ++j)
            if (4 * tx + j < columns) from_float(out.at[i][j], at[4 * tx + j]);
    }
}

KERNEL __launch_bounds__(THREADS, 2) linear_attention_output(
    const element* q, const element* k, const element* v, const float* decay, int64 tokens, int q_heads, int k_heads, int width, int value_width, int64 batches,
    int64 segment_tokens, int reverse, float k_scale, float out_scale, float* entering, element* out)
{
    extern __shared__ __align__(16) float shared[];
    __shared__ float powers[POWERS];
    float *q_tile = shared, *k_tile = shared + TILE_FLOATS, *v_tile = shared + 2 * TILE_FLOATS, *slice = shared + 3 * TILE_FLOATS;
    const int tx = threadIdx.x % SIDE, ty = threadIdx.x / SIDE;
    const int slices = (value_width + TILE - 1) / TILE, column = blockIdx.x % slices * TILE;
    const int columns = value_width - column < TILE ? value_width - column : TILE;
    const int64 unit = blockIdx.x / slices;  // (segment, b, q head)
    const int64 q_head = unit % q_heads, batch = unit / q_heads % batches, index = unit / q_heads / batches;
    const Segment segment = segment_of(index, segment_tokens, tokens, reverse);

    const int heads = q_heads > k_heads ? q_heads : k_heads;
    const int group = k_heads > q_heads ? k_heads / q_heads : 1;             // heads summed by this block
    const int64 first_head = k_heads > q_heads ? q_head * group : q_head;    // of the states and decays
    const int64 shared_by = q_heads > k_heads ? q_heads / k_heads : 1;       // query heads that read one key head
    const int64 size = (int64)width * value_width;
    float* states = entering + ((index * batches + batch) * heads + first_head) * size + column;
    const HeadColumns q_columns = head_columns(q, batch, tokens, q_heads, q_head, width, 0);
    element* to = out + (batch * tokens * q_heads + q_head) * value_width + column;

    for (int chunk = 0; chunk < segment.chunks(); ++chunk) {
        const int64 token = segment.token(chunk);
        const int rows = segment.rows(chunk);
        Fragment sum = {};
        for (int g = 0; g < group; ++g) {
            const int64 head = first_head + g, k_head = head / shared_by;
            if (group > 1 || chunk == 0) {
                load_state(states + g * size, width, value_width, columns, slice);
                decay_powers(decay, head, powers);
            }
            load_tile(head_columns(v, batch, tokens, k_heads, k_head, value_width, column), token, segment.direction(), rows, v_tile);
            const HeadColumns k_columns = head_columns(k, batch, tokens, k_heads, k_head, width, 0);
            walk_chunk(q_columns, k_columns, token, rows, reverse, k_scale, out_scale, powers, q_tile, k_tile, v_tile, slice, sum);
            if (group > 1) {
                store_state(slice, width, value_width, columns, states + g * size);
                __syncthreads();
            }
        }
        store_output(sum, tx, ty, rows, columns, token, segment.direction(), (int64)q_heads * value_width, to);
    }
}
