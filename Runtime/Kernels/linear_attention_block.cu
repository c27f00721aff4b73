// Left products of linear attention between a run of queries and a run of keys, without a mask and without a state. One kernel, four uses:
//     out_x += scale w_x . sum_y (a_x . b_y) c_y
//     o   x queries, y keys       a = wq q     b = wk k     c = v
//     dq  x queries, y keys       a = dO       b = v        c = wk k      w = wq
//     dk  x keys, y queries       a = v        b = dO       c = wq q      w = wk
//     dv  x keys, y queries       a = wk k     b = wq q     c = dO
// wq, wk are fp32 factors per token and query head, or per channel too; null counts as 1. They apply before the products, in fp32.
// a [B, X, Ha, inner]; b [B, Y, Hb, inner]; c [B, Y, Hc, width]; each has H heads or a divisor of H, and head h reads h / (H / Ha) and so on.
// out [B, X, H, width] fp32, per query head, added to. fp32 throughout, y ascending: deterministic. Most bf16 heads run linear_attention_block_mma.cu.
// Launch: 256 threads; one block per (64 tokens x, b, h, 128 columns of the output), the last fastest.
#include "product_tiles.cuh"

// weights [B, tokens, H, channels] of one (batch, head); channels is 1 for a weight per token and head.
__device__ __forceinline__ Weights head_weights(const float* weights, int channels, int64 batch, int64 tokens, int heads, int64 head)
{
    return { weights ? weights + (batch * tokens * heads + head) * channels : nullptr, heads * channels, channels > 1 };
}

__device__ __forceinline__ WeightedColumns weighted_columns(const element* x, int64 batch, int64 tokens, int heads, int x_heads, int64 head, int width, Weights weights)
{
    return { head_columns(x, batch, tokens, x_heads, head / (heads / x_heads), width, 0), weights, width };
}

// weighted_products: the weights belong to a and b (o, dv); otherwise to the output and c (dq, dk).
KERNEL __launch_bounds__(THREADS, 2) linear_attention_block(
    const element* a, const element* b, const element* c, const float* x_weights, int x_channels, const float* y_weights, int y_channels, int weighted_products,
    int64 x_tokens, int64 y_tokens, int heads, int a_heads, int b_heads, int c_heads, int inner, int width, int64 batches, float scale_factor, float* out)
{
    __shared__ __align__(16) float a_tile[TILE_FLOATS];
    __shared__ __align__(16) float b_tile[TILE_FLOATS];
    const int spans = (width + SPAN - 1) / SPAN, column = blockIdx.x % spans * SPAN;
    const int64 unit = blockIdx.x / spans, head = unit % heads, batch = unit / heads % batches, token = unit / heads / batches * TILE;
    const int rows = rows_from(token, x_tokens);
    const Weights x_side = head_weights(x_weights, x_channels, batch, x_tokens, heads, head), y_side = head_weights(y_weights, y_channels, batch, y_tokens, heads, head);
    const Weights ones = {};
    const WeightedColumns left = weighted_columns(a, batch, x_tokens, heads, a_heads, head, inner, weighted_products ? x_side : ones);
    const WeightedColumns right = weighted_columns(b, batch, y_tokens, heads, b_heads, head, inner, weighted_products ? y_side : ones);
    const WeightedColumns values = weighted_columns(c, batch, y_tokens, heads, c_heads, head, width, weighted_products ? ones : y_side).from(column);
    const Weights outer_weights = (weighted_products ? ones : x_side).from(column);

    Fragment sum[SLICES] = {};
    for (int64 other = 0; other < y_tokens; other += TILE) {
        const int others = rows_from(other, y_tokens);
        Fragment products = {};
        correlate_rows(left, token, rows, right, other, others, a_tile, b_tile, products);
        store_products(products, a_tile);
        multiply_rows(a_tile, values, other, others, b_tile, sum);
    }

    float* to = out + ((batch * x_tokens + token) * heads + head) * width + column;
    for_each_output(sum, rows, width - column, [&](int, int row, int at, float value) {
        to[(int64)row * heads * width + at] += scale_factor * outer_weights.at(token + row, at) * value;
    });
}
