// Softmax attention over a block of keys, flash-style: no [C, M] matrix is ever held.
//     o_i = sum_j softmax_j(scale q_i . k_j) v_j,   lse_i = log sum_j exp(scale q_i . k_j)     over the keys j that query i sees (softmax_tiles.cuh)
// A query that sees none has o = 0 and lse = -infinity. Results over different keys merge:
//     lse = log(exp lse' + exp lse''),   o = exp(lse' - lse) o' + exp(lse'' - lse) o''
// q [B, C, H, D], k [B, M, Hk, D], v [B, M, Hk, E]; o [B, C, H, E] of the element type or, in the kernels named f32, fp32; lse [B, C, H] fp32.
// fp32 sums and running maxima, keys in ascending order: deterministic. With bf16 operands the products run on tensor cores, which take the weights rounded to bf16.
#include "softmax_tiles.cuh"

// Over the lanes that share a row of scores; every one of them gets the result.
template <typename Op> __device__ __forceinline__ float row_reduce(float x, Op op)
{
#pragma unroll
    for (int lanes = ROW_LANES / 2; lanes > 0; lanes /= 2) x = op(x, __shfl_xor_sync(0xFFFFFFFFu, x, lanes));
    return x;
}

// The running softmax of this thread's rows: maximum, and sum of exp(score - maximum).
struct RunningSoftmax {
    float maximum[ROWS], sum[ROWS];

    static __device__ __forceinline__ RunningSoftmax empty()
    {
        RunningSoftmax none = {};
#pragma unroll
        for (int i = 0; i < ROWS; ++i) none.maximum[i] = -INFINITE;
        return none;
    }

    // Turns a tile of scores into weights relative to the new maxima, and rescales what was accumulated under the old ones.
    __device__ __forceinline__ void absorb(Products& scores, Products (&out)[SLICES])
    {
#pragma unroll
        for (int i = 0; i < ROWS; ++i) {
            float top = maximum[i];
#pragma unroll
            for (int j = 0; j < COLUMNS; ++j) top = fmaxf(top, scores.at[i][j]);
            top = row_reduce(top, Maximum());
            const float reference = top == -INFINITE ? 0.0f : top;  // nothing seen yet: all weights are exp(-infinity)
            const float kept = expf(maximum[i] - reference);
            float added = 0.0f;
#pragma unroll
            for (int j = 0; j < COLUMNS; ++j) {
                scores.at[i][j] = expf(scores.at[i][j] - reference);
                added += scores.at[i][j];
            }
            sum[i] = fmaf(sum[i], kept, row_reduce(added, Sum()));
            maximum[i] = top;
#pragma unroll
            for (int s = 0; s < SLICES; ++s)
#pragma unroll
                for (int j = 0; j < COLUMNS; ++j) out[s].at[i][j] *= kept;
        }
    }
};

__device__ __forceinline__ void mask_scores(const Visibility& seen, int first_key, float scale_factor, Products& scores)
{
#pragma unroll
    for (int i = 0; i < ROWS; ++i)
#pragma unroll
        for (int j = 0; j < COLUMNS; ++j)
            scores.at[i][j] = seen.sees(row_of(i), first_key + column_of(j)) ? scores.at[i][j] * scale_factor : -INFINITE;
}

template <typename Output> __device__ __forceinline__ void attend(
    const element* q, const element* k, const element* v, const int64* ranges, int64 first_key, int64 queries, int keys, int heads, int key_heads, int width, int value_width,
    int64 batches, float scale_factor, Output* o, float* log_sum_exp)
{
    __shared__ __align__(16) operand a_tile[OPERAND_TILE];
    __shared__ __align__(16) operand b_tile[OPERAND_TILE];
    __shared__ Visibility seen;
    const int spans = (value_width + SPAN - 1) / SPAN, column = blockIdx.x % spans * SPAN;
    const int64 unit = blockIdx.x / spans, head = unit % heads, batch = unit / heads % batches;
    const int64 token = (tiles_of(queries) - 1 - unit / heads / batches) * TILE;  // under a causal mask the last queries have the most work
    const int64 key_head = head / (heads / key_heads);
    const int rows = rows_from(token, queries);
    const HeadColumns q_columns = head_columns(q, batch, queries, heads, head, width, 0);
    const HeadColumns k_columns = head_columns(k, batch, keys, key_heads, key_head, width, 0);
    const HeadColumns v_columns = head_columns(v, batch, keys, key_heads, key_head, value_width, column);

    load_visibility(ranges, token, rows, first_key, keys, seen);
    __syncthreads();
    const KeySpan span = seen_by_any(seen);
    Products out[SLICES] = {};
    RunningSoftmax softmax = RunningSoftmax::empty();
    for (int key = span.first / TILE * TILE; key <= span.last; key += TILE) {
        const int key_rows = rows_from(key, keys);
        Products scores = {};
        correlate_rows(q_columns, token, rows, k_columns, key, key_rows, a_tile, b_tile, scores);
        mask_scores(seen, key, scale_factor, scores);
        softmax.absorb(scores, out);
        store_products(scores, a_tile);
        multiply_rows(a_tile, v_columns, key, key_rows, b_tile, out);
    }

    const int64 first_row = (batch * queries + token) * heads + head;
    for_each_output(out, rows, v_columns.columns, [&](int i, int row, int c, float value) {
        from_float(softmax.sum[i] > 0.0f ? value / softmax.sum[i] : 0.0f, o[(first_row + (int64)row * heads) * value_width + column + c]);
    });
    if (threadIdx.x % ROW_LANES != 0 || column != 0) return;
#pragma unroll
    for (int i = 0; i < ROWS; ++i) {
        const int row = row_of(i);
        if (row < rows) log_sum_exp[first_row + (int64)row * heads] = softmax.sum[i] > 0.0f ? softmax.maximum[i] + logf(softmax.sum[i]) : -INFINITE;
    }
}

// Launch: BLOCK threads (256, or 128 for bf16); one block per (64 queries, b, h, 128 columns of E), the last fastest.
#if LASP_ELEMENT_BF16  // in fp32 the one below is the same
KERNEL __launch_bounds__(BLOCK, RESIDENT) softmax_attention_fwd(
    const element* q, const element* k, const element* v, const int64* ranges, int64 first_key, int64 queries, int keys, int heads, int key_heads, int width, int value_width,
    int64 batches, float scale_factor, element* o, float* log_sum_exp)
{
    attend(q, k, v, ranges, first_key, queries, keys, heads, key_heads, width, value_width, batches, scale_factor, o, log_sum_exp);
}
#endif

KERNEL __launch_bounds__(BLOCK, RESIDENT) softmax_attention_fwd_f32(
    const element* q, const element* k, const element* v, const int64* ranges, int64 first_key, int64 queries, int keys, int heads, int key_heads, int width, int value_width,
    int64 batches, float scale_factor, float* o, float* log_sum_exp)
{
    attend(q, k, v, ranges, first_key, queries, keys, heads, key_heads, width, value_width, batches, scale_factor, o, log_sum_exp);
}

// partial, o [rows, columns]; partial_lse, lse [rows]; all fp32. Launch: one warp per row, blocks of 256.
KERNEL softmax_merge(const float* partial, const float* partial_lse, int64 rows, int64 columns, float* o, float* lse)
{
    const int64 row = global_thread() / WARP;
    if (row >= rows) return;
    const int lane = threadIdx.x % WARP;
    const float mine = lse[row], theirs = partial_lse[row], top = fmaxf(mine, theirs);
    if (top == -INFINITE) return;
    const float keep = expf(mine - top), take = expf(theirs - top), sum = keep + take;
    const float* from = partial + row * columns;
    float* to = o + row * columns;
    for_each_column(columns, lane, WARP, packs_fit(columns, partial, (const float*)o), [&](int64 c, auto lanes) {
        const auto p = load(from + c, lanes);
        auto x = load(to + c, lanes);
#pragma unroll
        for (int j = 0; j < lanes.count; ++j) x.at[j] = (keep * x.at[j] + take * p.at[j]) / sum;
        store(x, to + c);
    });
    __syncwarp();  // every lane has read the old value
    if (lane == 0) lse[row] = top + logf(sum);
}

template <typename Output> __device__ __forceinline__ void dot_rows(const Output* o, const element* d_out, int64 rows, int64 columns, float* delta)
{
    const int64 row = global_thread() / WARP;
    if (row >= rows) return;
    const int lane = threadIdx.x % WARP;
    float sum = 0.0f;
    for_each_column(columns, lane, WARP, packs_fit(columns, o) && packs_fit(columns, d_out), [&](int64 c, auto lanes) {
        const auto x = load(o + row * columns + c, lanes);
        const auto d = load(d_out + row * columns + c, lanes);
#pragma unroll
        for (int j = 0; j < lanes.count; ++j) sum = fmaf(x.at[j], d.at[j], sum);
    });
    sum = warp_reduce(sum, Sum());
    if (lane == 0) delta[row] = sum;
}

// delta[row] = sum of o * dO over the row, what the softmax's backward subtracts; o, dO [rows, columns]. Launch: one warp per row, blocks of 256.
#if LASP_ELEMENT_BF16
KERNEL softmax_delta(const element* o, const element* d_out, int64 rows, int64 columns, float* delta) { dot_rows(o, d_out, rows, columns, delta); }
#endif

KERNEL softmax_delta_f32(const float* o, const element* d_out, int64 rows, int64 columns, float* delta) { dot_rows(o, d_out, rows, columns, delta); }
