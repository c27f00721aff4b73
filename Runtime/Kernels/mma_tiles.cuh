// Linear attention on tensor cores (mma.cuh): tiles of 64 tokens in shared memory, and a state in the registers of a block.
//   MmaTile    64 tokens of COLUMNS bf16 (64, 128 or 256): pack p (8 elements) of row r lies where p ^ (r % 8) would, so that no matrix load meets a bank conflict
//   MmaState   S [WIDTH, 16 WARPS] in fp32, held transposed: warp w has the values (columns of S) 16 w and on, and all channels (rows of S).
//              A product v^T k lands there, and as it lies there it is the right operand of q S: the state never leaves the registers.
// A warp so makes all 64 rows of its own 16 columns of the output. Sums of log decays are fp32, in powers of two, and restart with every tile.
#ifndef LASP_MMA_TILES
#define LASP_MMA_TILES
#include "attention_decay.cuh"
#include "mma.cuh"

constexpr int TILE_BLOCKS = TILE / MMA_ROWS;  // of 16 rows; also steps of 16 summands along the tokens of a tile

__device__ __forceinline__ int lane_id() { return threadIdx.x % WARP; }

__device__ __forceinline__ int warp_id() { return threadIdx.x / WARP; }

// ---- Tiles ----

template <int COLUMNS> struct MmaTile {
    static constexpr int ROW_BYTES = 2 * COLUMNS, BYTES = TILE * ROW_BYTES;

    unsigned address;  // a multiple of 128

    __device__ __forceinline__ unsigned place(int row, int pack) const { return address + row * ROW_BYTES + ((pack ^ (row & 7)) << 4); }

    // What a lane names for load_matrices: 16 x 16 elements at row 16 block, column 16 step. Matrices 0 and 1 lie below each other, 2 and 3 to their right ..
    __device__ __forceinline__ unsigned down(int block, int step) const { return at(place(lane_id() % 16, lane_id() / 16), block, step); }

    // .. or 0 and 1 side by side, 2 and 3 below them.
    __device__ __forceinline__ unsigned across(int block, int step) const { return at(place(lane_id() / 16 * 8 + lane_id() % 8, lane_id() / 8 % 2), block, step); }

private:
    static __device__ __forceinline__ unsigned at(unsigned first, int block, int step) { return (first ^ (step % 4 << 5)) + (step / 4 << 7) + block * MMA_ROWS * ROW_BYTES; }
};

// Eight consecutive elements, of which `count` exist; the others are zero.
__device__ __forceinline__ uint4 gather_pack(const bf16* x, int count)
{
    unsigned pair[PACK / 2] = {};
#pragma unroll
    for (int j = 0; j < PACK; ++j)
        if (j < count) pair[j / 2] |= (unsigned)x[j] << (16 * (j % 2));
    return make_uint4(pair[0], pair[1], pair[2], pair[3]);
}

// Starts filling a tile with a chunk's rows, by THREADS threads; rows and columns that do not exist become zero. Asynchronous where the tensor's rows are made of packs.
template <int BLOCK_THREADS, int COLUMNS> __device__ __forceinline__ void fill(const HeadColumns& x, const Chunk& chunk, MmaTile<COLUMNS> tile)
{
    constexpr int ROW_PACKS = COLUMNS / PACK, AT_ONCE = BLOCK_THREADS / ROW_PACKS;
    const int thread = thread_again(), pack = thread % ROW_PACKS, first = thread / ROW_PACKS;
    const int columns = x.columns - pack * PACK, rows = columns > 0 ? chunk.rows : 0;
    const bf16* const start = (const bf16*)x.start;
    const bf16* from = start + (chunk.token(first) * x.stride + pack * PACK);
    const int64 step = (int64)AT_ONCE * chunk.direction() * x.stride;
    if (packs_fit(x.stride, x.start) && x.columns % PACK == 0) {
#pragma unroll
        for (int row = first; row < first + TILE; row += AT_ONCE, from += step) copy16_async(tile.place(row, pack), row < rows ? from : start, row < rows ? 16 : 0);
    } else {
#pragma unroll 1
        for (int row = first; row < TILE; row += AT_ONCE, from += step) store_shared(tile.place(row, pack), gather_pack(from, row < rows ? columns : 0));
    }
}

// ---- The decay of a chunk, one for all channels ----

struct MmaDecay {
    static constexpr int BYTES = TILE * 4;  // of a chunk's log decays, and of each table of sums

    unsigned exits, entries;  // this warp's tables: log2 of the decay from row r to exit, and from entry to row r
    float total;              // from entry to exit

    // Starts copying the chunk's log decays, one a row.
    static __device__ __forceinline__ void fill(const HeadDecay& g, const Chunk& chunk, unsigned steps)
    {
        const int row = thread_again();
        const bool exists = g.decays && row < chunk.rows;
        if (row < TILE) copy4_async(steps + 4 * row, exists ? g.start + chunk.token(row) * g.stride : g.start, exists ? 4 : 0);
    }

    // By all lanes of a warp, for themselves; a lane takes two rows. Both directions are summed, so that no sum is a difference.
    template <bool ENTRIES> __device__ __forceinline__ void sum(unsigned steps, int reverse)
    {
                constexpr unsigned ALL = 0xFFFFFFFFu;
        const int lane = lane_id();
        float2 step = load_float2(steps + 8 * lane);
        step.x *= LOG2_E, step.y *= LOG2_E;
        float until = step.x + step.y, from = until;  // over the rows until this lane's last, and from its first on
#pragma unroll
        for (int lanes = 1; lanes < WARP; lanes *= 2) {
            const float below = __shfl_up_sync(ALL, until, lanes), above = __shfl_down_sync(ALL, from, lanes);
            until += lane >= lanes ? below : 0.0f;
            from += lane + lanes < WARP ? above : 0.0f;
        }
        total = __shfl_sync(ALL, until, WARP - 1);
        const float above = __shfl_down_sync(ALL, from, 1), after = lane < WARP - 1 ? above : 0.0f;
        __syncwarp();  // the last chunk's sums have been read
        store_shared(exits + 8 * lane, reverse ? make_float2(from, step.y + after) : make_float2(step.y + after, after));
        if (ENTRIES) {
            const float below = __shfl_up_sync(ALL, until, 1), before = lane > 0 ? below : 0.0f;
            store_shared(entries + 8 * lane, reverse ? make_float2(before, before + step.x) : make_float2(before + step.x, until));
        }
        __syncwarp();
    }

    __device__ __forceinline__ float from_entry(int row) const { return load_float(entries + 4 * row); }

    __device__ __forceinline__ float2 pair_from_entry(int row) const { return load_float2(entries + 4 * row); }

    __device__ __forceinline__ float2 pair_to_exit(int row) const { return load_float2(exits + 4 * row); }
};

// ---- Products of rows with rows: a b^T over all columns of two tiles, i down and j across, where i sees j ----

// Of the blocks of 16 x 16 those above the diagonal are not made; a warp has some blocks of one row of blocks.
template <int WARPS> struct MmaPairs {
    static constexpr int SHARERS = WARPS / TILE_BLOCKS, BLOCKS = TILE_BLOCKS / SHARERS;  // warps of a row of blocks, and the blocks of each

    MmaSums at[BLOCKS][2];

    static __device__ __forceinline__ int row_block() { return warp_id() / SHARERS; }

    static __device__ __forceinline__ int column_block(int i) { return warp_id() % SHARERS + SHARERS * i; }

    template <int COLUMNS> __device__ __forceinline__ void add(MmaTile<COLUMNS> a, MmaTile<COLUMNS> b)
    {
        if (column_block(0) > row_block()) return;
#pragma unroll
        for (int step = 0; step < COLUMNS / MMA_SUMMANDS; ++step) {
            unsigned left[4];
            load_matrices(a.down(row_block(), step), left);
#pragma unroll
            for (int i = 0; i < BLOCKS; ++i) {
                if (column_block(i) > row_block()) continue;
                unsigned right[4];
                load_matrices(b.across(column_block(i), step), right);
                multiply_add(left, right[0], right[1], at[i][0]);
                multiply_add(left, right[2], right[3], at[i][1]);
            }
        }
    }

    // body(row, column, i, n, h): at[i][n].at[2 h] lies at (row, column), and the next element beside it.
    template <typename Body> static __device__ __forceinline__ void for_each(Body body)
    {
#pragma unroll
        for (int i = 0; i < BLOCKS; ++i) {
            if (column_block(i) > row_block()) continue;
#pragma unroll
            for (int n = 0; n < 2; ++n)
#pragma unroll
                for (int h = 0; h < 2; ++h)
                    body(row_block() * MMA_ROWS + lane_id() / 4 + 8 * h, column_block(i) * MMA_ROWS + n * MMA_COLUMNS + lane_id() % 4 * 2, i, n, h);
        }
    }
};

// ---- This warp's 16 columns of v, for tokens 16 step .. + 15: a left operand of v^T k; its pairs 0, 2 and 1, 3 are right operands of P v ----

struct MmaValues {
    unsigned at[4];

    template <int SLICE> __device__ __forceinline__ void load(MmaTile<SLICE> v, int step) { load_matrices_transposed(v.across(step, warp_id()), at); }

    // Multiplies token t's values by factor * decay from t to exit; rounded once.
    __device__ __forceinline__ void weigh_to_exit(const MmaDecay& decay, float factor, int step)
    {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const float2 log = decay.pair_to_exit(step * MMA_SUMMANDS + half * 8 + lane_id() % 4 * 2);
            const float first = factor * exp2_approximate(log.x), second = factor * exp2_approximate(log.y);
#pragma unroll
            for (int i = 2 * half; i < 2 * half + 2; ++i) at[i] = pack_bf16(low_of(at[i]) * first, high_of(at[i]) * second);
        }
    }
};

// ---- The state ----

template <int WIDTH, int WARPS> struct MmaState {
    static constexpr int BLOCKS = WIDTH / MMA_COLUMNS, SLICE = WARPS * MMA_ROWS;

    MmaSums at[BLOCKS];

    // body(channel, value, element, exists) for each of this thread's elements; those exist that lie within [width, columns].
    template <typename Body> __device__ __forceinline__ void for_each(int width, int columns, Body body)
    {
        const int thread = thread_again(), first_channel = thread % 4 * 2, first_value = thread / WARP * MMA_ROWS + thread % WARP / 4;
#pragma unroll
        for (int block = 0; block < BLOCKS; ++block)
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const int channel = block * MMA_COLUMNS + first_channel + i % 2, value = first_value + i / 2 * 8;
                body(channel, value, at[block].at[i], channel < width && value < columns);
            }
    }

    __device__ __forceinline__ void scale(float factor)
    {
#pragma unroll
        for (int block = 0; block < BLOCKS; ++block)
#pragma unroll
            for (int i = 0; i < 4; ++i) at[block].at[i] *= factor;
    }

    // += values^T k for 16 tokens and channels 16 pair .. + 15, which `keys` holds
    __device__ __forceinline__ void add(const MmaValues& values, const unsigned (&keys)[4], int pair)
    {
        multiply_add(values.at, keys[0], keys[1], at[2 * pair]);
        multiply_add(values.at, keys[2], keys[3], at[2 * pair + 1]);
    }

    // S = decay . S + sum_t factor (decay from t to exit) k_t^T v_t over a chunk. Every 16 tokens' values are shown to `see` first, as they are.
    template <typename See> __device__ __forceinline__ void advance(MmaTile<WIDTH> k, MmaTile<SLICE> v, const MmaDecay& decay, float factor, See see)
    {
        scale(exp2_approximate(decay.total));
#pragma unroll
        for (int step = 0; step < TILE_BLOCKS; ++step) {
            MmaValues values;
            values.load(v, step);
            see(values, step);
            values.weigh_to_exit(decay, factor, step);
#pragma unroll
            for (int pair = 0; pair < WIDTH / MMA_SUMMANDS; ++pair) {
                unsigned keys[4];
                load_matrices_transposed(k.down(step, pair), keys);
                add(values, keys, pair);
            }
        }
    }

    // Channels 16 step .. + 15, rounded to bf16, as a right operand of MmaOutputs.
    __device__ __forceinline__ void right_operand(int step, unsigned (&right)[4]) const
    {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const float(&x)[4] = at[2 * step + i / 2].at;
            right[i] = pack_bf16(x[i % 2 * 2], x[i % 2 * 2 + 1]);
        }
    }
};

// ---- This warp's 16 columns of a result with a chunk's rows: at[block][n].at[i] is row 16 block + lane / 4 + 8 (i / 2), column 8 n + 2 (lane % 4) + i % 2 of them ----

struct MmaOutputs {
    MmaSums at[TILE_BLOCKS][2];

    // right: of MmaState, or the values of MmaValues
    __device__ __forceinline__ void add(const unsigned (&left)[4], const unsigned (&right)[4], int block)
    {
        multiply_add(left, right[0], right[2], at[block][0]);
        multiply_add(left, right[1], right[3], at[block][1]);
    }

    // += q S, S rounded to bf16
    template <int WIDTH, int WARPS> __device__ __forceinline__ void read(MmaTile<WIDTH> q, const MmaState<WIDTH, WARPS>& s)
    {
#pragma unroll
        for (int step = 0; step < WIDTH / MMA_SUMMANDS; ++step) {
            unsigned right[4];
            s.right_operand(step, right);
#pragma unroll
            for (int block = 0; block < TILE_BLOCKS; ++block) {
                unsigned queries[4];
                load_matrices(q.down(block, step), queries);
                add(queries, right, block);
            }
        }
    }

    // The four lanes of a row trade, so that each has eight columns side by side: two rows, two packs. `to` is this block's first column of token 0.
    __device__ __forceinline__ void store(const Chunk& chunk, int columns, bool packs, int64 stride, element* to) const
    {
        const int thread = thread_again(), lane = thread % WARP, column = thread / WARP * MMA_ROWS + lane % 2 * 8, first = lane / 4 + lane % 4 / 2 * 8;
        const bool odd = lane % 2, lower = lane % 4 / 2;
        columns -= column;
        element* at_row = to + (chunk.token(first) * stride + column);
#pragma unroll
        for (int block = 0; block < TILE_BLOCKS; ++block, at_row += MMA_ROWS * chunk.direction() * stride) {
            uint2 four[2];
#pragma unroll
            for (int h = 0; h < 2; ++h) {
                const unsigned left = pack_bf16(at[block][0].at[2 * h], at[block][0].at[2 * h + 1]), right = pack_bf16(at[block][1].at[2 * h], at[block][1].at[2 * h + 1]);
                const unsigned other = __shfl_xor_sync(0xFFFFFFFFu, odd ? left : right, 1);
                four[h] = odd ? make_uint2(other, right) : make_uint2(left, other);
            }
            const uint2 give = lower ? four[0] : four[1];
            const unsigned x = __shfl_xor_sync(0xFFFFFFFFu, give.x, 2), y = __shfl_xor_sync(0xFFFFFFFFu, give.y, 2);
            const uint4 pack = lower ? make_uint4(x, y, four[1].x, four[1].y) : make_uint4(four[0].x, four[0].y, x, y);
            if (block * MMA_ROWS + first < chunk.rows) store_pack(pack, columns, packs, at_row);
        }
    }

private:
    static __device__ __forceinline__ void store_pack(uint4 pack, int columns, bool packs, element* to)
    {
        if (packs) {
            if (columns > 0) *(uint4*)to = pack;
            return;
        }
        const unsigned pairs[4] = { pack.x, pack.y, pack.z, pack.w };
#pragma unroll
        for (int i = 0; i < PACK; ++i)
            if (i < columns) to[i] = (bf16)(pairs[i / 2] >> 16 * (i % 2));
    }
};

#endif
