// A decay per channel on tensor cores, for bf16. A chunk of 64 tokens is four blocks of 16 rows, and a warp decays 16 rows x 16 channels at a time in the registers
// that mma.sync hands out: lane l holds rows l / 4 and l / 4 + 8, of 4 channels each. With the decay a_i = exp(g_i) of one channel, inside a group of rows
//     from(i)  the product of a over the group's rows up to i          from the group's entry to row i (a token decays before it is added)
//     to(i)    the product of a over the group's rows behind i         from row i to the group's exit
// A pair (i, j) of rows is of level b if b is the highest bit in which they differ: j lies in the lower and i in the upper half of a group of 2 b rows, and the decay between
// them is from(i) to(j), both taken in groups of b rows. So levels 8, 4, 2, 1 cover 16 rows, and every factor is a product of decays: nothing is divided and nothing overflows.
#ifndef LASP_CHANNEL_DECAY
#define LASP_CHANNEL_DECAY
#include "mma.cuh"

constexpr int CHUNK = 64;           // tokens walked at a time
constexpr int ROW_BLOCK = 16;       // rows of a warp
constexpr int ROW_BLOCKS = CHUNK / ROW_BLOCK;
constexpr int CHANNELS = 16;        // channels that a warp decays at a time
constexpr int OWN = 8;              // elements of those 16 x 16 in a lane: 4 pairs of bf16, in the order of an mma's left operand

enum ChannelDecayKind { PER_TOKEN = 2, PER_CHANNEL = 3 };  // DecayKind of the host

// Addresses that depend on x are computed where they are used: kept across a loop, they would not fit the registers.
__device__ __forceinline__ void keep_in_loop(unsigned& x) { asm volatile("" : "+r"(x)); }

// ---- Tiles in shared memory: rows of bf16, their 16-byte pieces permuted within each row so that neither 8 rows of a piece nor a warp's own elements meet a bank conflict ----

__device__ __forceinline__ int swizzle(int row) { return ((row & 3) << 1) | ((row >> 2) & 1); }

template <int COLUMNS> struct Tile {
    static constexpr int ROW_BYTES = 2 * COLUMNS;
    unsigned start;  // a multiple of ROW_BYTES, so that a column is flipped into an address

    __device__ __forceinline__ unsigned piece(int row, int index) const { return (start + row * ROW_BYTES + (swizzle(row) << 4)) ^ (index << 4); }

    // Four 8 x 8 matrices at (row, column), both multiples of 16: rows before columns (a left operand), or, `crossed`, columns before rows (a right operand).
    __device__ __forceinline__ unsigned straight(int row, int column) const
    {
        const int lane = threadIdx.x % WARP;
        return (start + (lane % 16 * ROW_BYTES + ((lane / 16 ^ swizzle(lane % 8)) << 4)) + row * ROW_BYTES) ^ (2 * column);
    }

    __device__ __forceinline__ unsigned crossed(int row, int column) const
    {
        const int lane = threadIdx.x % WARP;
        return (start + ((lane / 16 * 8 + lane % 8) * ROW_BYTES + ((lane / 8 % 2 ^ swizzle(lane % 8)) << 4)) + row * ROW_BYTES) ^ (2 * column);
    }

    __device__ __forceinline__ void left(int row, int column, unsigned (&x)[4]) const { load_matrices(straight(row, column), x); }

    // The tile holds the transpose of the operand: (row, column) are those of the tile.
    __device__ __forceinline__ void left_of_transpose(int row, int column, unsigned (&x)[4]) const { load_matrices_transposed(crossed(row, column), x); }

    // Operands [16 summands, 16 columns]: x[0], x[1] for the first 8 columns. The tile's rows are the summands, or, transposed, the columns.
    __device__ __forceinline__ void right(int row, int column, unsigned (&x)[4]) const { load_matrices_transposed(straight(row, column), x); }

    __device__ __forceinline__ void right_of_transpose(int row, int column, unsigned (&x)[4]) const { load_matrices(crossed(row, column), x); }

    // This lane's pairs of a 16 x 16 operand or result: pair 0 to 3 as in an mma's left operand.
    __device__ __forceinline__ void store_pair(int row, int column, int pair, unsigned x) const
    {
        const int lane = threadIdx.x % WARP;
        const unsigned first = (start + (lane / 4 * ROW_BYTES + (swizzle(lane / 4) << 4) + lane % 4 * 4) + row * ROW_BYTES) ^ (2 * column);
        store_shared((first ^ (pair / 2 << 4)) + pair % 2 * 8 * ROW_BYTES, x);
    }
};

// ---- Operands in device memory ----

// One head of a tensor [B, N, heads, width] as a matrix of N rows. Rows begin at multiples of 16 bytes, and `columns` is a multiple of 8.
struct Rows {
    const bf16* start;
    int stride, columns;

    // Begins to fill a tile with `rows` (at least 1) tokens from `first` on; what lies beyond the rows or columns becomes zero.
    template <int THREADS, int COLUMNS> __device__ __forceinline__ void fetch(int64 first, int rows, Tile<COLUMNS> tile) const
    {
        constexpr int PIECES = COLUMNS / 8, STRIDE = THREADS / PIECES;  // a multiple of 8 rows, which are swizzled alike
        const int piece = threadIdx.x % PIECES;
        const bf16* from = start + first * stride + (piece * 8 < columns ? piece * 8 : 0);
#pragma unroll
        for (int i = 0; i < CHUNK; i += STRIDE) {
            const int row = threadIdx.x / PIECES + i;
            copy16_async(tile.piece(threadIdx.x / PIECES, piece) + i * Tile<COLUMNS>::ROW_BYTES, from + (row < rows ? row : 0) * stride, row < rows && piece * 8 < columns ? 16 : 0);
        }
    }
};

__device__ __forceinline__ Rows rows_of(const bf16* x, int64 batch, int64 tokens, int heads, int64 head, int width)
{
    return { x + (batch * tokens * heads + head) * width, heads * width, width };
}

// The log decay of one head. A decay per token is that of all its channels.
struct Decay {
    const float* start;
    int stride, kind, columns;
};

__device__ __forceinline__ Decay decay_of(const float* x, int kind, int64 batch, int64 tokens, int heads, int64 head, int width)
{
    const int64 row = batch * tokens * heads + head;
    return kind == PER_CHANNEL ? Decay { x + row * width, heads * width, kind, width } : Decay { x + row, heads, kind, width };
}

// ---- 16 rows x 16 channels in registers ----

// Lanes whose rows lie in the upper half of a group of 2 * LEVEL rows, LEVEL = 1, 2, 4.
template <int LEVEL> __device__ __forceinline__ bool is_upper() { return (threadIdx.x / 4 & LEVEL) != 0; }

// Whether element i of a lane belongs to the second row.
__device__ __forceinline__ constexpr bool second_row(int i) { return (i & 2) != 0; }

__device__ __forceinline__ void unpack(const unsigned (&pairs)[4], float (&x)[OWN])
{
#pragma unroll
    for (int p = 0; p < 4; ++p) x[2 * p] = low_of(pairs[p]), x[2 * p + 1] = high_of(pairs[p]);
}

__device__ __forceinline__ void pack(const float (&x)[OWN], unsigned (&pairs)[4])
{
#pragma unroll
    for (int p = 0; p < 4; ++p) pairs[p] = pack_bf16(x[2 * p], x[2 * p + 1]);
}

// x to the one sum or the other, without a branch
__device__ __forceinline__ void add_to(bool first, float x, float& a, float& b)
{
    asm("{ .reg .pred p; setp.ne.b32 p, %3, 0; @p add.f32 %0, %0, %2; @!p add.f32 %1, %1, %2; }" : "+f"(a), "+f"(b) : "f"(x), "r"((int)first));
}

struct Decays {
    float from[OWN], to[OWN];
};

// On the way up a lane holds the factor that its side of the level needs (from in upper rows, to in lower ones), and the other one.
template <int LEVEL, int NEXT> __device__ __forceinline__ void climb_level(float (&factor)[OWN], float (&other)[OWN])
{
    const bool swaps = is_upper<LEVEL>() != is_upper<NEXT>();
#pragma unroll
    for (int i = 0; i < OWN; ++i) {
        const float mine = factor[i] * __shfl_xor_sync(0xFFFFFFFFu, factor[i] * other[i], 4 * LEVEL), rest = other[i];
        factor[i] = swaps ? rest : mine;
        other[i] = swaps ? mine : rest;
    }
}

// Climbs from single rows to 16. level(b, factor): at each level b on the way, the factors of this lane's rows on their side of the level.
template <typename Level> __device__ __forceinline__ Decays climb(const float (&a)[OWN], Level level)
{
    Decays d;
    float factor[OWN], other[OWN];
#pragma unroll
    for (int i = 0; i < OWN; ++i) factor[i] = is_upper<1>() ? a[i] : 1.0f, other[i] = is_upper<1>() ? 1.0f : a[i];
    level(Lanes<1>(), factor);
    climb_level<1, 2>(factor, other);
    level(Lanes<2>(), factor);
    climb_level<2, 4>(factor, other);
    level(Lanes<4>(), factor);
    climb_level<4, 4>(factor, other);
#pragma unroll
    for (int i = 0; i < OWN; ++i) d.from[i] = is_upper<4>() ? factor[i] : other[i], d.to[i] = is_upper<4>() ? other[i] : factor[i];
#pragma unroll
    for (int i = 0; i < OWN; ++i) factor[i] = second_row(i) ? d.from[i] : d.to[i];
    level(Lanes<8>(), factor);
#pragma unroll
    for (int i = 0; i < OWN; ++i) {
        if (second_row(i)) continue;
        const float first = d.from[i] * d.to[i], second = d.from[i + 2] * d.to[i + 2];
        d.from[i + 2] *= first;
        d.to[i] *= second;
    }
    return d;
}

// The operand of level LEVEL: queries in its upper rows, keys in its lower rows.
template <int LEVEL> __device__ __forceinline__ void choose_rows(const unsigned (&q)[4], const unsigned (&k)[4], unsigned (&x)[4])
{
#pragma unroll
    for (int p = 0; p < 4; ++p) x[p] = (LEVEL == 8 ? p % 2 != 0 : is_upper<LEVEL>()) ? q[p] : k[p];
}

__device__ __forceinline__ void scale_pairs(const unsigned (&x)[4], const float (&factor)[OWN], unsigned (&y)[4])
{
    float values[OWN];
    unpack(x, values);
#pragma unroll
    for (int i = 0; i < OWN; ++i) values[i] *= factor[i];
    pack(values, y);
}

// Index of a lane's channel for its element i.
__device__ __forceinline__ constexpr int channel_of(int i) { return i / 4 * 2 + i % 2; }

#endif
