// Products of panels (wgmma.cuh) by mma.sync, for GPUs without wgmma. A warp holds sums in strips of 16 rows, whose blocks of 8 columns lie in lanes as mma.cuh says.
#ifndef LASP_MMA_PANELS
#define LASP_MMA_PANELS
#include "mma.cuh"
#include "stages.cuh"

template <int COLUMNS> struct Strip { MmaSums at[COLUMNS / MMA_COLUMNS]; };

// Half h of the s-th strip is half 2 s + h.
__device__ __forceinline__ int strip_row(int half) { return threadIdx.x % WARP / 4 + 8 * half; }

__device__ __forceinline__ int strip_column(int block, int i) { return 8 * block + threadIdx.x % 4 * 2 + i; }

// A lane's place in a tile of panels of ROWS rows: of 16-byte packs `pack` (0 or 1), and by at() those an even number further.
template <int ROWS> struct TilePlace {
    unsigned start;

    __device__ __forceinline__ TilePlace(unsigned tile, int row, int pack) : start(tile + panel_offset(row, pack))
    {
        asm volatile("" : "+r"(start));  // so that the places of all packs are not kept in registers
    }

    __device__ __forceinline__ unsigned at(int packs, int rows = 0) const { return (start ^ packs % 8 << 4) + packs / 8 * ROWS * PANEL_ROW + rows * PANEL_ROW; }
};

// sums += a b^T over 16 columns, the 2 packs from 2 step on: a's operands of each strip by left(s), COLUMNS rows of b at `right`.
template <int B_ROWS, int COLUMNS, int STRIPS, typename Left> __device__ __forceinline__ void correlate_step(const Left& left, const TilePlace<B_ROWS>& right, int step, Strip<COLUMNS> (&sums)[STRIPS])
{
#pragma unroll
    for (int block = 0; block < COLUMNS / 8; block += 2) {
        unsigned b[4];  // of rows 8 block and on, and of the next 8
        load_matrices(right.at(2 * step, 8 * block), b);
#pragma unroll
        for (int s = 0; s < STRIPS; ++s) {
            multiply_add(left(s), b[0], b[1], sums[s].at[block]);
            multiply_add(left(s), b[2], b[3], sums[s].at[block + 1]);
        }
    }
}

// sums += a b^T over D columns: STRIPS * 16 rows of a from a_first on, COLUMNS rows of b from b_first on.
template <int A_ROWS, int B_ROWS, int D, int COLUMNS, int STRIPS>
__device__ __forceinline__ void correlate(unsigned a_tile, int a_first, unsigned b_tile, int b_first, Strip<COLUMNS> (&sums)[STRIPS])
{
    const int lane = threadIdx.x % WARP;
    const TilePlace<A_ROWS> left(a_tile, a_first + lane % 16, lane / 16);
    const TilePlace<B_ROWS> right(b_tile, b_first + lane % 8 + lane / 16 * 8, lane / 8 % 2);
#pragma unroll
    for (int step = 0; step < D / 16; ++step) {
        unsigned a[STRIPS][4];
#pragma unroll
        for (int s = 0; s < STRIPS; ++s) load_matrices(left.at(2 * step, 16 * s), a[s]);
        correlate_step<B_ROWS>([&](int s) -> const unsigned(&)[4] { return a[s]; }, right, step, sums);
    }
}

// A strip's rows as left operands of D columns, kept in registers: for a that meets many b.
template <int D> struct HeldRows { unsigned at[D / 16][4]; };

template <int A_ROWS, int D, int STRIPS> __device__ __forceinline__ void load_rows(unsigned a_tile, int a_first, HeldRows<D> (&rows)[STRIPS])
{
    const int lane = threadIdx.x % WARP;
    const TilePlace<A_ROWS> place(a_tile, a_first + lane % 16, lane / 16);
#pragma unroll
    for (int s = 0; s < STRIPS; ++s)
#pragma unroll
        for (int step = 0; step < D / 16; ++step) load_matrices(place.at(2 * step, 16 * s), rows[s].at[step]);
}

// sums += a b^T over D columns, COLUMNS rows of b from b_first on.
template <int B_ROWS, int D, int COLUMNS, int STRIPS> __device__ __forceinline__ void correlate(const HeldRows<D> (&a)[STRIPS], unsigned b_tile, int b_first, Strip<COLUMNS> (&sums)[STRIPS])
{
    const int lane = threadIdx.x % WARP;
    const TilePlace<B_ROWS> right(b_tile, b_first + lane % 8 + lane / 16 * 8, lane / 8 % 2);
#pragma unroll
    for (int step = 0; step < D / 16; ++step)
        correlate_step<B_ROWS>([&](int s) -> const unsigned(&)[4] { return a[s].at[step]; }, right, step, sums);
}

// out += left x, left rounded to bf16; x is ROWS rows from x_first on, a multiple of 8, and D columns.
template <int X_ROWS, int ROWS, int D, int STRIPS>
__device__ __forceinline__ void multiply(const Strip<ROWS> (&left)[STRIPS], unsigned x_tile, int x_first, Strip<D> (&out)[STRIPS])
{
    const int lane = threadIdx.x % WARP;
    const TilePlace<X_ROWS> right(x_tile, x_first + lane % 16, lane / 16);
#pragma unroll
    for (int step = 0; step < ROWS / 16; ++step) {
        unsigned a[STRIPS][4];
#pragma unroll
        for (int s = 0; s < STRIPS; ++s)
#pragma unroll
            for (int i = 0; i < 4; ++i) a[s][i] = pack_bf16(left[s].at[2 * step + i / 2].at[i % 2 * 2], left[s].at[2 * step + i / 2].at[i % 2 * 2 + 1]);
#pragma unroll
        for (int block = 0; block < D / 8; block += 2) {
            unsigned b[4];  // of columns 8 block and on, and of the next 8
            load_matrices_transposed(right.at(block, 16 * step), b);
#pragma unroll
            for (int s = 0; s < STRIPS; ++s) {
                multiply_add(a[s], b[0], b[1], out[s].at[block]);
                multiply_add(a[s], b[2], b[3], out[s].at[block + 1]);
            }
        }
    }
}

#endif
