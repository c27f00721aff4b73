// The chunk of linear_attention_channel_decay.cu: where its 64 rows lie in shared memory, its log decays, the operands that they weigh (from the chunk's entry, to its exit, and for the pairs of each level of
// channel_decay.cuh), and the scores of all pairs of rows.
#ifndef LASP_CHANNEL_DECAY_OPERANDS
#define LASP_CHANNEL_DECAY_OPERANDS
#include "channel_decay.cuh"
#if LASP_ELEMENT_BF16 && __CUDA_ARCH__ >= 900

constexpr int WIDTH = 128;                      // columns of all tiles
constexpr int THREADS = 512, WARPS = THREADS / WARP;
constexpr int QUARTERS = WARPS / ROW_BLOCKS;    // warps that share a row block while it is decayed: 32 channels each
constexpr int CHUNK_STATE = WIDTH * WIDTH;

typedef Tile<WIDTH> RowTile;
typedef Tile<CHUNK> ScoreTile;

constexpr int ROW_TILE_BYTES = CHUNK * RowTile::ROW_BYTES, DECAY_BYTES = CHUNK * WIDTH * 4, STATE_BYTES = WIDTH * RowTile::ROW_BYTES;
constexpr int FACTOR_BYTES = ROW_BLOCKS * WIDTH * 4;
constexpr int PAIRS = WIDTH / 2, GROUPS = THREADS / PAIRS, GROUP = CHUNK / GROUPS;  // in gentle chunks a thread decays 2 channels of a group of rows
constexpr int DIAGONAL_VALUES = 6;              // scores of a lane in a 16 x 16 block that are not above the diagonal

// Where things lie in shared memory. Values of the next chunk arrive while those of this one are read.
struct Layout {
    static constexpr int Q = 0, K = Q + ROW_TILE_BYTES, G = K + ROW_TILE_BYTES, V = G + DECAY_BYTES;
    static constexpr int FROM = V + 2 * ROW_TILE_BYTES, TO = FROM + ROW_TILE_BYTES, LEVEL_16 = TO + ROW_TILE_BYTES, LEVEL_32 = LEVEL_16 + ROW_TILE_BYTES;
    static constexpr int STATE = LEVEL_32 + ROW_TILE_BYTES, SCORES = STATE + STATE_BYTES, DIAGONALS = SCORES + CHUNK * ScoreTile::ROW_BYTES;
    static constexpr int FACTORS = DIAGONALS + WARPS * DIAGONAL_VALUES * WARP * 4, THROUGH = FACTORS + 3 * FACTOR_BYTES, BYTES = THROUGH + WIDTH * 4;
};

__device__ __forceinline__ int warp_of() { return threadIdx.x / WARP; }
__device__ __forceinline__ int lane_of() { return threadIdx.x % WARP; }

// ---- The log decay of a chunk: 64 rows of 128 fp32, swizzled so that neither pairs of 4 neighbouring rows nor elements of 4 row blocks meet a bank conflict ----

__device__ __forceinline__ unsigned decay_piece(unsigned tile, int row, int piece) { return tile + row * (WIDTH * 4) + ((piece ^ (((row ^ (row / ROW_BLOCK)) & 3) << 1)) << 4); }

// Begins to fill the tile; what lies beyond the rows or channels does not decay.
__device__ __forceinline__ void fetch_decay(const Decay& g, int64 first, int rows, unsigned tile)
{
    constexpr int PIECES = WIDTH / 4, STRIDE = THREADS / PIECES;
    const int piece = threadIdx.x % PIECES;
    const bool exists = piece * 4 < g.columns;
    const float* from = g.start + first * g.stride + (exists ? piece * 4 : 0);
#pragma unroll
    for (int i = 0; i < CHUNK; i += STRIDE) {
        const int row = threadIdx.x / PIECES + i;
        copy16_async(decay_piece(tile, row, piece), from + (row < rows ? row : 0) * g.stride, row < rows && exists ? 16 : 0);
    }
}

// Decays over whole row blocks, [block][channel] each: BEFORE the block in the chunk, times scale; AFTER it; and BETWEEN block 0 or 3 and the middle of the chunk (1 for blocks 1 and 2).
// Four neighbouring threads sum the four blocks of a channel.
enum Factor { BEFORE, AFTER, BETWEEN };

__device__ __forceinline__ void make_factors(unsigned decays, float scale, unsigned factors, unsigned through)
{
    const int block = threadIdx.x % ROW_BLOCKS, channel = threadIdx.x / ROW_BLOCKS;
    float sum = 0.0f, before = 0.0f, after = 0.0f, between = 0.0f;
#pragma unroll
    for (int i = 0; i < ROW_BLOCK; ++i) sum += load_float(decay_piece(decays, block * ROW_BLOCK + i, channel / 4) + channel % 4 * 4);
    sum *= LOG2_E;
#pragma unroll
    for (int b = 0; b < ROW_BLOCKS; ++b) {
        const float x = __shfl_sync(0xFFFFFFFFu, sum, b, ROW_BLOCKS);
        before += b < block ? x : 0.0f;
        after += b > block ? x : 0.0f;
        between += (block == 0 && b == 1) || (block == 3 && b == 2) ? x : 0.0f;
    }
    const unsigned at = factors + (block * WIDTH + channel) * 4;
    store_shared(at + BEFORE * FACTOR_BYTES, __float_as_uint(scale * exp2_approximate(before)));
    store_shared(at + AFTER * FACTOR_BYTES, __float_as_uint(exp2_approximate(after)));
    store_shared(at + BETWEEN * FACTOR_BYTES, __float_as_uint(exp2_approximate(between)));
    if (block == 0) store_shared(through + channel * 4, __float_as_uint(exp2_approximate(sum + after)));
}

// ---- Decaying the operands of a chunk: warp (quarter, block) takes 16 rows and 32 channels ----

// Scores inside 16 x 16, still apart by level: of levels 1, 2, 4 the two 8 x 8 blocks on the diagonal (rows l / 4 and l / 4 + 8 of a lane), of level 8 the block below it.
struct DiagonalScores {
    MmaSums level1 = {}, level2 = {}, level4 = {}, level8 = {};
    float own[2] = {};  // q_i . k_i of this lane's channels

    template <int LEVEL> __device__ __forceinline__ void add(const unsigned (&x)[4])
    {
        if constexpr (LEVEL == 8) {
            multiply_add(x, x[0], x[2], level8);
        } else {
            MmaSums& sums = LEVEL == 1 ? level1 : LEVEL == 2 ? level2 : level4;
            const unsigned first[4] = { x[0], 0, x[2], 0 }, second[4] = { 0, x[1], 0, x[3] };
            multiply_add(first, x[0], x[2], sums);
            multiply_add(second, x[1], x[3], sums);
        }
    }

    __device__ __forceinline__ void add_own(const unsigned (&q)[4], const unsigned (&k)[4])
    {
        float a[OWN], b[OWN];
        unpack(q, a);
        unpack(k, b);
#pragma unroll
        for (int i = 0; i < OWN; ++i) own[second_row(i)] = fmaf(a[i], b[i], own[second_row(i)]);
    }

    // The score of row `row` and column `column` of a diagonal 8 x 8 block.
    __device__ __forceinline__ float pick(int row, int column, float one, float two, float four, float same) const
    {
        const int differ = row ^ column;
        return column > row ? 0.0f : differ >= 4 ? four : differ >= 2 ? two : differ == 1 ? one : same;
    }

    // To this warp's place: 6 values of each lane.
    __device__ __forceinline__ void store(unsigned to)
    {
        const int row = lane_of() / 4, column = lane_of() % 4 * 2;
        float x[DIAGONAL_VALUES];
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            own[i] += __shfl_xor_sync(0xFFFFFFFFu, own[i], 1);
            own[i] += __shfl_xor_sync(0xFFFFFFFFu, own[i], 2);
        }
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            x[i] = pick(row, column + i, level1.at[i], level2.at[i], level4.at[i], own[0]);
            x[2 + i] = level8.at[2 + i];
            x[4 + i] = pick(row, column + i, level1.at[2 + i], level2.at[2 + i], level4.at[2 + i], own[1]);
        }
#pragma unroll
        for (int i = 0; i < DIAGONAL_VALUES; ++i) store_shared(to + (i * WARP + lane_of()) * 4, __float_as_uint(x[i]));
    }
};

// a = exp(g) for this lane's elements of 16 rows x 16 channels
__device__ __forceinline__ void load_decays(unsigned decays, int row, int channel, float (&a)[OWN])
{
    const int first = row + lane_of() / 4;
#pragma unroll
    for (int p = 0; p < 4; ++p) {
        const float2 g = load_float2(decay_piece(decays, first + p % 2 * 8, channel / 4 + p / 2 * 2 + lane_of() % 4 / 2) + lane_of() % 2 * 8);
        a[2 * p] = exp2_approximate(LOG2_E * g.x), a[2 * p + 1] = exp2_approximate(LOG2_E * g.y);
    }
}

// The four channels' factors of this warp's block
__device__ __forceinline__ void load_factors(unsigned factors, Factor which, int block, int channel, float (&x)[4])
{
#pragma unroll
    for (int pair = 0; pair < 2; ++pair) {
        const float2 y = load_float2(factors + which * FACTOR_BYTES + (block * WIDTH + channel + pair * 8 + lane_of() % 4 * 2) * 4);
        x[2 * pair] = y.x, x[2 * pair + 1] = y.y;
    }
}

// x . outer (one per channel), as bf16, into the tile
__device__ __forceinline__ void store_scaled(const float (&x)[OWN], const float (&outer)[4], RowTile tile, int row, int channel)
{
#pragma unroll
    for (int p = 0; p < 4; ++p) tile.store_pair(row, channel, p, pack_bf16(x[2 * p] * outer[channel_of(2 * p)], x[2 * p + 1] * outer[channel_of(2 * p + 1)]));
}

__device__ __forceinline__ void store_plain(const float (&x)[OWN], RowTile tile, int row, int channel)
{
#pragma unroll
    for (int p = 0; p < 4; ++p) tile.store_pair(row, channel, p, pack_bf16(x[2 * p], x[2 * p + 1]));
}

// Fills the tiles FROM (scale q . from), TO (k . to), LEVEL_16 and LEVEL_32, each warp its part, and leaves its part of the scores on the diagonal.
__device__ __forceinline__ void decay_operands(unsigned shared)
{
    typedef Layout At;
    const int block = warp_of() % ROW_BLOCKS, quarter = warp_of() / ROW_BLOCKS, row = block * ROW_BLOCK;
    const RowTile q_tile = { shared + At::Q }, k_tile = { shared + At::K };
    DiagonalScores scores;
#pragma unroll 1
    for (int channel = quarter * (WIDTH / QUARTERS); channel < (quarter + 1) * (WIDTH / QUARTERS); channel += CHANNELS) {
        float a[OWN], outer[4], x[OWN];
        unsigned q[4], k[4];
        load_decays(shared + At::G, row, channel, a);
        q_tile.left(row, channel, q);
        k_tile.left(row, channel, k);
        Decays decays = climb(a, [&](auto level, const float (&factor)[OWN]) {
            constexpr int LEVEL = decltype(level)::count;
            unsigned operand[4];
            choose_rows<LEVEL>(q, k, operand);
            scale_pairs(operand, factor, operand);
            scores.template add<LEVEL>(operand);
        });
        scores.add_own(q, k);
        unpack(q, x);
#pragma unroll
        for (int i = 0; i < OWN; ++i) decays.from[i] *= x[i];
        load_factors(shared + At::FACTORS, BEFORE, block, channel, outer);
        store_scaled(decays.from, outer, { shared + At::FROM }, row, channel);
        unpack(k, x);
#pragma unroll
        for (int i = 0; i < OWN; ++i) decays.to[i] *= x[i];
        load_factors(shared + At::FACTORS, AFTER, block, channel, outer);
        store_scaled(decays.to, outer, { shared + At::TO }, row, channel);
        load_factors(shared + At::FACTORS, BETWEEN, block, channel, outer);
#pragma unroll
        for (int i = 0; i < OWN; ++i) x[i] = block % 2 ? decays.from[i] : decays.to[i];
        store_plain(x, { shared + At::LEVEL_16 }, row, channel);
#pragma unroll
        for (int i = 0; i < OWN; ++i) x[i] = block / 2 ? decays.from[i] : decays.to[i];
        store_scaled(x, outer, { shared + At::LEVEL_32 }, row, channel);
    }
    scores.store(shared + At::DIAGONALS + warp_of() * DIAGONAL_VALUES * WARP * 4);
}

// For any decay. Barriers before (by the caller), in between and after.
__device__ __forceinline__ void decay_by_levels(unsigned shared, float scale)
{
    typedef Layout At;
    make_factors(shared + At::G, scale, shared + At::FACTORS, shared + At::THROUGH);
    __syncthreads();
    decay_operands(shared);
    __syncthreads();
}

// ---- In gentle chunks thread (group, pair) takes 8 rows of 2 channels ----

// Where row i of a thread's group holds its pair of channels.
__device__ __forceinline__ unsigned own_pair(int i)
{
    const int pair = threadIdx.x % PAIRS, group = threadIdx.x / PAIRS;
    return group * GROUP * RowTile::ROW_BYTES + pair % 4 * 4 + i * RowTile::ROW_BYTES + (((pair / 4) ^ swizzle(i)) << 4);
}

// All of them, before anything is written that the compiler cannot know to lie elsewhere.
__device__ __forceinline__ void load_pairs(RowTile x, unsigned (&pairs)[GROUP])
{
#pragma unroll
    for (int i = 0; i < GROUP; ++i) pairs[i] = load_unsigned(x.start + own_pair(i));
}

// ---- Scores ----

// The 16 x 16 block on the diagonal: the sum of what the quarters of the channels gave, in their order. What lies above the diagonal becomes zero.
__device__ __forceinline__ void gather_diagonal(unsigned diagonals, int block, float scale, ScoreTile scores)
{
    float x[DIAGONAL_VALUES] = {};
#pragma unroll
    for (int quarter = 0; quarter < QUARTERS; ++quarter)
#pragma unroll
        for (int i = 0; i < DIAGONAL_VALUES; ++i) x[i] += load_float(diagonals + (((quarter * ROW_BLOCKS + block) * DIAGONAL_VALUES + i) * WARP + lane_of()) * 4);
    const int at = block * ROW_BLOCK;
    scores.store_pair(at, at, 0, pack_bf16(scale * x[0], scale * x[1]));
    scores.store_pair(at, at, 1, pack_bf16(scale * x[2], scale * x[3]));
    scores.store_pair(at, at, 2, 0);
    scores.store_pair(at, at, 3, pack_bf16(scale * x[4], scale * x[5]));
}

// Half (8 columns) of a 16 x 16 block below the diagonal.
__device__ __forceinline__ void score_block(RowTile x, int row, int column, int half, float scale, ScoreTile scores)
{
    MmaSums sums[2] = {};
    const int lane = lane_of();
    const unsigned right_row = x.start + (column + 8 * half + lane % 8) * RowTile::ROW_BYTES;
#pragma unroll
    for (int channel = 0; channel < WIDTH; channel += 32) {
        unsigned left[4], right[4];
        load_matrices(right_row + (((channel / 8 + lane / 8) ^ swizzle(lane % 8)) << 4), right);
        x.left(row, channel, left);
        multiply_add(left, right[0], right[1], sums[0]);
        x.left(row, channel + 16, left);
        multiply_add(left, right[2], right[3], sums[1]);
    }
#pragma unroll
    for (int i = 0; i < 2; ++i)
        scores.store_pair(row, column, 2 * half + i,
            pack_bf16(scale * (sums[0].at[2 * i] + sums[1].at[2 * i]), scale * (sums[0].at[2 * i + 1] + sums[1].at[2 * i + 1])));
}

// Warps 0 to 3 take the diagonal, the others half a block each of the six below it.
__device__ __forceinline__ void make_scores(unsigned shared, float scale)
{
    typedef Layout At;
    const ScoreTile scores = { shared + At::SCORES };
    unsigned warp = warp_of();
    keep_in_loop(warp);
    if (warp < ROW_BLOCKS) {
        gather_diagonal(shared + At::DIAGONALS, warp, scale, scores);
        return;
    }
    const int block = (warp - ROW_BLOCKS) / 2, half = warp % 2;
    const bool level16 = block < 2;                                              // (1, 0) and (3, 2); then (2, 0), (2, 1), (3, 0), (3, 1)
    const int row = level16 ? 2 * block + 1 : block / 2 + 1, column = level16 ? 2 * block : block % 2;
    score_block({ shared + (level16 ? At::LEVEL_16 : At::LEVEL_32) }, row * ROW_BLOCK, column * ROW_BLOCK, half, scale, scores);
}

#endif

#endif
