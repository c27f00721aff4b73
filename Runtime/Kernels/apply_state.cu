// A state applied to every token, with no decay and no mask: y = scale x S, or scale x S^T when transpose = 1.
// x [B, N, Hx, I], state [B, H, D, E] fp32, y [B, N, Hy, O] with (I, O) = (D, E), or (E, D) transposed. Each of Hx, Hy is H or a divisor of it: state h reads
// head h / (H / Hx) of x, and the H / Hy states of an output head are summed in their order. fp32; deterministic.
// Launch: 256 threads; one block per (b, head of y, 64 tokens, 64 columns of O), the last fastest.
#include "attention_tiles.cuh"

// Fills a tile with 64 x 64 of S (transposed: of S^T), so that rows are x's columns and columns y's; zero beyond the state.
__device__ __forceinline__ void load_operator(const float* state, int row, int column, int width, int value_width, int transpose, float* tile)
{
#pragma unroll 4
    for (int p = threadIdx.x; p < TILE * TILE; p += THREADS) {
        const int slow = p / TILE, fast = p % TILE;  // fast runs along E, as the state does in memory
        const int d = transpose ? column + slow : row + slow, e = transpose ? row + fast : column + fast;
        tile[(transpose ? fast : slow) * PITCH + (transpose ? slow : fast)] = d < width && e < value_width ? state[(int64)d * value_width + e] : 0.0f;
    }
}

KERNEL __launch_bounds__(THREADS) apply_state(
    const element* x, const float* state, int64 tokens, int heads, int x_heads, int y_heads, int width, int value_width, int transpose, float scale_factor, element* y)
{
    __shared__ __align__(16) float x_tile[TILE_FLOATS], s_tile[TILE_FLOATS];
    const int tx = threadIdx.x % SIDE, ty = threadIdx.x / SIDE;
    const int inputs = transpose ? value_width : width, outputs = transpose ? width : value_width;
    const int slices = (outputs + TILE - 1) / TILE, column = blockIdx.x % slices * TILE;
    const int64 chunks = (tokens + TILE - 1) / TILE, unit = blockIdx.x / slices;
    const int64 first = unit % chunks * TILE, y_head = unit / chunks % y_heads, batch = unit / chunks / y_heads;
    const int rows = tokens - first < TILE ? (int)(tokens - first) : TILE, group = heads / y_heads;
    const float factor[4] = { scale_factor, scale_factor, scale_factor, scale_factor };

    Fragment sum = {};
    for (int64 head = y_head * group; head < (y_head + 1) * group; ++head) {
        const HeadColumns columns = head_columns(x, batch, tokens, x_heads, head / (heads / x_heads), inputs, 0);
        const float* s = state + (batch * heads + head) * width * value_width;
        for (int row = 0; row < inputs; row += TILE) {
            load_tile(columns.from(row), first, 1, rows, x_tile);
            load_operator(s, row, column, width, value_width, transpose, s_tile);
            __syncthreads();
            multiply(x_tile, s_tile, tx, ty, factor, sum);
            __syncthreads();
        }
    }

    element* to = y + ((batch * tokens + first) * y_heads + y_head) * outputs + column;
    store_output(sum, tx, ty, rows, outputs - column, 0, 1, (int64)y_heads * outputs, to);
}
