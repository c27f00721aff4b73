// Sum and sum of squares of a flat tensor, in fp64: first one partial sum per block over its own slab, then one block adds the partials.
// Launch: reduction_partial with any number of blocks of 256 threads, reduction_final with one block of 256.
// Deterministic: the slabs, and the order within them, depend on the count of elements and blocks alone.
#include "common.cuh"

// partials[block] = sum over the block's slab of x (square = 0) or x*x (1); `slab` elements per block, a multiple of 8
KERNEL reduction_partial(const element* x, int64 count, int64 slab, int square, double* partials)
{
    __shared__ double scratch[WARP];
    const int64 first = blockIdx.x * slab;
    const int64 length = count - first < slab ? count - first : slab;
    const bool packs = packs_fit(PACK, x) && length % PACK == 0;
    double sum = 0.0;
    for_each_column(length, threadIdx.x, blockDim.x, packs, [&](int64 i, auto lanes) {
        const auto p = load(x + first + i, lanes);
#pragma unroll
        for (int j = 0; j < lanes.count; ++j) sum += square ? (double)p.at[j] * p.at[j] : (double)p.at[j];
    });
    sum = block_reduce(sum, 0.0, scratch, Sum());
    if (threadIdx.x == 0) partials[blockIdx.x] = sum;
}

// result[0] = sum of the partials, plus result[0] itself when accumulate = 1
KERNEL reduction_final(const double* partials, int count, int accumulate, float* result)
{
    __shared__ double scratch[WARP];
    double sum = 0.0;
    for (int i = threadIdx.x; i < count; i += blockDim.x) sum += partials[i];
    sum = block_reduce(sum, 0.0, scratch, Sum());
    if (threadIdx.x == 0) result[0] = (float)(sum + (accumulate ? (double)result[0] : 0.0));
}
