// One step of generation: the next token of every sequence through its states, which change in place.
//     S = exp(g) . S + k^T v            o = scale * q S
// q [B, H, D], k [B, Hk, D], v [B, Hk, E], o [B, H, E] of the element type; state S [B, H, D, E] fp32; D, E <= 256. Query head h reads key head h / (H / Hk).
// decay g, fp32: element (b, h, d) lies at b * decay_batch + h * decay_head + d * decay_channel, so that a stride of 0 shares it; null is no decay.
// Bound by the state's bytes, each read and written once. A thread owns N columns of every ROWS-th row: 4 where rows are made of 16-byte quads, else 1 (.._any).
// Launch: grid (B * H, E / (16 N)), blocks of 256 threads, 16 side by side. fp32, deterministic: a column is summed over its rows in a fixed order.
#include "common.cuh"

constexpr int LANES = 16;     // threads across a slice of columns
constexpr int THREADS = 256;
constexpr int ROWS = THREADS / LANES;
constexpr int IN_FLIGHT = 4;  // rows that a thread reads before it uses the first
constexpr int MAX_WIDTH = 256;

struct DecodeArguments {
    const element *q, *k, *v;
    const float* decay;
    int64 decay_batch, decay_head, decay_channel, heads, key_heads;
    int width, value_width;
    float scale;
    float* state;
    element* o;
};

__device__ __forceinline__ Pack<1> read_columns(const float* s, Lanes<1>) { return { { *s } }; }

__device__ __forceinline__ Pack<4> read_columns(const float* s, Lanes<4>)
{
    const float4 x = *(const float4*)s;
    return { { x.x, x.y, x.z, x.w } };
}

__device__ __forceinline__ void write_columns(const Pack<1>& x, float* s) { *s = x.at[0]; }

__device__ __forceinline__ void write_columns(const Pack<4>& x, float* s) { *(float4*)s = make_float4(x.at[0], x.at[1], x.at[2], x.at[3]); }

template <int N> __device__ __forceinline__ void decode(const DecodeArguments& a)
{
    __shared__ float queries[MAX_WIDTH], keys[MAX_WIDTH], factors[MAX_WIDTH];
    __shared__ float sums[THREADS / WARP][LANES * N];
    const unsigned head = blockIdx.x % (unsigned)a.heads, batch = blockIdx.x / (unsigned)a.heads;
    const int64 key_row = batch * a.key_heads + head / ((unsigned)a.heads / (unsigned)a.key_heads);
    const int lane = threadIdx.x % LANES, column = (blockIdx.y * LANES + lane) * N;
    const int width = column < a.value_width ? a.width : 0;  // rows of this thread's columns
    float* s = a.state + (int64)blockIdx.x * a.width * a.value_width + column;

    Pack<N> value = {}, sum = {};
#pragma unroll 1
    for (int first = threadIdx.x / LANES; first - (int)threadIdx.x / LANES < a.width; first += ROWS * IN_FLIGHT) {
        Pack<N> rows[IN_FLIGHT];
#pragma unroll
        for (int j = 0; j < IN_FLIGHT; ++j)
            if (first + j * ROWS < width) rows[j] = read_columns(s + (first + j * ROWS) * a.value_width, Lanes<N>());
        if (first < ROWS) {  // the states are on their way
            if (width > 0)
#pragma unroll
                for (int j = 0; j < N; ++j) value.at[j] = to_float(a.v[key_row * a.value_width + column + j]);
#pragma unroll 1
            for (int d = threadIdx.x; d < a.width; d += THREADS) {
                queries[d] = to_float(a.q[blockIdx.x * (int64)a.width + d]);
                keys[d] = to_float(a.k[key_row * a.width + d]);
                factors[d] = a.decay ? expf(a.decay[batch * a.decay_batch + head * a.decay_head + d * a.decay_channel]) : 1.0f;
            }
            __syncthreads();
        }
#pragma unroll
        for (int j = 0; j < IN_FLIGHT; ++j) {
            const int d = first + j * ROWS;
            if (d >= width) continue;
#pragma unroll
            for (int c = 0; c < N; ++c) {
                rows[j].at[c] = fmaf(factors[d], rows[j].at[c], keys[d] * value.at[c]);
                sum.at[c] = fmaf(queries[d], rows[j].at[c], sum.at[c]);
            }
            write_columns(rows[j], s + d * a.value_width);
        }
    }

#pragma unroll
    for (int c = 0; c < N; ++c) {
#pragma unroll
        for (int distance = LANES; distance < WARP; distance *= 2) sum.at[c] += __shfl_xor_sync(0xFFFFFFFFu, sum.at[c], distance);  // the warp's rows
        if (threadIdx.x % WARP < LANES) sums[threadIdx.x / WARP][lane * N + c] = sum.at[c];
    }
    __syncthreads();
    const int e = blockIdx.y * LANES * N + threadIdx.x;
    if (threadIdx.x >= LANES * N || e >= a.value_width) return;
    float total = 0.0f;
#pragma unroll
    for (int warp = 0; warp < THREADS / WARP; ++warp) total += sums[warp][threadIdx.x];
    from_float(a.scale * total, a.o[blockIdx.x * (int64)a.value_width + e]);
}

#define DECODE(name, columns) \
    KERNEL __launch_bounds__(THREADS, 4) name( \
        const element* q, const element* k, const element* v, const float* decay, int64 decay_batch, int64 decay_head, int64 decay_channel, int64 heads, int64 key_heads, \
        int width, int value_width, float scale, float* state, element* o) \
    { \
        decode<columns>({ q, k, v, decay, decay_batch, decay_head, decay_channel, heads, key_heads, width, value_width, scale, state, o }); \
    }

DECODE(linear_attention_decode, 4)
DECODE(linear_attention_decode_any, 1)
