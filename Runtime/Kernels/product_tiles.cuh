// What the attention kernels without a state share: a b^T for a 64 x 64 tile of pairs of tokens, and products of such a tile with a third operand.
// Operands stream through two tiles of shared memory, 64 columns at a time, so that heads of any width need no more. A block makes SPAN columns of its output.
// Two engines speak this vocabulary: fp32 arithmetic, and tensor cores where LASP_TENSOR_PRODUCTS is 1.
//   BLOCK, RESIDENT                         threads of a block, and how many blocks a multiprocessor should hold
//   operand tile[OPERAND_TILE]              64 tokens of 64 columns in shared memory
//   Products                                one thread's ROWS x COLUMNS of a 64 x 64 product, at row_of(i) and column_of(j), or output_column_of(j) of an output's slice
//   correlate_rows, store_products, multiply_rows
#ifndef LASP_PRODUCT_TILES
#define LASP_PRODUCT_TILES
#include "attention_tiles.cuh"

constexpr int SLICES = 2;  // slices of TILE columns that a block accumulates in registers
constexpr int SPAN = SLICES * TILE;

__device__ __forceinline__ int64 tiles_of(int64 tokens) { return (tokens + TILE - 1) / TILE; }

__device__ __forceinline__ int rows_from(int64 token, int64 tokens) { return tokens - token < TILE ? (int)(tokens - token) : TILE; }

#if LASP_TENSOR_PRODUCTS
#include "product_tiles_tensor.cuh"
#else
#include "product_tiles_fp32.cuh"
#endif

// to(i, row, column, value) for every element of this thread that exists; i counts its rows.
template <typename To> __device__ __forceinline__ void for_each_output(const Products (&out)[SLICES], int rows, int columns, To to)
{
#pragma unroll
    for (int s = 0; s < SLICES; ++s)
#pragma unroll
        for (int i = 0; i < ROWS; ++i)
#pragma unroll
            for (int j = 0; j < COLUMNS; ++j) {
                const int row = row_of(i), column = s * TILE + output_column_of(j);
                if (row < rows && column < columns) to(i, row, column, out[s].at[i][j]);
            }
}

#endif
