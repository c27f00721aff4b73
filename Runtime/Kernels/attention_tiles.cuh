// The vocabulary of the linear-attention kernels: 64 x 64 tiles in shared memory, three small matrix products between them, and runs of tokens.
// A block has 256 threads, seen as 16 x 16: thread (ty, tx) holds 4 x 4 elements of every 64 x 64 result in registers.
//   Tile       fp32 in shared memory, rows PITCH apart, so that 16-byte reads along a row or down 16 rows meet no bank conflict
//   multiply   result rows ty + 16 i, columns 4 tx + j:     sum_t factor[row] a[row][t]  b[t][column]
//   correlate  result rows ty + 16 i, columns tx + 16 j:    sum_t a[row][t]  b[column][t]
//   outer      result rows 4 ty + i,  columns 4 tx + j:     sum_t weight(t) a[t][row]  b[t][column]
#ifndef LASP_ATTENTION_TILES
#define LASP_ATTENTION_TILES
#include "common.cuh"

constexpr int TILE = 64;            // tokens of a sub-chunk, and columns of a slice of D or E
constexpr int PITCH = TILE + 4;     // floats between the rows of a tile
constexpr int TILE_FLOATS = TILE * PITCH;
constexpr int SIDE = 16;            // threads along each side of the block
constexpr int THREADS = SIDE * SIDE;

struct Fragment { float at[4][4]; };  // one thread's share of a 64 x 64 result

__device__ __forceinline__ float4 read4(const float* x) { return *(const float4*)x; }

__device__ __forceinline__ void unpack(float4 x, float (&y)[4]) { y[0] = x.x, y[1] = x.y, y[2] = x.z, y[3] = x.w; }

// factor[i] belongs to row ty + 16 i.
__device__ __forceinline__ void multiply(const float* a, const float* b, int tx, int ty, const float (&factor)[4], Fragment& sum)
{
#pragma unroll 1
    for (int t = 0; t < TILE; t += 4) {
        float left[4][4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            unpack(read4(a + (ty + SIDE * i) * PITCH + t), left[i]);
#pragma unroll
            for (int u = 0; u < 4; ++u) left[i][u] *= factor[i];
        }
#pragma unroll
        for (int u = 0; u < 4; ++u) {
            float right[4];
            unpack(read4(b + (t + u) * PITCH + 4 * tx), right);
#pragma unroll
            for (int i = 0; i < 4; ++i)
#pragma unroll
                for (int j = 0; j < 4; ++j) sum.at[i][j] = fmaf(left[i][u], right[j], sum.at[i][j]);
        }
    }
}

__device__ __forceinline__ void correlate(const float* a, const float* b, int tx, int ty, Fragment& sum)
{
#pragma unroll 1
    for (int t = 0; t < TILE; t += 4) {
        float left[4][4];
#pragma unroll
        for (int i = 0; i < 4; ++i) unpack(read4(a + (ty + SIDE * i) * PITCH + t), left[i]);
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            float right[4];
            unpack(read4(b + (tx + SIDE * j) * PITCH + t), right);
#pragma unroll
            for (int u = 0; u < 4; ++u)
#pragma unroll
                for (int i = 0; i < 4; ++i) sum.at[i][j] = fmaf(left[i][u], right[u], sum.at[i][j]);
        }
    }
}

// Over the first `rows` rows only, so weight(t) is never asked beyond them.
template <typename Weight> __device__ __forceinline__ void outer(const float* a, const float* b, int rows, int tx, int ty, Weight weight, Fragment& sum)
{
#pragma unroll 2
    for (int t = 0; t < rows; ++t) {
        float left[4], right[4];
        unpack(read4(a + t * PITCH + 4 * ty), left);
        unpack(read4(b + t * PITCH + 4 * tx), right);
        const float w = weight(t);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            left[i] *= w;
#pragma unroll
            for (int j = 0; j < 4; ++j) sum.at[i][j] = fmaf(left[i], right[j], sum.at[i][j]);
        }
    }
}

// Multiplies a 64 x 64 result that is laid out as outer's by factor(row, column).
template <typename Factor> __device__ __forceinline__ void weigh(Fragment& x, Factor factor)
{
    const int tx = threadIdx.x % SIDE, ty = threadIdx.x / SIDE;
#pragma unroll
    for (int i = 0; i < 4; ++i)
#pragma unroll
        for (int j = 0; j < 4; ++j) x.at[i][j] *= factor(4 * ty + i, 4 * tx + j);
}

// ---- Runs of tokens ----

// One head of a tensor [B, N, heads, width] from some column on, as a matrix of N rows.
struct HeadColumns {
    const element* start;  // token 0, first column
    int stride;            // elements from one token to the next
    int columns;           // how many there are

    __device__ __forceinline__ HeadColumns from(int column) const { return { start + column, stride, columns - column }; }

    __device__ __forceinline__ HeadColumns from_token(int64 token) const { return { start + token * stride, stride, columns }; }
};

__device__ __forceinline__ HeadColumns head_columns(const element* x, int64 batch, int64 tokens, int heads, int64 head, int width, int column)
{
    return { x + (batch * tokens * heads + head) * width + column, heads * width, width - column };
}

// Fills a tile with `rows` tokens of 64 columns: row i is token first + i * direction. Rows and columns that do not exist become zero.
__device__ __forceinline__ void load_tile(const HeadColumns& x, int64 first, int direction, int rows, float* tile)
{
    const bool packs = packs_fit(x.stride, x.start);
#pragma unroll 1
    for (int p = threadIdx.x; p < TILE * (TILE / PACK); p += THREADS) {
        const int row = p / (TILE / PACK), column = p % (TILE / PACK) * PACK;
        const element* from = x.start + (first + row * direction) * x.stride + column;
        Pack<PACK> values = {};
        if (row < rows) {
            if (packs && column + PACK <= x.columns) {
                values = load(from, Lanes<PACK>());
            } else {
#pragma unroll
                for (int j = 0; j < PACK; ++j)
                    if (column + j < x.columns) values.at[j] = to_float(from[j]);
            }
        }
        store(values, tile + row * PITCH + column);
    }
}

// Writes `rows` tokens of a result that is laid out as multiply's: row i is token `token` + i * direction, stride elements apart; `to` is token 0.
__device__ __forceinline__ void store_output(const Fragment& out, int tx, int ty, int rows, int columns, int64 token, int direction, int64 stride, element* to)
{
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        const int row = ty + SIDE * i;
        if (row >= rows) continue;
        element* at = to + (token + (int64)row * direction) * stride;
#pragma unroll
        for (int j = 0; j < 4; ++j)
            if (4 * tx + j < columns) from_float(out.at[i][j], at[4 * tx + j]);
    }
}

// Sub-chunks of one segment in processing order: tokens [first, first + tokens) forwards, or backwards from the last one. Sub-chunk
// borders are the same in both directions.
struct Segment {
    int64 first, tokens;
    int reverse;
    int64 state;  // which of the pass's states is its own

    __device__ __forceinline__ int chunks() const { return (int)((tokens + TILE - 1) / TILE); }

    __device__ __forceinline__ int direction() const { return reverse ? -1 : 1; }

    __device__ __forceinline__ int rows(int chunk) const
    {
        const int64 left = tokens - (int64)place(chunk) * TILE;
        return left < TILE ? (int)left : TILE;
    }

    // The token of row 0 of the chunk's tiles.
    __device__ __forceinline__ int64 token(int chunk) const { return first + (int64)place(chunk) * TILE + (reverse ? rows(chunk) - 1 : 0); }

private:
    __device__ __forceinline__ int place(int chunk) const { return reverse ? chunks() - 1 - chunk : chunk; }
};

__device__ __forceinline__ Segment segment_of(int64 index, int64 segment_tokens, int64 tokens, int reverse)
{
    const int64 first = index * segment_tokens, left = tokens - first;
    return { first, left < segment_tokens ? left : segment_tokens, reverse, index };
}

// A segment of packed runs, which lie one after another in one batch row and are cut each by itself (PackedCut of the host).
struct SegmentRow {
    int64 first;
    int tokens, state;  // below zero: none, it enters with zero
};

// cut null: segments of segment_tokens tokens each.
__device__ __forceinline__ Segment segment_of(int64 index, int64 segment_tokens, const SegmentRow* cut, int64 tokens, int reverse)
{
    if (!cut) return segment_of(index, segment_tokens, tokens, reverse);
    const SegmentRow row = cut[index];
    return { row.first, row.tokens, reverse, row.state };
}

// One head's state of a segment among states [segments, B, H, D, E] of `size` elements each; null where there is none.
template <typename T> __device__ __forceinline__ T* state_of(T* states, const Segment& segment, int64 batches, int64 batch, int64 heads, int64 head, int64 size)
{
    return states && segment.state >= 0 ? states + ((segment.state * batches + batch) * heads + head) * size : nullptr;
}

#endif
