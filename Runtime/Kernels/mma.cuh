// The warp's matrix product (mma.sync m16n8k16, sm_80 and later): sums [16, 8] in fp32 += a [16, 16] b [16, 8], both bf16. Lane l holds
//     a       rows l / 4 (a[0], a[2]) and l / 4 + 8 (a[1], a[3]), summands 2 (l % 4) and the next (a[0], a[1]), and those + 8 (a[2], a[3])
//     b       column l / 4, summands 2 (l % 4) and the next (b0), and those + 8 (b1)
//     sums    row l / 4 + 8 (i / 2), column 2 (l % 4) + i % 2
// So sums of two neighbouring blocks of 8 columns, packed to bf16, are an a; and the sums of a transposed product are a b.
#ifndef LASP_MMA
#define LASP_MMA
#include "shared_memory.cuh"

constexpr int MMA_ROWS = 16, MMA_COLUMNS = 8, MMA_SUMMANDS = 16;

struct MmaSums { float at[4]; };

// Both rows of a lane's sums, wherever they are kept.
__device__ __forceinline__ void multiply_add(const unsigned (&a)[4], unsigned b0, unsigned b1, float* row, float* row_8)
{
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(row[0]), "+f"(row[1]), "+f"(row_8[0]), "+f"(row_8[1])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

__device__ __forceinline__ void multiply_add(const unsigned (&a)[4], unsigned b0, unsigned b1, MmaSums& sums) { multiply_add(a, b0, b1, sums.at, sums.at + 2); }

#endif
