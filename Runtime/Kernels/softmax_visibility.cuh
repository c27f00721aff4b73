// Which keys a query of softmax attention sees, for the kernels for heads of 64 and 128 channels. ranges [C, 2]: query i sees the keys whose global index lies in
// [ranges[i, 0], ranges[i, 1]]; key j of the call has global index first_key + j.
#ifndef LASP_SOFTMAX_VISIBILITY
#define LASP_SOFTMAX_VISIBILITY
#include "common.cuh"

// Keys from first to last, as indices of the call's keys; none where first > last.
struct KeySpan {
    int first, last;

    __device__ __forceinline__ bool empty() const { return first > last; }

    // Bit pattern for one comparison per key: key is inside iff (unsigned)(key - first) < count().
    __device__ __forceinline__ unsigned count() const { return empty() ? 0u : (unsigned)(last - first) + 1u; }
};

__device__ __forceinline__ KeySpan seen_by(const int64* ranges, int64 query, int64 first_key, int keys)
{
    int64 first = ranges[2 * query] - first_key, last = ranges[2 * query + 1] - first_key;
    if (first < 0) first = 0;
    if (last > keys - 1) last = keys - 1;
    if (first > last) return { keys, -1 };
    return { (int)first, (int)last };
}

// What a run of queries sees together: `any` covers every key that some of them sees, `all` is what each of them sees.
struct SpanOfQueries {
    KeySpan any, all;

    static __device__ __forceinline__ SpanOfQueries neutral(int keys) { return { { keys, -1 }, { 0, keys - 1 } }; }

    __device__ __forceinline__ SpanOfQueries and_of(const SpanOfQueries& o) const
    {
        return { { min(any.first, o.any.first), max(any.last, o.any.last) }, { max(all.first, o.all.first), min(all.last, o.all.last) } };
    }
};

// Over a warp; every lane gets the result.
__device__ __forceinline__ SpanOfQueries reduce_spans(SpanOfQueries x)
{
#pragma unroll
    for (int lanes = WARP / 2; lanes > 0; lanes /= 2) {
        const auto other = [&](int value) { return __shfl_xor_sync(0xFFFFFFFFu, value, lanes); };
        x = x.and_of({ { other(x.any.first), other(x.any.last) }, { other(x.all.first), other(x.all.last) } });
    }
    return x;
}

template <int COUNT> __device__ __forceinline__ SpanOfQueries span_of_all(const SpanOfQueries (&spans)[COUNT])
{
    SpanOfQueries all = spans[0];
#pragma unroll
    for (int i = 1; i < COUNT; ++i) all = all.and_of(spans[i]);
    return all;
}

// spans[run] of queries [QUERIES run, QUERIES (run + 1)), by one warp.
template <int QUERIES> __device__ __forceinline__ void find_span(const int64* ranges, int64 run, int64 first_key, int64 queries, int keys, SpanOfQueries* spans)
{
    SpanOfQueries seen = SpanOfQueries::neutral(keys);
    for (int64 query = run * QUERIES + threadIdx.x % WARP; query < min(queries, (run + 1) * QUERIES); query += WARP) {
        const KeySpan mine = seen_by(ranges, query, first_key, keys);
        seen = seen.and_of({ mine, mine });
    }
    seen = reduce_spans(seen);
    if (threadIdx.x % WARP == 0) spans[run] = seen;
}

#endif
