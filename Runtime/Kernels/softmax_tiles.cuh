// Which keys a query of softmax attention sees. ranges [C, 2]: query i sees the keys whose global index lies in [ranges[i, 0], ranges[i, 1]]; key j of the call has
// global index first_key + j.
#ifndef LASP_SOFTMAX_TILES
#define LASP_SOFTMAX_TILES
#define LASP_TENSOR_PRODUCTS LASP_ELEMENT_BF16
#include "product_tiles.cuh"

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

#endif
