// The fp32 engine of product_tiles.cuh, on the fragments of attention_tiles.cuh, for every element type; operands may carry weights.
#ifndef LASP_PRODUCT_TILES_FP32
#define LASP_PRODUCT_TILES_FP32

constexpr int BLOCK = THREADS;
constexpr int RESIDENT = 2;           // blocks that a multiprocessor should hold at least
constexpr int ROWS = 4, COLUMNS = 4;  // of a 64 x 64 product, one thread's elements
constexpr int ROW_LANES = SIDE;       // neighbouring lanes that share their rows
constexpr int OPERAND_TILE = TILE_FLOATS;

typedef float operand;
typedef Fragment Products;

__device__ __forceinline__ int row_of(int i) { return threadIdx.x / SIDE + SIDE * i; }

__device__ __forceinline__ int column_of(int j) { return threadIdx.x % SIDE + SIDE * j; }  // of a product a b^T

__device__ __forceinline__ int output_column_of(int j) { return threadIdx.x % SIDE * 4 + j; }  // of a slice of the output

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
    const A& a, int64 a_token, int a_rows, const B& b, int64 b_token, int b_rows, float* a_tile, float* b_tile, Products& products)
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

// The products of correlate_rows into a tile, by the owners of its elements.
__device__ __forceinline__ void store_products(const Products& products, float* tile)
{
#pragma unroll
    for (int i = 0; i < ROWS; ++i)
#pragma unroll
        for (int j = 0; j < COLUMNS; ++j) tile[row_of(i) * PITCH + column_of(j)] = products.at[i][j];
}

// out += products x over the first SPAN columns of x. The caller need not synchronise after writing the products; the tiles are free on exit.
template <typename X> __device__ __forceinline__ void multiply_rows(const float* products, const X& x, int64 token, int rows, float* x_tile, Products (&out)[SLICES])
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

#endif
