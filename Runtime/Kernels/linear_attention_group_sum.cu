// Sums over the query heads that share a key head: y[b, n, hk, d] = sum of x[b, n, h, d] over the heads h of group hk, in their order.
// x [B, N, H, D] and y [B, N, Hk, D] bf16 (D may be E), D a multiple of 8, both at multiples of 16 bytes. fp32 sums.
// Launch: one thread per 8 elements of y, blocks of any size along x.
#include "common.cuh"
#if LASP_ELEMENT_BF16 && __CUDA_ARCH__ >= 900  // what sums over groups inside its walk needs none of this

KERNEL linear_attention_group_sum(const bf16* x, int group, int width, int64 count, bf16* y)
{
    constexpr Lanes<PACK> lanes;
    const int64 i = (blockIdx.x * (int64)blockDim.x + threadIdx.x) * PACK;
    if (i >= count) return;
    const bf16* head = x + i + i / width * (group - 1) * width;
    auto sum = load(head, lanes);
#pragma unroll 4
    for (int j = 1; j < group; ++j) {
        const auto next = load(head += width, lanes);
#pragma unroll
        for (int n = 0; n < PACK; ++n) sum.at[n] += next.at[n];
    }
    store(sum, y + i);
}

#endif
