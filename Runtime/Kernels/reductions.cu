// The sum of a flat tensor, and the sum of squares over many, in fp64: first one partial sum per block, then one block adds the partials. And a sum of two tensors that leaves its squares.
// Launch: sum_partial and squares_partial with any number of blocks of 256 threads, reduction_final with one block of 256, add_squaring with one thread per 8 elements in blocks of 256.
// Deterministic: what a block adds, and the order within it, depend on the counts of elements and blocks alone.
#include "common.cuh"

constexpr int THREADS = 256;
constexpr int UNROLL = 4;
constexpr int CHUNK = THREADS * UNROLL * QUAD;

// One tensor of squares_partial; the element type plays no part there.
struct Row {
    const void* x;  // [elements] fp32 or bf16
    int64 elements;
    int64 end;  // chunks of CHUNK elements of this row and those before it
    int is_bf16, is_packed;
};

// partials[block] = sum of x over the block's slab; `slab` elements per block, a multiple of 8
KERNEL sum_partial(const element* x, int64 count, int64 slab, double* partials)
{
    __shared__ double scratch[WARP];
    const int64 first = blockIdx.x * slab;
    const int64 length = count - first < slab ? count - first : slab;
    const bool packs = packs_fit(PACK, x) && length % PACK == 0;
    double sum = 0.0;
    for_each_column(length, threadIdx.x, blockDim.x, packs, [&](int64 i, auto lanes) {
        const auto p = load(x + first + i, lanes);
#pragma unroll
        for (int j = 0; j < lanes.count; ++j) sum += (double)p.at[j];
    });
    sum = block_reduce(sum, 0.0, scratch, Sum());
    if (threadIdx.x == 0) partials[blockIdx.x] = sum;
}

// The squares of a quad are added in fp32, quads in fp64.
template <typename T> __device__ __forceinline__ double squares(const T* x, int64 first, const Row& row)
{
    double sum = 0.0;
    if (row.is_packed && first + CHUNK <= row.elements) {
        Stored<T, QUAD> quads[UNROLL];
#pragma unroll
        for (int u = 0; u < UNROLL; ++u) quads[u] = fetch(x + first + (u * THREADS + threadIdx.x) * QUAD, Lanes<QUAD>());
#pragma unroll
        for (int u = 0; u < UNROLL; ++u) {
            const Pack<QUAD> p = unpack(quads[u]);
            sum += (double)fmaf(p.at[0], p.at[0], p.at[1] * p.at[1]) + (double)fmaf(p.at[2], p.at[2], p.at[3] * p.at[3]);
        }
    } else {
        const int64 end = first + CHUNK < row.elements ? first + CHUNK : row.elements;
        for (int64 i = first + threadIdx.x; i < end; i += THREADS) sum += (double)to_float(x[i]) * to_float(x[i]);
    }
    return sum;
}

// partials[block] = sum of x*x over every gridDim-th of the `chunks` chunks of all rows
KERNEL __launch_bounds__(THREADS) squares_partial(const Row* rows, int64 chunks, double* partials)
{
    __shared__ double scratch[WARP];
    double sum = 0.0;
    int64 start = 0;  // the row's first chunk
    for (int64 chunk = blockIdx.x; chunk < chunks; chunk += gridDim.x) {
        while (chunk >= rows->end) start = rows++->end;
        const Row row = *rows;
        const int64 first = (chunk - start) * CHUNK;
        sum += row.is_bf16 ? squares((const bf16*)row.x, first, row) : squares((const float*)row.x, first, row);
    }
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

// y = a + b          squares[block] += sum of y*y, of y as it is stored, over the block's elements. Launches that follow one another go on adding to the same squares. y may take the place of a source.
KERNEL __launch_bounds__(THREADS) add_squaring(const element* a, const element* b, int64 count, element* y, float* squares)
{
    __shared__ double scratch[WARP];
    float sum = 0.0f;
    for_each_element(count, packs_fit(PACK, a, b, y), [&](int64 i, auto lanes) {
        auto p = load(a + i, lanes);
        const auto q = load(b + i, lanes);
#pragma unroll
        for (int j = 0; j < lanes.count; ++j) p.at[j] += q.at[j];
        Stored<element, lanes.count> stored;
        pack(p, stored);
        put(stored, y + i);
        p = unpack(stored);
#pragma unroll
        for (int j = 0; j < lanes.count; ++j) sum = fmaf(p.at[j], p.at[j], sum);
    });
    const double total = block_reduce((double)sum, 0.0, scratch, Sum());
    if (threadIdx.x == 0) squares[blockIdx.x] = (float)(total + (double)squares[blockIdx.x]);
}
