// What the attention kernels without a state share: a b^T for a 64 x 64 tile of pairs of tokens, and products of such a tile with a third operand.
// Operands stream through two tiles of shared memory, 64 columns at a time, so that heads of any width need no more. A block makes SPAN columns of its output.
#ifndef LASP_PRODUCT_TILES
#define LASP_PRODUCT_TILES
#include "attention_tiles.cuh"

constexpr int SLICES = 2;  // slices of TILE columns that a block accumulates in registers
constexpr int SPAN = SLICES * TILE;

__device__ __forceinline__ int64 tiles_of(int64 tokens) { return (tokens + TILE - 1) / TILE; }

__device__ __forceinline__ int rows_from(int64 token, int64 tokens) { return tokens - token < TILE ? (int)(tokens - token) : TILE; }

__device__ __forceinline__ void load_rows(const HeadColumns& x, int64 first, int rows, float* tile) { load_tile(x, first, 1, rows, tile); }

// Factors of an operand's elements in fp32, one per token and head or one per channel too; null counts as 1.
struct Weights {
    const float* start;  // of the head's token 0
    int stride, per_channel;

    __device__ __forceinline__ float at(int64 token, int column) const { return start ? start[token * stride + (per_channel ? column : 0)] : 1.0f; }

    __device__ __forceinline__ Weights from(int column) const { return { start && per_channel ? start + column : start, stride, per_channel }; }
};

struct WeightedColumns {
    HeadColumns x;
    Weights weights;
    int columns;

    __device__ __forceinline__ WeightedColumns from(int column) const { return { x.from(column), weights.from(column), columns - column }; }
};

__device__ __forceinline__ void load_rows(const WeightedColumns& x, int64 first, int rows, float* tile)
{
    load_tile(x.x, first, 1, rows, tile);
    if (!x.weights.start) return;
#pragma unroll 1
    for (int p = threadIdx.x; p < rows * (TILE / PACK); p += THREADS) {  // the packs that this thread has loaded
        const int row = p / (TILE / PACK), column = p % (TILE / PACK) * PACK;
#pragma unroll
        for (int j = 0; j < PACK; ++j)
            if (column + j < x.columns) tile[row * PITCH + column + j] *= x.weights.at(first + row, column + j);
    }
}

// products += a b^T over all columns of two runs of tokens: rows of a down, rows of b across. All threads are in step on exit, and the tiles are free.
template <typename A, typename B> __device__ __forceinline__ void correlate_rows(
    const A& a, int64 a_token, int a_rows, const B& b, int64 b_token, int b_rows, float* a_tile, float* b_tile, Fragment& products)
{
    const int tx = threadIdx.x % SIDE, ty = threadIdx.x / SIDE;
    for (int column = 0; column < a.columns; column += TILE) {
        load_rows(a.from(column), a_token, a_rows, a_tile);
        load_rows(b.from(column), b_token, b_rows, b_tile);
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
template <typename X> __device__ __forceinline__ void multiply_rows(const float* products, const X& x, int64 token, int rows, float* x_tile, Fragment (&out)[SLICES])
{
    const int tx = threadIdx.x % SIDE, ty = threadIdx.x / SIDE;
    const float ones[4] = { 1.0f, 1.0f, 1.0f, 1.0f };
#pragma unroll
    for (int s = 0; s < SLICES; ++s) {
        if (s * TILE < x.columns) {
            load_rows(x.from(s * TILE), token, rows, x_tile);
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
