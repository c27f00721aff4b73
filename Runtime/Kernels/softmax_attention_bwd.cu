// Gradients of softmax attention that pass through a block of keys. With p_ij = exp(scale q_i . k_j - lse_i) over the keys j that query i sees, rebuilt tile by tile,
//     ds_ij = p_ij (dO_i . v_j - delta_i)
//     dq_i += scale sum_j ds_ij k_j        dk_j += scale sum_i ds_ij q_i        dv_j += sum_i p_ij dO_i
// lse and delta (delta_i = o_i . dO_i) are those of the whole row, over all its keys, so blocks of keys may come one at a time.
// q, dq [B, C, H, D]; k, dk [B, M, Hk, D]; v, dv [B, M, Hk, E]; dO [B, C, H, E]; lse, delta [B, C, H]; dq, dk, dv fp32, added to.
// fp32 sums; with bf16 operands the products run on tensor cores, which take p and ds rounded to bf16.
// dq has one block per tile of queries, which walks its keys upwards; dk and dv one per tile of keys, which walks the heads of the group and their queries upwards.
// Nothing is added atomically, so every run gives the same bits.
#include "softmax_tiles.cuh"

// What the rows of a tile of queries share.
struct QueryRows {
    Visibility seen;
    float lse[TILE], delta[TILE];
};

// By the first 64 threads; the caller synchronises. lse and delta are those of the head's query 0, `stride` apart.
__device__ __forceinline__ void load_query_rows(
    const int64* ranges, const float* lse, const float* delta, int stride, int64 token, int rows, int64 first_key, int keys, QueryRows& x)
{
    load_visibility(ranges, token, rows, first_key, keys, x.seen);
    if (threadIdx.x >= rows) return;
    x.lse[threadIdx.x] = lse[(token + threadIdx.x) * stride];
    x.delta[threadIdx.x] = delta[(token + threadIdx.x) * stride];
}

// p from a score and ds from dO . v, in place; both are 0 where the query does not see the key, whatever its row of dO . v, lse and delta hold.
__device__ __forceinline__ void differentiate(const QueryRows& x, int query, int key, float scale_factor, float& p, float& ds)
{
    p = expf(x.seen.sees(query, key) ? p * scale_factor - x.lse[query] : -INFINITE);
    ds = p != 0.0f ? p * (ds - x.delta[query]) : 0.0f;
}

// Launch: BLOCK threads (256, or 128 for bf16); one block per (64 queries, b, h, 128 columns of D), the last fastest.
KERNEL __launch_bounds__(BLOCK, 2) softmax_attention_bwd_query(
    const element* q, const element* k, const element* v, const element* d_out, const float* lse, const float* delta, const int64* ranges, int64 first_key, int64 queries, int keys,
    int heads, int key_heads, int width, int value_width, int64 batches, float scale_factor, float* dq)
{
    __shared__ __align__(16) operand a_tile[OPERAND_TILE];
    __shared__ __align__(16) operand b_tile[OPERAND_TILE];
    __shared__ QueryRows query_rows;
    const int spans = (width + SPAN - 1) / SPAN, column = blockIdx.x % spans * SPAN;
    const int64 unit = blockIdx.x / spans, head = unit % heads, batch = unit / heads % batches, key_head = head / (heads / key_heads);
    const int64 token = (tiles_of(queries) - 1 - unit / heads / batches) * TILE;  // under a causal mask the last queries have the most work
    const int rows = rows_from(token, queries);
    const int64 row_of_head = batch * queries * heads + head;
    const HeadColumns q_columns = head_columns(q, batch, queries, heads, head, width, 0), d_columns = head_columns(d_out, batch, queries, heads, head, value_width, 0);
    const HeadColumns k_columns = head_columns(k, batch, keys, key_heads, key_head, width, 0), v_columns = head_columns(v, batch, keys, key_heads, key_head, value_width, 0);

    load_query_rows(ranges, lse + row_of_head, delta + row_of_head, heads, token, rows, first_key, keys, query_rows);
    __syncthreads();
    const KeySpan span = seen_by_any(query_rows.seen);
    Products out[SLICES] = {};
    for (int key = span.first / TILE * TILE; key <= span.last; key += TILE) {
        const int key_rows = rows_from(key, keys);
        Products p = {}, ds = {};
        correlate_rows(q_columns, token, rows, k_columns, key, key_rows, a_tile, b_tile, p);
        correlate_rows(d_columns, token, rows, v_columns, key, key_rows, a_tile, b_tile, ds);
#pragma unroll
        for (int i = 0; i < ROWS; ++i)
#pragma unroll
            for (int j = 0; j < COLUMNS; ++j) differentiate(query_rows, row_of(i), key + column_of(j), scale_factor, p.at[i][j], ds.at[i][j]);
        store_products(ds, a_tile);
        multiply_rows(a_tile, k_columns.from(column), key, key_rows, b_tile, out);
    }

    float* to = dq + ((batch * queries + token) * heads + head) * width + column;
    for_each_output(out, rows, width - column, [&](int, int row, int c, float value) { to[(int64)row * heads * width + c] += scale_factor * value; });
}

// Launch: BLOCK threads (256, or 128 for bf16); one block per (64 keys, b, key head, 128 columns of D and of E), the last fastest.
KERNEL __launch_bounds__(BLOCK, 1) softmax_attention_bwd_key_value(
    const element* q, const element* k, const element* v, const element* d_out, const float* lse, const float* delta, const int64* ranges, int64 first_key, int64 queries, int keys,
    int heads, int key_heads, int width, int value_width, int64 batches, float scale_factor, float* dk, float* dv)
{
    __shared__ __align__(16) operand a_tile[OPERAND_TILE];
    __shared__ __align__(16) operand b_tile[OPERAND_TILE];
    __shared__ QueryRows query_rows;
    const int widest = width > value_width ? width : value_width, spans = (widest + SPAN - 1) / SPAN, column = blockIdx.x % spans * SPAN;
    const int64 unit = blockIdx.x / spans, key_head = unit % key_heads, batch = unit / key_heads % batches;
    const int key = (int)(unit / key_heads / batches) * TILE, key_rows = rows_from(key, keys), group = heads / key_heads;
    const HeadColumns k_columns = head_columns(k, batch, keys, key_heads, key_head, width, 0).from_token(key);
    const HeadColumns v_columns = head_columns(v, batch, keys, key_heads, key_head, value_width, 0).from_token(key);

    Products dk_out[SLICES] = {}, dv_out[SLICES] = {};  // with p and ds, on tensor cores, 192 registers of a thread's 255
    for (int64 head = key_head * group; head < (key_head + 1) * group; ++head) {
        const int64 row_of_head = batch * queries * heads + head;
        const HeadColumns q_columns = head_columns(q, batch, queries, heads, head, width, 0), d_columns = head_columns(d_out, batch, queries, heads, head, value_width, 0);
        for (int64 token = 0; token < queries; token += TILE) {
            const int rows = rows_from(token, queries);
            load_query_rows(ranges, lse + row_of_head, delta + row_of_head, heads, token, rows, first_key, keys, query_rows);
            const Visibility& seen = query_rows.seen;
            const bool visible = threadIdx.x < TILE && seen.first[threadIdx.x] < key + key_rows && seen.last[threadIdx.x] >= key;
            if (!__syncthreads_or(visible)) continue;

            Products p = {}, ds = {};
            correlate_rows(k_columns, 0, key_rows, q_columns, token, rows, a_tile, b_tile, p);
            correlate_rows(v_columns, 0, key_rows, d_columns, token, rows, a_tile, b_tile, ds);
#pragma unroll
            for (int j = 0; j < COLUMNS; ++j)  // query by query: what a query brings is held for its keys only
#pragma unroll
                for (int i = 0; i < ROWS; ++i) differentiate(query_rows, column_of(j), key + row_of(i), scale_factor, p.at[i][j], ds.at[i][j]);
            store_products(p, a_tile);
            multiply_rows(a_tile, d_columns.from(column), token, rows, b_tile, dv_out);
            store_products(ds, a_tile);
            multiply_rows(a_tile, q_columns.from(column), token, rows, b_tile, dk_out);
        }
    }

    const int64 first_row = (batch * keys + key) * key_heads + key_head;
    float *dk_to = dk + first_row * width + column, *dv_to = dv + first_row * value_width + column;
    for_each_output(dk_out, key_rows, width - column, [&](int, int row, int c, float value) { dk_to[(int64)row * key_heads * width + c] += scale_factor * value; });
    for_each_output(dv_out, key_rows, value_width - column, [&](int, int row, int c, float value) { dv_to[(int64)row * key_heads * value_width + c] += value; });
}
