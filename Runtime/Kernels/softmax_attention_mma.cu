// Softmax attention over a block of keys on mma.sync (sm_80 and newer without wgmma, bf16, heads of 64 or 128 channels); everything else runs softmax_attention.cu, whose contract this is:
//     o_i = sum_j softmax_j(scale q_i . k_j) v_j,   lse_i = log sum_j exp(scale q_i . k_j)     over the keys j that query i sees (softmax_visibility.cuh), scale > 0
// A query that sees none has o = 0 and lse = -infinity.
// q [B, C, H, D], k, v [B, M, Hk, D], 16-byte aligned; o [B, C, H, D] bf16 or, in the kernels named f32, fp32; lse [B, C, H] fp32.
// A block makes 128 queries of one head, a warp 32 of them: scores, weights and the output stay in registers. Values are copied while scores are formed, the next keys while values are added;
// a second block on the multiprocessor works meanwhile.
// fp32 sums and running maxima, keys in ascending order: deterministic. The weights are rounded to bf16 for their product with v.
#include "mma_panels.cuh"
#include "softmax_rows.cuh"

#if LASP_ELEMENT_BF16 && !__CUDA_ARCH_FEAT_SM90_ALL

constexpr int WARPS = 4;
constexpr int THREADS = WARPS * WARP;
constexpr int STRIPS = 2;                               // of 16 queries, of one warp
constexpr int WARP_QUERIES = 16 * STRIPS;
constexpr int BLOCK_QUERIES = WARPS * WARP_QUERIES;
constexpr int KEYS = 64;                                // of one tile

// Two rows of a strip: maximum of the scores, and this thread's part of the sum of 2^(factor (score - maximum)).
struct RunningSoftmax {
    float maximum[2], sum[2];

    // Turns scores into weights relative to the new maxima; what was accumulated under the old ones is to be multiplied by `kept`.
    __device__ __forceinline__ void absorb(Strip<KEYS>& scores, float factor, float (&kept)[2])
    {
#pragma unroll
        for (int row = 0; row < 2; ++row) {
            float top = maximum[row];
#pragma unroll
            for (int b = 0; b < KEYS / 8; ++b) top = fmaxf(top, fmaxf(scores.at[b].at[2 * row], scores.at[b].at[2 * row + 1]));
            top = row_reduce(top, Maximum());
            const float reference = top == -INFINITE ? 0.0f : top * factor;  // nothing seen yet: all weights are 2^(-infinity)
            kept[row] = exp2_approximate(fmaf(maximum[row], factor, -reference));
            maximum[row] = top;
            float added = 0.0f;
#pragma unroll
            for (int b = 0; b < KEYS / 8; ++b)
#pragma unroll
                for (int i = 2 * row; i < 2 * row + 2; ++i) {
                    scores.at[b].at[i] = exp2_approximate(fmaf(scores.at[b].at[i], factor, -reference));
                    added += scores.at[b].at[i];
                }
            sum[row] = fmaf(sum[row], kept[row], added);
        }
    }
};

// One row; the keys it sees are read again whenever a tile needs them, which is seldom.
__device__ __forceinline__ void mask(const KeySpan& seen, int first, int row, Strip<KEYS>& scores)
{
    const unsigned count = seen.count();
#pragma unroll
    for (int b = 0; b < KEYS / 8; ++b)
#pragma unroll
        for (int i = 0; i < 2; ++i)
            if ((unsigned)(first + strip_column(b, i) - seen.first) >= count) scores.at[b].at[2 * row + i] = -INFINITE;
}

// o and the log-sum-exp of a warp's queries; `first_row` is the row of the unit's first query.
template <int D, typename Output> __device__ __forceinline__ void write_rows(
    const RunningSoftmax (&softmax)[STRIPS], const Strip<D> (&out)[STRIPS], int first_query, int rows, int64 first_row, int64 stride, float scale, Output* o, float* log_sum_exp)
{
#pragma unroll
    for (int s = 0; s < STRIPS; ++s)
#pragma unroll
        for (int row = 0; row < 2; ++row) {
            const int query = first_query + 16 * s + strip_row(row);
            const float sum = row_reduce(softmax[s].sum[row], Sum()), inverse = sum > 0.0f ? 1.0f / sum : 0.0f;
            if (query >= rows) continue;
            const int64 to = first_row + query * stride;
#pragma unroll
            for (int b = 0; b < D / 8; ++b) store_pair(out[s].at[b].at[2 * row] * inverse, out[s].at[b].at[2 * row + 1] * inverse, o + to * D + strip_column(b, 0));
            if (threadIdx.x % 4 == 0) log_sum_exp[to] = sum > 0.0f ? fmaf(softmax[s].maximum[row], scale, logf(sum)) : -INFINITE;
        }
}

template <int D, typename Output> __device__ __forceinline__ void attend(
    const bf16* q, const bf16* k, const bf16* v, const int64* ranges, int64 first_key, const Extents& x, float scale, Output* o, float* log_sum_exp)
{
    extern __shared__ unsigned char memory[];
    __shared__ Unit unit;              // like the spans read again where they are needed: registers are scarce
    __shared__ SpanOfQueries seen_by_warp[WARPS];
    __shared__ KeySpan any;
    if (threadIdx.x == 0) unit = unit_of(x, D, BLOCK_QUERIES);
    __syncthreads();
    const unsigned q_tile = (shared_address(memory) + 1023) & ~1023u, k_tile = q_tile + BLOCK_QUERIES * D * 2, v_tile = k_tile + KEYS * D * 2;
    const int first_query = threadIdx.x / WARP * WARP_QUERIES;
    const float factor = scale * LOG2_E;

    const auto seen_by_row = [&](int query) { return query < unit.rows ? seen_by(ranges, unit.token + query, first_key, x.keys) : KeySpan { 0, x.keys - 1 }; };
    SpanOfQueries mine = SpanOfQueries::neutral(x.keys);
    if ((int)threadIdx.x < unit.rows) mine.any = mine.all = seen_by_row(threadIdx.x);
    mine = reduce_spans(mine);
    if (threadIdx.x % WARP == 0) seen_by_warp[threadIdx.x / WARP] = mine;
    __syncthreads();
    // One thread reads the spans and writes what lies beside them, while the others wait: compilers may read past the words that they need.
    if (threadIdx.x == 0) any = span_of_all(seen_by_warp).any;
    __syncthreads();

    Strip<D> out[STRIPS] = {};
    RunningSoftmax softmax[STRIPS];
#pragma unroll
    for (int s = 0; s < STRIPS; ++s) softmax[s] = { { -INFINITE, -INFINITE }, { 0.0f, 0.0f } };
    const auto row_of_token = [&] { return (unit.batch * x.queries + unit.token) * x.heads + unit.head; };
    const auto copy_keys = [&](const bf16* from, int key, unsigned to) {
        const int64 first_row = (unit.batch * x.keys + key) * x.key_heads + unit.key_head;
        if (key <= any.last) copy_panels<KEYS, D / PANEL, THREADS>(to, from + first_row * D, (int64)x.key_heads * D, x.keys - key, threadIdx.x);
        commit_copies();
    };
    copy_panels<BLOCK_QUERIES, D / PANEL, THREADS>(q_tile, q + row_of_token() * D, (int64)x.heads * D, unit.rows, threadIdx.x);
    copy_keys(k, any.first, k_tile);
#pragma unroll 1
    for (int key = any.first; key <= any.last; key += KEYS) {
        wait_copies<0>();
        __syncthreads();  // the keys are here, and nobody reads the last values any more
        copy_keys(v, key, v_tile);
        Strip<KEYS> scores[STRIPS] = {};
        correlate<BLOCK_QUERIES, KEYS, D>(q_tile, first_query, k_tile, 0, scores);
        wait_copies<0>();
        __syncthreads();  // the values are here, and nobody reads these keys any more
        copy_keys(k, key + KEYS, k_tile);
        const KeySpan& all = seen_by_warp[threadIdx.x / WARP].all;
        const bool masked = all.first > key || key + KEYS - 1 > all.last;
#pragma unroll
        for (int s = 0; s < STRIPS; ++s) {
            float kept[2];
#pragma unroll
            for (int row = 0; row < 2 && masked; ++row) mask(seen_by_row(first_query + 16 * s + strip_row(row)), key, row, scores[s]);
            softmax[s].absorb(scores[s], factor, kept);
#pragma unroll
            for (int b = 0; b < D / 8; ++b)
#pragma unroll
                for (int i = 0; i < 4; ++i) out[s].at[b].at[i] *= kept[i / 2];
        }
        multiply<KEYS>(scores, v_tile, 0, out);
    }
    wait_copies<0>();

    write_rows(softmax, out, first_query, unit.rows, row_of_token(), x.heads, scale, o, log_sum_exp);
}

// Launch: 128 threads, one block per (128 queries, b, h), 1024 + 512 D bytes of dynamic shared memory.
#define SOFTMAX_ATTENTION(name, D, Output)                                                                                                                                           \
    KERNEL __launch_bounds__(THREADS, 2) name(                                                                                                                                      \
        const bf16* q, const bf16* k, const bf16* v, const int64* ranges, int64 first_key, int64 queries, int keys, int heads, int key_heads, int64 batches, float scale,          \
        Output* o, float* log_sum_exp)                                                                                                                                              \
    {                                                                                                                                                                                \
        attend<D>(q, k, v, ranges, first_key, { queries, keys, heads, key_heads, batches }, scale, o, log_sum_exp);                                                                 \
    }

SOFTMAX_ATTENTION(softmax_attention_fwd_mma_64, 64, bf16)
SOFTMAX_ATTENTION(softmax_attention_fwd_mma_64_f32, 64, float)
SOFTMAX_ATTENTION(softmax_attention_fwd_mma_128, 128, bf16)
SOFTMAX_ATTENTION(softmax_attention_fwd_mma_128_f32, 128, float)

#endif
