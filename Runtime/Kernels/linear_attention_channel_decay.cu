// Linear attention with a decay per channel on tensor cores: what a segment leaves, and the walk that makes o, or dv backwards. For one head, per chunk of 64 tokens,
//     from_i = exp(sum of g over the chunk's tokens 0 .. i)      to_j = exp(sum over j + 1 ..)      A = exp(sum over all)      (per channel of D)
//     P_ij = scale sum_d q_i exp(G_i - G_j) k_j for i >= j, without any exponent above 0: channel_decay.cuh
//     forward     o_i = scale (q_i . from_i) S + sum_j P_ij v_j          S <- A . S + sum_j (k_j . to_j)^T v_j
//     backward    dv_j = (k_j . to_j) D + sum_i P_ij dO_i                D <- A . D + sum_i scale (q_i . from_i)^T dO_i         chunks from last to first, v = dO
// q [B, N, H, D], k [B, N, Hk, D], v [B, N, Hk, E] (dO [B, N, H, E]) bf16, D and E multiples of 8 up to 128, rows at multiples of 16 bytes; decay fp32 [B, N, H, D] or [B, N, H].
// States are fp32 in registers; a product reads them, and decayed operands, rounded to bf16. Fixed order.
// entering [segments, B, H, D, E] fp32 (null: zero): the state that enters each segment (backwards: the gradient of the one that leaves it).
// chunk_states (null: none) bf16 [chunks, B, H, 128 columns of E, 128 channels]: the state that enters each chunk (leaves it), zero beyond D and E; of each 16 channels, pairs
// 0, 2, 4, 6 stand before pairs 1, 3, 5, 7, so that the products of linear_attention_channel_decay_bwd find a lane's 4 neighbours.
// Launch, all: 512 threads, one block per (segment, b, h), h fastest; shared memory as Layout says (KERNEL_SHARED_BYTES below).
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
constexpr int PAIRS = WIDTH / 2, GROUPS = THREADS / PAIRS, GROUP = CHUNK / GROUPS;  // without output: a thread decays 2 channels of a group of rows
constexpr int DIAGONAL_VALUES = 6;              // scores of a lane in a 16 x 16 block that are not above the diagonal

// Where things lie in shared memory. A walk that makes no output keeps two chunks of raw operands and needs neither scores nor both operands.
template <bool OUTPUT> struct Layout {
    static constexpr int STAGES = OUTPUT ? 1 : 2;
    static constexpr int Q = 0, K = Q + (OUTPUT ? ROW_TILE_BYTES : 0), G = K + STAGES * ROW_TILE_BYTES, V = G + STAGES * DECAY_BYTES;
    static constexpr int FROM = V + 2 * ROW_TILE_BYTES, TO = FROM + ROW_TILE_BYTES, LEVEL_16 = TO + (OUTPUT ? ROW_TILE_BYTES : 0), LEVEL_32 = LEVEL_16 + (OUTPUT ? ROW_TILE_BYTES : 0);
    static constexpr int STATE = LEVEL_32 + (OUTPUT ? ROW_TILE_BYTES : 0), SCORES = STATE + STATE_BYTES;
    static constexpr int DIAGONALS = SCORES + (OUTPUT ? CHUNK * ScoreTile::ROW_BYTES : 0);
    static constexpr int FACTORS = DIAGONALS + (OUTPUT ? WARPS * DIAGONAL_VALUES * WARP * 4 : 0);
    static constexpr int THROUGH = FACTORS + (OUTPUT ? 3 * FACTOR_BYTES : GROUPS * WIDTH * 4), BYTES = THROUGH + WIDTH * 4;
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

// The same for a decay per token, whose tile is filled on return.
__device__ __forceinline__ void spread_decay(const Decay& g, int64 first, int rows, unsigned tile)
{
#pragma unroll 1
    for (int p = threadIdx.x; p < CHUNK * WIDTH / 4; p += THREADS) {
        const int row = p / (WIDTH / 4), piece = p % (WIDTH / 4);
        const float x = row < rows && piece * 4 < g.columns ? g.start[(first + row) * g.stride] : 0.0f;
        store_shared(decay_piece(tile, row, piece), make_float4(x, x, x, x));
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
    typedef Layout<true> At;
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

// ---- Without output only one operand is decayed: thread (group, pair) takes 8 rows of 2 channels ----

// log2 of the decays of this thread's rows, and their sums for the other threads. The caller synchronises.
__device__ __forceinline__ void sum_groups(unsigned decays, unsigned sums, float2 (&g)[GROUP])
{
    const int pair = threadIdx.x % PAIRS, group = threadIdx.x / PAIRS;
    float2 sum = make_float2(0.0f, 0.0f);
#pragma unroll
    for (int i = 0; i < GROUP; ++i) {
        g[i] = load_float2(decay_piece(decays, group * GROUP + i, pair / 2) + pair % 2 * 8);
        g[i].x *= LOG2_E, g[i].y *= LOG2_E;
        sum.x += g[i].x, sum.y += g[i].y;
    }
    store_shared(sums + (group * WIDTH + 2 * pair) * 4, sum);
}

// decayed = x . to, or, REVERSE, scale x . from. The first group also leaves the decay through the chunk, and adds its logarithm to `log`.
template <bool REVERSE> __device__ __forceinline__ void decay_rows(
    const float2 (&g)[GROUP], unsigned sums, RowTile x, float scale, RowTile decayed, unsigned through, double (&log)[2])
{
    const int pair = threadIdx.x % PAIRS, group = threadIdx.x / PAIRS;
    float2 sum = make_float2(0.0f, 0.0f);
#pragma unroll
    for (int other = 0; other < GROUPS; ++other) {
        const float2 y = load_float2(sums + (other * WIDTH + 2 * pair) * 4);
        const bool counts = REVERSE ? other < group : other > group;
        sum.x += counts ? y.x : 0.0f, sum.y += counts ? y.y : 0.0f;
    }
    const unsigned row = group * GROUP * RowTile::ROW_BYTES + pair % 4 * 4;
#pragma unroll
    for (int n = 0; n < GROUP; ++n) {
        const int i = REVERSE ? n : GROUP - 1 - n;
        const unsigned at = row + i * RowTile::ROW_BYTES + (((pair / 4) ^ swizzle(i)) << 4);
        if (REVERSE) sum.x += g[i].x, sum.y += g[i].y;
        const unsigned values = __float_as_uint(load_float(x.start + at));
        store_shared(decayed.start + at, pack_bf16((REVERSE ? scale : 1.0f) * low_of(values) * exp2_approximate(sum.x), (REVERSE ? scale : 1.0f) * high_of(values) * exp2_approximate(sum.y)));
        if (!REVERSE) sum.x += g[i].x, sum.y += g[i].y;
    }
    if (group != (REVERSE ? GROUPS - 1 : 0)) return;  // whose sum is that of all rows now
    store_shared(through + 2 * pair * 4, make_float2(exp2_approximate(sum.x), exp2_approximate(sum.y)));
    log[0] += sum.x, log[1] += sum.y;
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
__device__ __forceinline__ void score_block(RowTile x, int row, int column, float scale, ScoreTile scores)
{
    MmaSums sums[2] = {};
    const int lane = lane_of(), half = column % ROW_BLOCK / 8;
    const unsigned right_row = x.start + (column + lane % 8) * RowTile::ROW_BYTES;
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
        scores.store_pair(row, column - 8 * half, 2 * half + i,
            pack_bf16(scale * (sums[0].at[2 * i] + sums[1].at[2 * i]), scale * (sums[0].at[2 * i + 1] + sums[1].at[2 * i + 1])));
}

// Warps 0 to 3 take the diagonal, the others half a block each of the six below it.
template <typename At> __device__ __forceinline__ void make_scores(unsigned shared, float scale)
{
    const ScoreTile scores = { shared + At::SCORES };
    if (warp_of() < ROW_BLOCKS) {
        gather_diagonal(shared + At::DIAGONALS, warp_of(), scale, scores);
        return;
    }
    const int block = (warp_of() - ROW_BLOCKS) / 2, half = warp_of() % 2;
    const bool level16 = block < 2;                                              // (1, 0) and (3, 2); then (2, 0), (2, 1), (3, 0), (3, 1)
    const int row = level16 ? 2 * block + 1 : block / 2 + 1, column = level16 ? 2 * block : block % 2;
    score_block({ shared + (level16 ? At::LEVEL_16 : At::LEVEL_32) }, row * ROW_BLOCK, column * ROW_BLOCK + half * 8, scale, scores);
}

// ---- The state, transposed: warp (e, d) of 4 x 4 holds columns 32 e of E by channels 32 d ----

constexpr int STATE_SIDE = 32;

struct State {
    MmaSums at[2][4];  // rows: 16 of E each; columns: 8 channels each

    static __device__ __forceinline__ int first_column() { return warp_of() / 4 * STATE_SIDE; }
    static __device__ __forceinline__ int first_channel() { return warp_of() % 4 * STATE_SIDE; }

    // body(element, channel, column of E)
    template <typename Body> __device__ __forceinline__ void each(Body body)
    {
#pragma unroll
        for (int m = 0; m < 2; ++m)
#pragma unroll
            for (int n = 0; n < 4; ++n)
#pragma unroll
                for (int i = 0; i < 4; ++i) body(at[m][n].at[i], first_channel() + 8 * n + lane_of() % 4 * 2 + i % 2, first_column() + 16 * m + i / 2 * 8 + lane_of() / 4);
    }

    __device__ __forceinline__ void decay(unsigned through)
    {
#pragma unroll
        for (int n = 0; n < 4; ++n) {
            const float2 a = load_float2(through + (first_channel() + 8 * n + lane_of() % 4 * 2) * 4);
#pragma unroll
            for (int m = 0; m < 2; ++m) at[m][n].at[0] *= a.x, at[m][n].at[1] *= a.y, at[m][n].at[2] *= a.x, at[m][n].at[3] *= a.y;
        }
    }

    // + x^T v over the chunk's rows
    __device__ __forceinline__ void add(RowTile x, RowTile v)
    {
#pragma unroll
        for (int row = 0; row < CHUNK; row += MMA_SUMMANDS) {
            unsigned left[2][4];
#pragma unroll
            for (int m = 0; m < 2; ++m) v.left_of_transpose(row, first_column() + 16 * m, left[m]);
#pragma unroll
            for (int n = 0; n < 4; n += 2) {
                unsigned right[4];
                x.right(row, first_channel() + 8 * n, right);
#pragma unroll
                for (int m = 0; m < 2; ++m) {
                    multiply_add(left[m], right[0], right[1], at[m][n]);
                    multiply_add(left[m], right[2], right[3], at[m][n + 1]);
                }
            }
        }
    }

    __device__ __forceinline__ void store(RowTile tile) const
    {
#pragma unroll
        for (int m = 0; m < 2; ++m)
#pragma unroll
            for (int n = 0; n < 4; ++n)
#pragma unroll
                for (int i = 0; i < 2; ++i)
                    tile.store_pair(first_column() + 16 * m, first_channel() + n / 2 * 16, n % 2 * 2 + i, pack_bf16(at[m][n].at[2 * i], at[m][n].at[2 * i + 1]));
    }
};

__device__ __forceinline__ uint4 load_piece(unsigned from)
{
    uint4 x;
    asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w) : "r"(from) : "memory");
    return x;
}

// The state tile to device memory, pairs of channels in the order of chunk_states.
__device__ __forceinline__ void store_chunk_state(RowTile tile, bf16* to)
{
#pragma unroll
    for (int p = threadIdx.x; p < CHUNK_STATE / 16; p += THREADS) {
        const int row = p / (WIDTH / 16), piece = p % (WIDTH / 16) * 2;
        const uint4 a = load_piece(tile.piece(row, piece)), b = load_piece(tile.piece(row, piece + 1));
        uint4* at = (uint4*)(to + row * WIDTH + piece * 8);
        at[0] = make_uint4(a.x, a.z, b.x, b.z);
        at[1] = make_uint4(a.y, a.w, b.y, b.w);
    }
}

// ---- The output of a chunk: warp (e, half) holds 32 rows by 16 columns of E ----

struct Output {
    MmaSums at[2][2] = {};

    static __device__ __forceinline__ int first_row() { return warp_of() % 2 * 32; }
    static __device__ __forceinline__ int first_column() { return warp_of() / 2 * 16; }

    // + x state
    __device__ __forceinline__ void add_inter(RowTile x, RowTile state)
    {
#pragma unroll
        for (int channel = 0; channel < WIDTH; channel += MMA_SUMMANDS) {
            unsigned right[4];
            state.right_of_transpose(first_column(), channel, right);
#pragma unroll
            for (int m = 0; m < 2; ++m) {
                unsigned left[4];
                x.left(first_row() + 16 * m, channel, left);
                multiply_add(left, right[0], right[1], at[m][0]);
                multiply_add(left, right[2], right[3], at[m][1]);
            }
        }
    }

    // + scores v forwards, and the transpose of the scores times v backwards; what lies above the diagonal is not read
    template <bool REVERSE> __device__ __forceinline__ void add_intra(ScoreTile scores, RowTile v)
    {
#pragma unroll
        for (int summand = 0; summand < CHUNK; summand += MMA_SUMMANDS) {
            unsigned right[4];
            v.right(summand, first_column(), right);
#pragma unroll
            for (int m = 0; m < 2; ++m) {
                const int row = first_row() + 16 * m;
                if (REVERSE ? summand < row : summand > row) continue;
                unsigned left[4];
                if (REVERSE) scores.left_of_transpose(summand, row, left);
                else scores.left(row, summand, left);
                multiply_add(left, right[0], right[1], at[m][0]);
                multiply_add(left, right[2], right[3], at[m][1]);
            }
        }
    }

    __device__ __forceinline__ void store(bf16* to, int stride, int rows, int columns) const
    {
        const int row = first_row() + lane_of() / 4, column = first_column() + lane_of() % 4 * 2;
        bf16* at_row = to + row * stride + column;
#pragma unroll
        for (int i = 0; i < 4; ++i) {
#pragma unroll
            for (int n = 0; n < 2; ++n)
                if (row + 8 * i < rows && column + 8 * n < columns) *(unsigned*)(at_row + 8 * n) = pack_bf16(at[i / 2][n].at[i % 2 * 2], at[i / 2][n].at[i % 2 * 2 + 1]);
            at_row += 8 * stride;
        }
    }
};

// ---- The walk along a segment ----

struct Walk {
    Rows q, k, v;
    Decay g;
    int64 first;   // token of the segment
    int64 tokens;  // of it
    float scale;

    __device__ __forceinline__ int chunks() const { return (int)((tokens + CHUNK - 1) / CHUNK); }
    __device__ __forceinline__ int rows(int chunk) const { return tokens - (int64)chunk * CHUNK < CHUNK ? (int)(tokens - (int64)chunk * CHUNK) : CHUNK; }
    __device__ __forceinline__ int64 token(int chunk) const { return first + (int64)chunk * CHUNK; }

    template <bool OUTPUT, bool REVERSE> __device__ __forceinline__ void fetch(unsigned shared, int chunk, int stage, int v_stage) const
    {
        typedef Layout<OUTPUT> At;
        const RowTile k_tile = { shared + At::K + stage * ROW_TILE_BYTES };
        if (OUTPUT) q.fetch<THREADS>(token(chunk), rows(chunk), RowTile { shared + At::Q });
        (OUTPUT || !REVERSE ? k : q).fetch<THREADS>(token(chunk), rows(chunk), k_tile);
        if (OUTPUT || g.kind == PER_CHANNEL) fetch_decay(g, token(chunk), rows(chunk), shared + At::G + stage * DECAY_BYTES);
        else spread_decay(g, token(chunk), rows(chunk), shared + At::G + stage * DECAY_BYTES);
        v.fetch<THREADS>(token(chunk), rows(chunk), RowTile { shared + At::V + v_stage * ROW_TILE_BYTES });
    }

    template <bool REVERSE> __device__ __forceinline__ int chunk_at(int i) const { return REVERSE ? chunks() - 1 - i : i; }

    // Barriers: the chunk is here; its factors are; its decayed operands are, and the raw ones may be overwritten; its scores are, and the state tile may be overwritten.
    template <bool REVERSE> __device__ __forceinline__ void run_output(unsigned shared, State& state, bf16* chunk_states, int64 chunk_stride, bf16* out, int out_stride) const
    {
        typedef Layout<true> At;
        state.store({ shared + At::STATE });
        if (chunks() > 0) fetch<true, REVERSE>(shared, chunk_at<REVERSE>(0), 0, 0);
        commit_copies();
#pragma unroll 1
        for (int i = 0; i < chunks(); ++i) {
            const int chunk = chunk_at<REVERSE>(i);
            keep_in_loop(shared);
            const RowTile state_tile = { shared + At::STATE };
            wait_copies<0>();
            __syncthreads();
            if (chunk_states) store_chunk_state(state_tile, chunk_states + token(chunk) / CHUNK * chunk_stride);
            make_factors(shared + At::G, scale, shared + At::FACTORS, shared + At::THROUGH);
            __syncthreads();
            decay_operands(shared);
            __syncthreads();
            if (i + 1 < chunks()) fetch<true, REVERSE>(shared, chunk_at<REVERSE>(i + 1), 0, (i + 1) % 2);
            commit_copies();
            const RowTile v_tile = { shared + At::V + i % 2 * ROW_TILE_BYTES };
            Output output;
            make_scores<At>(shared, scale);
            output.add_inter({ shared + (REVERSE ? At::TO : At::FROM) }, state_tile);
            state.decay(shared + At::THROUGH);
            state.add({ shared + (REVERSE ? At::FROM : At::TO) }, v_tile);
            __syncthreads();
            output.add_intra<REVERSE>({ shared + At::SCORES }, v_tile);
            output.store(out + token(chunk) * out_stride, out_stride, rows(chunk), v.columns);
            state.store(state_tile);
        }
    }

    // Barriers: the chunk is here, and the state tile is; the sums of its groups are, and the state tile may be overwritten; its decayed operand is.
    template <bool REVERSE> __device__ __forceinline__ void run_state(unsigned shared, State& state, double (&log)[2], bf16* chunk_states, int64 chunk_stride) const
    {
        typedef Layout<false> At;
        const RowTile state_tile = { shared + At::STATE };
        if (chunk_states) state.store(state_tile);
        if (chunks() > 0) fetch<false, REVERSE>(shared, chunk_at<REVERSE>(0), 0, 0);
        commit_copies();
#pragma unroll 1
        for (int i = 0; i < chunks(); ++i) {
            const int stage = i % 2;
            float2 g[GROUP];
            wait_copies<0>();
            __syncthreads();
            if (i + 1 < chunks()) fetch<false, REVERSE>(shared, chunk_at<REVERSE>(i + 1), 1 - stage, 1 - stage);
            commit_copies();
            if (chunk_states) store_chunk_state(state_tile, chunk_states + token(chunk_at<REVERSE>(i)) / CHUNK * chunk_stride);
            sum_groups(shared + At::G + stage * DECAY_BYTES, shared + At::FACTORS, g);
            __syncthreads();
            decay_rows<REVERSE>(g, shared + At::FACTORS, { shared + At::K + stage * ROW_TILE_BYTES }, scale, { shared + At::FROM }, shared + At::THROUGH, log);
            __syncthreads();
            state.decay(shared + At::THROUGH);
            state.add({ shared + At::FROM }, { shared + At::V + stage * ROW_TILE_BYTES });
            if (chunk_states) state.store(state_tile);
        }
    }
};

template <bool OUTPUT, bool REVERSE> __device__ __forceinline__ void walk_segment(
    const bf16* q, const bf16* k, const bf16* v, const float* decay, int kind, int64 tokens, int heads, int key_heads, int width, int value_width, int64 batches, int64 segment_tokens,
    float scale, const float* entering, bf16* out, float* states, float* factors, bf16* chunk_states)
{
    extern __shared__ __align__(1024) unsigned char memory[];
    const unsigned shared = shared_address(memory), unit = blockIdx.x;  // (segment, b, h)
    const int64 head = unit % heads, batch = unit / heads % (unsigned)batches, segment = unit / heads / (unsigned)batches, key_head = head / (heads / key_heads);
    const int64 left = tokens - segment * segment_tokens, size = (int64)width * value_width;
    const Walk walk = {
        rows_of(q, batch, tokens, heads, head, width), rows_of(k, batch, tokens, key_heads, key_head, width),
        REVERSE ? rows_of(v, batch, tokens, heads, head, value_width) : rows_of(v, batch, tokens, key_heads, key_head, value_width),
        decay_of(decay, kind, batch, tokens, heads, head, width), segment * segment_tokens, left < segment_tokens ? left : segment_tokens, scale
    };
    State state;
    state.each([&](float& x, int channel, int column) {
        x = entering && channel < width && column < value_width ? entering[unit * size + (int64)channel * value_width + column] : 0.0f;
    });
    bf16* own_chunks = chunk_states ? chunk_states + (batch * heads + head) * CHUNK_STATE : nullptr;
    const int64 chunk_stride = batches * heads * CHUNK_STATE;
    if constexpr (OUTPUT) {
        walk.run_output<REVERSE>(shared, state, own_chunks, chunk_stride, out + (batch * tokens * heads + head) * value_width, heads * value_width);
    } else {
        double log[2] = {};
        walk.run_state<REVERSE>(shared, state, log, own_chunks, chunk_stride);
        if (states) state.each([&](float& x, int channel, int column) {
            if (channel < width && column < value_width) states[unit * size + (int64)channel * value_width + column] = x;
        });
        if (!factors || threadIdx.x / PAIRS != (REVERSE ? GROUPS - 1 : 0)) return;
        const int channels = kind == PER_CHANNEL ? width : 1;
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            const int channel = threadIdx.x % PAIRS * 2 + i;
            if (channel < channels) factors[unit * (int64)channels + channel] = (float)exp2(log[i]);
        }
    }
}

#define WALK_PARAMETERS                                                                                                                                                    \
    const bf16 *q, const bf16 *k, const bf16 *v, const float *decay, int kind, int64 tokens, int heads, int key_heads, int width, int value_width, int64 batches,          \
        int64 segment_tokens, float scale, const float *entering

// states and factors [segments, B, H, D] (or [segments, B, H] per token), any of them null: the pair (M, A) of each segment, M with the state that enters it. q is not read.
KERNEL __launch_bounds__(THREADS, 1) linear_attention_channel_state(WALK_PARAMETERS, float* states, float* factors, bf16* chunk_states)
{
    walk_segment<false, false>(q, k, v, decay, kind, tokens, heads, key_heads, width, value_width, batches, segment_tokens, scale, entering, nullptr, states, factors, chunk_states);
}

// v = dO; k is not read.
KERNEL __launch_bounds__(THREADS, 1) linear_attention_channel_bwd_state(WALK_PARAMETERS, float* states, float* factors, bf16* chunk_states)
{
    walk_segment<false, true>(q, k, v, decay, kind, tokens, heads, key_heads, width, value_width, batches, segment_tokens, scale, entering, nullptr, states, factors, chunk_states);
}

// out = o [B, N, H, E]
KERNEL __launch_bounds__(THREADS, 1) linear_attention_channel_output(WALK_PARAMETERS, bf16* out, bf16* chunk_states)
{
    walk_segment<true, false>(q, k, v, decay, kind, tokens, heads, key_heads, width, value_width, batches, segment_tokens, scale, entering, out, nullptr, nullptr, chunk_states);
}

// v = dO, out = dv [B, N, H, E] of each query head
KERNEL __launch_bounds__(THREADS, 1) linear_attention_channel_bwd_value(WALK_PARAMETERS, bf16* out, bf16* chunk_states)
{
    walk_segment<true, true>(q, k, v, decay, kind, tokens, heads, key_heads, width, value_width, batches, segment_tokens, scale, entering, out, nullptr, nullptr, chunk_states);
}

#endif
