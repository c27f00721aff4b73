// Gradient of the log decay per head, forward-mode and without subtraction. With T = dS/dg, zero where a segment begins,
//     S_i = exp(g) S_{i-1} + k_i^T v_i          T_i = exp(g) (T_{i-1} + S_{i-1})
//     dg  = sum over segments of  sum_i scale q_i T_i dO_i^T + <T_end, D_end>
// where D_end is the gradient of the state that leaves the segment; paths that cross several segments are carried by S and D.
// Per sub-chunk of c tokens entered with (S, T), s and j counting from 1:
//     sum_s scale exp(s g) q_s (T + s S) dO_s^T + sum_{j<s} (s - j) exp((s - j) g) scale (q_s . k_j) (dO_s . v_j)
//     S' = exp(c g) S + sum_i exp((c - i) g) k_i^T v_i          T' = exp(c g) (T + c S) + sum_i (c - i) exp((c - i) g) k_i^T v_i
// All of it is bilinear in (columns of D, columns of E), so each block takes 64 of each and sees nothing of the others.
// q [B, N, H, D], dO [B, N, H, E], k [B, N, Hk, D], v [B, N, Hk, E]; entering and leaving [segments, B, H, D, E] fp32 (leaving: the gradients).
// fp32 within a sub-chunk, fp64 across; deterministic.
#include "attention_tiles.cuh"

constexpr int POWERS = TILE + 1;

// powers[i] = exp(i * g) for i = 0..64
__device__ __forceinline__ void decay_powers(float g, float* powers)
{
    if (threadIdx.x < POWERS) powers[threadIdx.x] = expf((float)threadIdx.x * g);
}

// powers[i] * i in float: the derivative of exp(i g) by g.
__device__ __forceinline__ float slope(const float* powers, int i) { return (float)i * powers[i]; }

__device__ __forceinline__ float dot(const Fragment& a, const Fragment& b)
{
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < 4; ++i)
#pragma unroll
        for (int j = 0; j < 4; ++j) sum = fmaf(a.at[i][j], b.at[i][j], sum);
    return sum;
}

// This thread's 4 x 4 of a state [D, E] at (row, column), zero beyond the state.
__device__ __forceinline__ Fragment state_fragment(const float* state, int row, int column, int width, int value_width)
{
    Fragment x;
#pragma unroll
    for (int i = 0; i < 4; ++i)
#pragma unroll
        for (int j = 0; j < 4; ++j) x.at[i][j] = row + i < width && column + j < value_width ? state[(int64)(row + i) * value_width + column + j] : 0.0f;
    return x;
}

// sum_{j<s} (s - j) exp((s - j) g) (q_s . k_j) (dO_s . v_j) over this thread's pairs
__device__ __forceinline__ float intra(const float* q, const float* k, const float* v, const float* d_out, const float* powers, int tx, int ty)
{
    Fragment qk = {}, dv = {};
    correlate(q, k, tx, ty, qk);
    correlate(d_out, v, tx, ty, dv);
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < 4; ++i)
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            const int distance = ty + SIDE * i - (tx + SIDE * j);
            if (distance > 0) sum = fmaf(slope(powers, distance), qk.at[i][j] * dv.at[i][j], sum);
        }
    return sum;
}

// Launch: 256 threads; one block per (segment, b, h, 64 columns of D, 64 columns of E), the last fastest; 4 tiles of shared memory.
// partials[block] receives the block's share.
KERNEL __launch_bounds__(THREADS, 2) linear_attention_bwd_decay_per_head(
    const element* q, const element* k, const element* v, const element* d_out, const float* decay, const float* entering, const float* leaving, int64 tokens, int heads,
    int key_heads, int width, int value_width, int64 batches, int64 segment_tokens, float scale_factor, double* partials)
{
    extern __shared__ __align__(16) float shared[];
    __shared__ float powers[POWERS];
    __shared__ double scratch[WARP];
    float *q_tile = shared, *k_tile = shared + TILE_FLOATS, *v_tile = shared + 2 * TILE_FLOATS, *d_tile = shared + 3 * TILE_FLOATS;
    const int tx = threadIdx.x % SIDE, ty = threadIdx.x / SIDE;
    const int slices = (value_width + TILE - 1) / TILE, slabs = (width + TILE - 1) / TILE;
    const int column = blockIdx.x % slices * TILE, row = blockIdx.x / slices % slabs * TILE;
    const int64 state = blockIdx.x / (slices * slabs);  // (segment, b, h)
    const int64 head = state % heads, batch = state / heads % batches, key_head = head / (heads / key_heads);
    const Segment segment = segment_of(state / heads / batches, segment_tokens, tokens, 0);
    const int64 offset = state * width * value_width;
    const HeadColumns q_columns = head_columns(q, batch, tokens, heads, head, width, row), d_columns = head_columns(d_out, batch, tokens, heads, head, value_width, column);
    const HeadColumns k_columns = head_columns(k, batch, tokens, key_heads, key_head, width, row);
    const HeadColumns v_columns = head_columns(v, batch, tokens, key_heads, key_head, value_width, column);

    decay_powers(decay[head], powers);
    Fragment s = state_fragment(entering + offset, row + 4 * ty, column + 4 * tx, width, value_width), t = {};
    double total = 0.0;
    for (int chunk = 0; chunk < segment.chunks(); ++chunk) {
        const int rows = segment.rows(chunk);
        const int64 token = segment.token(chunk);
        load_tile(q_columns, token, 1, rows, q_tile);
        load_tile(k_columns, token, 1, rows, k_tile);
        load_tile(v_columns, token, 1, rows, v_tile);
        load_tile(d_columns, token, 1, rows, d_tile);
        __syncthreads();

        Fragment by_t = {}, by_s = {};
        outer(q_tile, d_tile, rows, tx, ty, [&](int i) { return powers[i + 1]; }, by_t);
        outer(q_tile, d_tile, rows, tx, ty, [&](int i) { return slope(powers, i + 1); }, by_s);
        total += (double)scale_factor * (dot(by_t, t) + dot(by_s, s) + intra(q_tile, k_tile, v_tile, d_tile, powers, tx, ty));

        weigh(t, [&](int, int) { return powers[rows]; });
#pragma unroll
        for (int i = 0; i < 4; ++i)
#pragma unroll
            for (int j = 0; j < 4; ++j) t.at[i][j] = fmaf(slope(powers, rows), s.at[i][j], t.at[i][j]);
        outer(k_tile, v_tile, rows, tx, ty, [&](int i) { return slope(powers, rows - 1 - i); }, t);
        weigh(s, [&](int, int) { return powers[rows]; });
        outer(k_tile, v_tile, rows, tx, ty, [&](int i) { return powers[rows - 1 - i]; }, s);
        __syncthreads();
    }
    total += dot(t, state_fragment(leaving + offset, row + 4 * ty, column + 4 * tx, width, value_width));
    total = block_reduce(total, 0.0, scratch, Sum());
    if (threadIdx.x == 0) partials[blockIdx.x] = total;
}

// d_decay[h] = sum of the partials [units, H, tiles] over units (segment, b) and tiles, in that order. Launch: one warp per head, one per block.
KERNEL linear_attention_bwd_decay_per_head_sum(const double* partials, int64 units, int heads, int tiles, float* d_decay)
{
    const int64 head = blockIdx.x;
    double sum = 0.0;
    for (int64 i = threadIdx.x; i < units * tiles; i += WARP) sum += partials[(i / tiles * heads + head) * tiles + i % tiles];
    sum = warp_reduce(sum, Sum());
    if (threadIdx.x == 0) d_decay[head] = (float)sum;
}
