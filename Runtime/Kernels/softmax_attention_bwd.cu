// Gradients of softmax attention that pass through a block of keys. With p_ij = exp(scale q_i . k_j - lse_i) over the keys j that query i sees, rebuilt tile by tile,
//     ds_ij = p_ij (dO_i . v_j - delta_i)
//     dq_i += scale sum_j ds_ij k_j        dk_j += scale sum_i ds_ij q_i        dv_j += sum_i p_ij dO_i
// lse and delta (delta_i = o_i . dO_i) are those of the whole row, over all its keys, so blocks of keys may come one at a time.
// q, dq [B, C, H, D]; k, dk [B, M, Hk, D]; v, dv [B, M, Hk, E]; dO [B, C, H, E]; lse, delta [B, C, H]; dq, dk, dv fp32, added to.
// fp32 throughout. dq has one block per tile of queries, which walks its keys upwards; dk and dv one per tile of keys, which walks the heads of the group and their
// queries upwards. Nothing is added atomically, so every run gives the same bits.
#include "softmax_tiles.cuh"

// The operands of one (batch, query head): what both kernels read.
struct Operands {
    HeadColumns q, k, v, d_out;
    const float *lse, *delta;  // of query 0; queries are `heads` apart
    int heads;
};

__device__ __forceinline__ Operands operands_of(
    const element* q, const element* k, const element* v, const element* d_out, const float* lse, const float* delta, int64 batch, int64 head, int64 key_head, int64 queries,
    int keys, int heads, int key_heads, int width, int value_width)
{
    return {
        head_columns(q, batch, queries, heads, head, width, 0), head_columns(k, batch, keys, key_heads, key_head, width, 0),
        head_columns(v, batch, keys, key_heads, key_head, value_width, 0), head_columns(d_out, batch, queries, heads, head, value_width, 0),
        lse + batch * queries * heads + head, delta + batch * queries * heads + head, heads,
    };
}

// p from a score and ds from dO . v, in place; both are 0 where the query does not see the key.
__device__ __forceinline__ void differentiate(bool sees, float scale_factor, float lse, float delta, float& p, float& ds)
{
    p = sees ? expf(p * scale_factor - lse) : 0.0f;
    ds = sees ? p * (ds - delta) : 0.0f;
}

// Launch: 256 threads; one block per (64 queries, b, h, 128 columns of D), the last fastest.
KERNEL __launch_bounds__(THREADS, 2) softmax_attention_bwd_query(
    const element* q, const element* k, const element* v, const element* d_out, const float* lse, const float* delta, const int64* ranges, int64 first_key, int64 queries, int keys,
    int heads, int key_heads, int width, int value_width, int64 batches, float scale_factor, float* dq)
{
    __shared__ __align__(16) float a_tile[TILE_FLOATS];
    __shared__ __align__(16) float b_tile[TILE_FLOATS];
    __shared__ Visibility seen;
    const int tx = threadIdx.x % SIDE, ty = threadIdx.x / SIDE;
    const int spans = (width + SPAN - 1) / SPAN, column = blockIdx.x % spans * SPAN;
    const int64 unit = blockIdx.x / spans, head = unit % heads, batch = unit / heads % batches;
    const int64 token = (tiles_of(queries) - 1 - unit / heads / batches) * TILE;  // under a causal mask the last queries have the most work
    const int rows = rows_from(token, queries);
    const Operands x = operands_of(q, k, v, d_out, lse, delta, batch, head, head / (heads / key_heads), queries, keys, heads, key_heads, width, value_width);

    load_visibility(ranges, token, rows, first_key, keys, seen);
    __syncthreads();
    const KeySpan span = seen_by_any(seen);
    Fragment out[SLICES] = {};
    for (int key = span.first / TILE * TILE; key <= span.last; key += TILE) {
        const int key_rows = rows_from(key, keys);
        Fragment p = {}, ds = {};
        correlate_rows(x.q, token, rows, x.k, key, key_rows, a_tile, b_tile, p);
        correlate_rows(x.d_out, token, rows, x.v, key, key_rows, a_tile, b_tile, ds);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const int row = ty + SIDE * i;
            const int64 at = (token + (row < rows ? row : 0)) * x.heads;
            const float row_lse = x.lse[at], row_delta = x.delta[at];
#pragma unroll
            for (int j = 0; j < 4; ++j) differentiate(seen.sees(row, key + tx + SIDE * j), scale_factor, row_lse, row_delta, p.at[i][j], ds.at[i][j]);
        }
        store_products(ds, a_tile);
        multiply_rows(a_tile, x.k.from(column), key, key_rows, b_tile, out);
    }

    float* to = dq + ((batch * queries + token) * heads + head) * width + column;
    for_each_output(out, rows, width - column, [&](int, int row, int c, float value) { to[(int64)row * heads * width + c] += scale_factor * value; });
}

// Launch: 256 threads; one block per (64 keys, b, key head, 128 columns of D and of E), the last fastest.
KERNEL __launch_bounds__(THREADS, 1) softmax_attention_bwd_key_value(
    const element* q, const element* k, const element* v, const element* d_out, const float* lse, const float* delta, const int64* ranges, int64 first_key, int64 queries, int keys,
    int heads, int key_heads, int width, int value_width, int64 batches, float scale_factor, float* dk, float* dv)
{
    __shared__ __align__(16) float a_tile[TILE_FLOATS];
    __shared__ __align__(16) float b_tile[TILE_FLOATS];
    __shared__ Visibility seen;
    const int tx = threadIdx.x % SIDE, ty = threadIdx.x / SIDE;
    const int widest = width > value_width ? width : value_width, spans = (widest + SPAN - 1) / SPAN, column = blockIdx.x % spans * SPAN;
    const int64 unit = blockIdx.x / spans, key_head = unit % key_heads, batch = unit / key_heads % batches;
    const int key = (int)(unit / key_heads / batches) * TILE, key_rows = rows_from(key, keys), group = heads / key_heads;

    Fragment dk_out[SLICES] = {}, dv_out[SLICES] = {};
    for (int64 head = key_head * group; head < (key_head + 1) * group; ++head) {
        const Operands x = operands_of(q, k, v, d_out, lse, delta, batch, head, key_head, queries, keys, heads, key_heads, width, value_width);
        for (int64 token = 0; token < queries; token += TILE) {
            const int rows = rows_from(token, queries);
            load_visibility(ranges, token, rows, first_key, keys, seen);
            const bool visible = threadIdx.x < TILE && seen.first[threadIdx.x] < key + key_rows && seen.last[threadIdx.x] >= key;
            if (!__syncthreads_or(visible)) continue;

            Fragment p = {}, ds = {};
            correlate_rows(x.k, key, key_rows, x.q, token, rows, a_tile, b_tile, p);
            correlate_rows(x.v, key, key_rows, x.d_out, token, rows, a_tile, b_tile, ds);
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                const int row = tx + SIDE * j;
                const int64 at = (token + (row < rows ? row : 0)) * x.heads;
                const float row_lse = x.lse[at], row_delta = x.delta[at];
#pragma unroll
                for (int i = 0; i < 4; ++i) differentiate(seen.sees(row, key + ty + SIDE * i), scale_factor, row_lse, row_delta, p.at[i][j], ds.at[i][j]);
            }
            store_products(p, a_tile);
            multiply_rows(a_tile, x.d_out.from(column), token, rows, b_tile, dv_out);
            store_products(ds, a_tile);
            multiply_rows(a_tile, x.q.from(column), token, rows, b_tile, dk_out);
        }
    }

    const int64 first_row = (batch * keys + key) * key_heads + key_head;
    float *dk_to = dk + first_row * width + column, *dv_to = dv + first_row * value_width + column;
    for_each_output(dk_out, key_rows, width - column, [&](int, int row, int c, float value) { dk_to[(int64)row * key_heads * width + c] += scale_factor * value; });
    for_each_output(dv_out, key_rows, value_width - column, [&](int, int row, int c, float value) { dv_to[(int64)row * key_heads * value_width + c] += value; });
}
