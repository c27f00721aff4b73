// The state that a run of tokens leaves behind, and how the states of its segments compose.
//     forward (reverse = 0)      M = sum_i exp(G_N - G_i) scale k_i^T v_i          the state left by the run, entered with zero
//     backward (reverse = 1)     M = sum_i exp(G_i) scale k_i^T v_i                with k = q and v = dO: the gradient of the entering state
// k [B, N, Hk, D], v [B, N, Hk, E], decay [H] fp32 (log decay) or null, states [segments, B, H, D, E] fp32; G_i = i * decay, i = 1..N.
// Both directions are one recursion over the tokens in processing order, M = exp(g) M + k^T v, except that backwards the decay of a token
// acts after the token, so each weight has one more power of exp(g): `reverse` is also that number.
// The run is cut into segments of segment_tokens tokens (a multiple of 64), which compose as pairs (A, M).
// fp32 accumulation in a fixed order: token by token within sub-chunks of 64, sub-chunk by sub-chunk, segment by segment.
#include "attention_tiles.cuh"

// Launch: 256 threads; one block per (segment, b, h, 64 columns of D, 64 columns of E), the last of these fastest.
KERNEL __launch_bounds__(THREADS) linear_attention_state(
    const element* k, const element* v, const float* decay, int64 tokens, int heads, int key_heads, int width, int value_width, int64 batches, int64 segment_tokens,
    int reverse, float scale_factor, float* states)
{
    __shared__ __align__(16) float k_tile[TILE_FLOATS], v_tile[TILE_FLOATS];
    __shared__ float powers[POWERS];
    const int tx = threadIdx.x % SIDE, ty = threadIdx.x / SIDE;
    const int slices = (value_width + TILE - 1) / TILE, slabs = (width + TILE - 1) / TILE;
    const int column = blockIdx.x % slices * TILE, row = blockIdx.x / slices % slabs * TILE;
    const int64 state = blockIdx.x / (slices * slabs);  // (segment, b, h)
    const int64 head = state % heads, batch = state / heads % batches;
    const Segment segment = segment_of(state / heads / batches, segment_tokens, tokens, reverse);
    const int64 key_head = head / (heads / key_heads);
    const HeadColumns k_columns = head_columns(k, batch, tokens, key_heads, key_head, width, row);
    const HeadColumns v_columns = head_columns(v, batch, tokens, key_heads, key_head, value_width, column);

    decay_powers(decay, head, powers);
    Fragment sum = {};
    for (int chunk = 0; chunk < segment.chunks(); ++chunk) {
        const int rows = segment.rows(chunk);
        load_tile(k_columns, segment.token(chunk), segment.direction(), rows, k_tile);
        load_tile(v_columns, segment.token(chunk), segment.direction(), rows, v_tile);
        __syncthreads();
        scale(powers[rows], sum);
        outer(k_tile, v_tile, rows, tx, ty, [&](int t) { return scale_factor * powers[rows - 1 - t + reverse]; }, sum);
        __syncthreads();
    }

    float* out = states + state * width * value_width;
#pragma unroll
    for (int i = 0; i < 4; ++i)
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            const int d = row + 4 * ty + i, e = column + 4 * tx + j;
            if (d < width && e < value_width) out[(int64)d * value_width + e] = sum.at[i][j];
        }
}

// P = initial (null: zero); for each segment in processing order: entering[segment] = P, P = fma(A, P, M) with A = exp(its tokens * decay); final = P.
// states and entering [segments, B, H, D, E], or [.., E, D] for entering when transpose = 1; initial and final [B, H, D, E];
// entering and final may be null, and so may states when there is one segment and no final. Launch: one thread per (b, h, d, e).
KERNEL linear_attention_enter(
    const float* states, const float* decay, const float* initial, int64 tokens, int64 batches, int heads, int width, int value_width, int64 segments,
    int64 segment_tokens, int reverse, int transpose, float* entering, float* final)
{
    const int64 i = global_thread(), size = (int64)width * value_width, count = batches * heads * size;
    if (i >= count) return;
    const int64 state = i / size, d = i % size / value_width, e = i % value_width;
    const int64 to = transpose ? state * size + e * width + d : i;
    const double g = decay ? (double)decay[state % heads] : 0.0;
    float p = initial ? initial[i] : 0.0f;
    for (int64 place = 0; place < segments; ++place) {
        const int64 s = reverse ? segments - 1 - place : place;
        const int64 left = tokens - s * segment_tokens;
        const float a = (float)exp((double)(left < segment_tokens ? left : segment_tokens) * g);
        const float m = states ? states[s * count + i] : 0.0f;
        if (entering) entering[s * count + to] = p;
        p = fmaf(a, p, m);
    }
    if (final) final[i] = p;
}
