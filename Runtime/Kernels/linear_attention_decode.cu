// One step of generation: the next token of every sequence through its states, which change in place.
//     S = exp(g) . S + k^T v            o = scale * q S
// q [B, H, D], k [B, Hk, D], v [B, Hk, E], o [B, H, E] of the element type; state S [B, H, D, E] fp32; D, E <= 256. Query head h reads key head h / (H / Hk).
// decay g, fp32: element (b, h, d) lies at b * decay_batch + h * decay_head + d * decay_channel, so that a stride of 0 shares it; null is no decay.
// Bound by the state's bytes, each read and written once. Launch: grid (B * H, ceil(E / 64)), blocks of 256 threads: 16 threads of 4 columns side by side,
// 16 rows at a time. fp32, deterministic: a column is summed over its rows in a fixed order.
#include "common.cuh"

constexpr int QUAD = 4;       // columns of one thread: 16 bytes of state
constexpr int LANES = 16;     // threads across a slice of columns
constexpr int COLUMNS = QUAD * LANES;
constexpr int THREADS = 256;
constexpr int ROWS = THREADS / LANES;
constexpr int IN_FLIGHT = 8;  // rows that a thread reads before it uses the first
constexpr int MAX_WIDTH = 256;

// Columns [0, count) of a row at s; `whole` when all four are there and 16-byte aligned.
__device__ __forceinline__ float4 load_quad(const float* s, bool whole, int count)
{
    if (whole) return *(const float4*)s;
    return make_float4(count > 0 ? s[0] : 0.0f, count > 1 ? s[1] : 0.0f, count > 2 ? s[2] : 0.0f, count > 3 ? s[3] : 0.0f);
}

__device__ __forceinline__ void store_quad(float4 x, float* s, bool whole, int count)
{
    if (whole) {
        *(float4*)s = x;
        return;
    }
    if (count > 0) s[0] = x.x;
    if (count > 1) s[1] = x.y;
    if (count > 2) s[2] = x.z;
    if (count > 3) s[3] = x.w;
}

KERNEL __launch_bounds__(THREADS) linear_attention_decode(
    const element* q, const element* k, const element* v, const float* decay, int64 decay_batch, int64 decay_head, int64 decay_channel, int64 heads, int64 key_heads,
    int width, int value_width, float scale, float* state, element* o)
{
    __shared__ float queries[MAX_WIDTH], keys[MAX_WIDTH], factors[MAX_WIDTH];
    __shared__ float sums[THREADS / WARP][COLUMNS];
    const int64 head = blockIdx.x % heads, batch = blockIdx.x / heads, key_row = batch * key_heads + head / (heads / key_heads);
    const int lane = threadIdx.x % LANES, row = threadIdx.x / LANES;
    const int column = blockIdx.y * COLUMNS + lane * QUAD, count = value_width - column;
    const bool whole = count >= QUAD && value_width % QUAD == 0 && ((unsigned long long)state & 15) == 0;
    float* s = state + (int64)blockIdx.x * width * value_width + column;

    float4 value = make_float4(0.0f, 0.0f, 0.0f, 0.0f), sum = value;
    for (int first = 0; first < width; first += ROWS * IN_FLIGHT) {
        float4 rows[IN_FLIGHT];
#pragma unroll
        for (int j = 0; j < IN_FLIGHT; ++j) {
            const int d = first + j * ROWS + row;
            if (d < width) rows[j] = load_quad(s + (int64)d * value_width, whole, count);
        }
        if (first == 0) {  // the states are on their way
            for (int d = threadIdx.x; d < width; d += THREADS) {
                queries[d] = to_float(q[blockIdx.x * (int64)width + d]);
                keys[d] = to_float(k[key_row * width + d]);
                factors[d] = decay ? expf(decay[batch * decay_batch + head * decay_head + d * decay_channel]) : 1.0f;
            }
            const element* from = v + key_row * value_width + column;
            value = make_float4(count > 0 ? to_float(from[0]) : 0.0f, count > 1 ? to_float(from[1]) : 0.0f, count > 2 ? to_float(from[2]) : 0.0f, count > 3 ? to_float(from[3]) : 0.0f);
            __syncthreads();
        }
#pragma unroll
        for (int j = 0; j < IN_FLIGHT; ++j) {
            const int d = first + j * ROWS + row;
            if (d >= width) continue;
            const float a = factors[d], key = keys[d], query = queries[d];
            float4 x = rows[j];
            x.x = fmaf(a, x.x, key * value.x), x.y = fmaf(a, x.y, key * value.y), x.z = fmaf(a, x.z, key * value.z), x.w = fmaf(a, x.w, key * value.w);
            store_quad(x, s + (int64)d * value_width, whole, count);
            sum.x = fmaf(query, x.x, sum.x), sum.y = fmaf(query, x.y, sum.y), sum.z = fmaf(query, x.z, sum.z), sum.w = fmaf(query, x.w, sum.w);
        }
    }

    const float columns[QUAD] = { sum.x, sum.y, sum.z, sum.w };
#pragma unroll
    for (int j = 0; j < QUAD; ++j) {
        const float both = columns[j] + __shfl_xor_sync(0xFFFFFFFFu, columns[j], LANES);  // the warp's two rows
        if (threadIdx.x % WARP < LANES) sums[threadIdx.x / WARP][lane * QUAD + j] = both;
    }
    __syncthreads();
    const int e = blockIdx.y * COLUMNS + threadIdx.x;
    if (threadIdx.x >= COLUMNS || e >= value_width) return;
    float total = 0.0f;
#pragma unroll
    for (int warp = 0; warp < THREADS / WARP; ++warp) total += sums[warp][threadIdx.x];
    from_float(scale * total, o[blockIdx.x * (int64)value_width + e]);
}
