// What the softmax-attention kernels share: which keys a query sees, scores of a 64 x 64 tile of (queries, keys) or (keys, queries), and products with such a tile.
// Operands stream through two tiles of shared memory, 64 columns at a time, so that heads of any width need no more. A block makes SPAN columns of its output.
// ranges [C, 2]: query i sees the keys whose global index lies in [ranges[i, 0], ranges[i, 1]]; key j of the call has global index first_key + j.
#ifndef LASP_SOFTMAX_TILES
#define LASP_SOFTMAX_TILES
#include "attention_tiles.cuh"

constexpr int SLICES = 2;  // slices of TILE columns that a block accumulates in registers
constexpr int SPAN = SLICES * TILE;

__device__ __forceinline__ int64 tiles_of(int64 tokens) { return (tokens + TILE - 1) / TILE; }

__device__ __forceinline__ int rows_from(int64 token, int64 tokens) { return tokens - token < TILE ? (int)(tokens - token) : TILE; }

// The visible keys of each query of a tile, as indices of the call's keys; a query that sees none, or does not exist, has first > last.
struct Visibility {
    int first[TILE], last[TILE];

    __device__ __forceinline__ bool sees(int query, int key) const { return first[query] <= key && key <= last[query]; }
};

// By the first 64 threads; the caller synchronises.
__device__ __forceinline__ void load_visibility(const int64* ranges, int64 token, int rows, int64 first_key, int keys, Visibility& seen)
{
    if (threadIdx.x >= TILE) return;
    const int query = threadIdx.x;
    int64 first = keys, last = -1;
    if (query < rows) {
        first = ranges[2 * (token + query)] - first_key;
        last = ranges[2 * (token + query) + 1] - first_key;
        if (first < 0) first = 0;
        if (last > keys - 1) last = keys - 1;
        if (first > last) first = keys, last = -1;
    }
    seen.first[query] = (int)first;
    seen.last[query] = (int)last;
}

// From the first key to the last that any query of the tile sees; empty where first > last. Every thread gets it.
struct KeySpan { int first, last; };

__device__ __forceinline__ KeySpan seen_by_any(const Visibility& seen)
{
    const int lane = threadIdx.x % WARP;
    const auto least = [](int a, int b) { return a < b ? a : b; };
    const auto most = [](int a, int b) { return a > b ? a : b; };
    return { warp_reduce(least(seen.first[lane], seen.first[lane + WARP]), least), warp_reduce(most(seen.last[lane], seen.last[lane + WARP]), most) };
}

// products += a b^T over all columns of two runs of tokens: rows of a down, rows of b across. All threads are in step on exit, and the tiles are free.
__device__ __forceinline__ void correlate_rows(
    const HeadColumns& a, int64 a_token, int a_rows, const HeadColumns& b, int64 b_token, int b_rows, float* a_tile, float* b_tile, Fragment& products)
{
    const int tx = threadIdx.x % SIDE, ty = threadIdx.x / SIDE;
    for (int column = 0; column < a.columns; column += TILE) {
        load_tile(a.from(column), a_token, 1, a_rows, a_tile);
        load_tile(b.from(column), b_token, 1, b_rows, b_tile);
        __syncthreads();
        correlate(a_tile, b_tile, tx, ty, products);
        __syncthreads();
    }
}

// A fragment of correlate_rows into a tile, by the owners of its elements.
__device__ __forceinline__ void store_products(const Fragment& products, float* tile)
{
    const int tx = threadIdx.x % SIDE, ty = threadIdx.x / SIDE;
#pragma unroll
    for (int i = 0; i < 4; ++i)
#pragma unroll
        for (int j = 0; j < 4; ++j) tile[(ty + SIDE * i) * PITCH + tx + SIDE * j] = products.at[i][j];
}

// out += products x over the first SPAN columns of x. The caller need not synchronise after writing the products; the tiles are free on exit.
__device__ __forceinline__ void multiply_rows(const float* products, const HeadColumns& x, int64 token, int rows, float* x_tile, Fragment (&out)[SLICES])
{
    const int tx = threadIdx.x % SIDE, ty = threadIdx.x / SIDE;
    const float ones[4] = { 1.0f, 1.0f, 1.0f, 1.0f };
#pragma unroll
    for (int s = 0; s < SLICES; ++s) {
        if (s * TILE < x.columns) {
            load_tile(x.from(s * TILE), token, 1, rows, x_tile);
            __syncthreads();
            multiply(products, x_tile, tx, ty, ones, out[s]);
            __syncthreads();
        }
    }
}

// to(i, row, column, value) for every element of this thread that exists; i counts its rows.
template <typename To> __device__ __forceinline__ void for_each_output(const Fragment (&out)[SLICES], int rows, int columns, To to)
{
    const int tx = threadIdx.x % SIDE, ty = threadIdx.x / SIDE;
#pragma unroll
    for (int s = 0; s < SLICES; ++s)
#pragma unroll
        for (int i = 0; i < 4; ++i)
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                const int row = ty + SIDE * i, column = s * TILE + 4 * tx + j;
                if (row < rows && column < columns) to(i, row, column, out[s].at[i][j]);
            }
}

#endif
