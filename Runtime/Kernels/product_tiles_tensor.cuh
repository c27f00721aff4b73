// The engine of product_tiles.cuh on tensor cores (mma.sync m16n8k16, fp32 sums), for bf16: tiles hold bf16, and what is stored between two products is rounded to it.
// A block has 4 warps; warp w makes rows 16 w to 16 w + 15 of every 64 x 64 product. Lane l holds rows l / 4 and l / 4 + 8 of them, and columns 2 (l % 4) and the next of every 8.
#ifndef LASP_PRODUCT_TILES_TENSOR
#define LASP_PRODUCT_TILES_TENSOR
#include "mma.cuh"

constexpr int BLOCK = 128;
constexpr int RESIDENT = 3;              // blocks that a multiprocessor should hold at least
constexpr int ROWS = 2, COLUMNS = 16;    // of a 64 x 64 product, one thread's elements
constexpr int ROW_LANES = 4;             // neighbouring lanes that share their rows
constexpr int OPERAND_PITCH = TILE + 8;  // bf16 between the rows of a tile: reads of 8 rows meet no bank conflict
constexpr int OPERAND_TILE = TILE * OPERAND_PITCH;
constexpr int STEP = 16;                 // summands of one mma

typedef bf16 operand;

struct Products { float at[ROWS][COLUMNS]; };

__device__ __forceinline__ int row_of(int i) { return threadIdx.x / WARP * 16 + threadIdx.x % WARP / 4 + 8 * i; }

__device__ __forceinline__ int column_of(int j) { return j / 2 * 8 + threadIdx.x % 4 * 2 + j % 2; }

__device__ __forceinline__ int output_column_of(int j) { return column_of(j); }

// ---- Instructions ----

// c += a b for the 8 columns `block` of a thread's products: a 16 x 16, b 16 x 8
__device__ __forceinline__ void multiply_add(const unsigned (&a)[4], unsigned b0, unsigned b1, int block, Products& c)
{
    multiply_add(a, b0, b1, c.at[0] + 2 * block, c.at[1] + 2 * block);
}

// ---- Tiles ----

// Eight consecutive elements, of which `count` exist; the others are zero.
__device__ __forceinline__ uint4 gather(const bf16* x, int count)
{
    unsigned pair[PACK / 2] = {};
#pragma unroll
    for (int j = 0; j < PACK; ++j)
        if (j < count) pair[j / 2] |= (unsigned)x[j] << (16 * (j % 2));
    return make_uint4(pair[0], pair[1], pair[2], pair[3]);
}

// Fills a tile with `rows` tokens of 64 columns. Rows and columns that do not exist become zero.
__device__ __forceinline__ void load_rows(const HeadColumns& x, int64 first, int rows, bf16* tile)
{
    const int thread = thread_again(), row = thread / (TILE / PACK), column = thread % (TILE / PACK) * PACK;  // of this thread's first pack; the others lie below it
    constexpr int STRIDE = BLOCK / (TILE / PACK);
    const bf16* from = (const bf16*)x.start + (first + row) * x.stride + column;
    bf16* to = tile + row * OPERAND_PITCH + column;
    const int columns = x.columns - column;
    if (packs_fit(x.stride, x.start) && x.columns % PACK == 0) {
#pragma unroll
        for (int n = 0; n < TILE; n += STRIDE)
            *(uint4*)(to + n * OPERAND_PITCH) = row + n < rows && columns > 0 ? *(const uint4*)(from + (int64)n * x.stride) : make_uint4(0, 0, 0, 0);
    } else {
#pragma unroll 1
        for (int n = 0; n < TILE; n += STRIDE) *(uint4*)(to + n * OPERAND_PITCH) = gather(from + (int64)n * x.stride, row + n < rows ? columns : 0);
    }
}

// Rows of this warp, columns [step, step + 16) of a tile, as the left operand of an mma.
__device__ __forceinline__ void load_left(const bf16* tile, int step, unsigned (&a)[4])
{
    const int lane = threadIdx.x % WARP;
    load_matrices(shared_address(tile + (threadIdx.x / WARP * 16 + lane % 16) * OPERAND_PITCH + lane / 16 * 8 + step), a);
}

// products += a b^T over all columns of two runs of tokens: rows of a down, rows of b across. All threads are in step on exit, and the tiles are free.
__device__ __forceinline__ void correlate_rows(
    const HeadColumns& a, int64 a_token, int a_rows, const HeadColumns& b, int64 b_token, int b_rows, bf16* a_tile, bf16* b_tile, Products& products)
{
    for (int column = 0; column < a.columns; column += TILE) {
        load_rows(a.from(column), a_token, a_rows, a_tile);
        load_rows(b.from(column), b_token, b_rows, b_tile);
        __syncthreads();
        const int lane = thread_again() % WARP;
        const bf16* right = b_tile + (lane / 16 * 8 + lane % 8) * OPERAND_PITCH + lane / 8 % 2 * 8;
#pragma unroll 1
        for (int step = 0; step < TILE; step += STEP) {
            unsigned left[4];
            load_left(a_tile, step, left);
#pragma unroll
            for (int block = 0; block < TILE / 8; block += 2) {
                unsigned pairs[4];  // of rows 8 block and on, and of the next 8
                load_matrices(shared_address(right + 8 * block * OPERAND_PITCH + step), pairs);
                multiply_add(left, pairs[0], pairs[1], block, products);
                multiply_add(left, pairs[2], pairs[3], block + 1, products);
            }
        }
        __syncthreads();
    }
}

// The products of correlate_rows into a tile, by the owners of its elements.
__device__ __forceinline__ void store_products(const Products& products, bf16* tile)
{
#pragma unroll
    for (int i = 0; i < ROWS; ++i)
#pragma unroll
        for (int j = 0; j < COLUMNS; j += 2) *(unsigned*)(tile + row_of(i) * OPERAND_PITCH + column_of(j)) = pack_bf16(products.at[i][j], products.at[i][j + 1]);
}

// out += products x over the first SPAN columns of x. The caller need not synchronise after writing the products; the tiles are free on exit.
__device__ __forceinline__ void multiply_rows(const bf16* products, const HeadColumns& x, int64 token, int rows, bf16* x_tile, Products (&out)[SLICES])
{
    const int lane = thread_again() % WARP;
    const bf16* right = x_tile + lane % 16 * OPERAND_PITCH + lane / 16 * 8;
#pragma unroll
    for (int s = 0; s < SLICES; ++s) {
        if (s * TILE < x.columns) {
            load_rows(x.from(s * TILE), token, rows, x_tile);
            __syncthreads();
#pragma unroll 1
            for (int step = 0; step < TILE; step += STEP) {
                unsigned left[4];
                load_left(products, step, left);
#pragma unroll
                for (int block = 0; block < TILE / 8; block += 2) {
                    unsigned pairs[4];  // of columns 8 block and on, and of the next 8
                    load_matrices_transposed(shared_address(right + step * OPERAND_PITCH + 8 * block), pairs);
                    multiply_add(left, pairs[0], pairs[1], block, out[s]);
                    multiply_add(left, pairs[2], pairs[3], block + 1, out[s]);
                }
            }
            __syncthreads();
        }
    }
}

#endif
