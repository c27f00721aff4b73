// The chunk of linear_attention_channel_decay_bwd.cu: where its 64 rows and two states lie in shared memory, a lane's elements, sums over rows, the scores A_ij of all pairs of rows, and those of the blocks on the
// diagonal as a left operand for each level of channel_decay.cuh.
#ifndef LASP_CHANNEL_DECAY_SCORES
#define LASP_CHANNEL_DECAY_SCORES
#include "channel_decay.cuh"
#if LASP_ELEMENT_BF16 && __CUDA_ARCH__ >= 900

constexpr int WIDTH = 128, SLAB = 64;              // columns of V and dO; channels of a block
constexpr int THREADS = 256, WARPS = THREADS / WARP;
constexpr int SHARE = SLAB / (WARPS / ROW_BLOCKS);  // channels of a warp
constexpr int CHUNK_STATE = WIDTH * WIDTH;

typedef Tile<WIDTH> WideTile;
typedef Tile<SLAB> SlabTile;

constexpr int WIDE_BYTES = CHUNK * WideTile::ROW_BYTES, STATE_BYTES = WIDTH * SlabTile::ROW_BYTES, SLAB_BYTES = CHUNK * SlabTile::ROW_BYTES, SUMS_BYTES = ROW_BLOCKS * SLAB * 4;
constexpr int V = 0, OUT = V + WIDE_BYTES, ENTERING = OUT + WIDE_BYTES, LEAVING = ENTERING + STATE_BYTES, KEYS = LEAVING + STATE_BYTES, QUERIES = KEYS + SLAB_BYTES;
constexpr int SCORES = QUERIES + SLAB_BYTES, DECAYS = SCORES + SLAB_BYTES, ARRIVING = DECAYS + SUMS_BYTES, DEPARTING = ARRIVING + SUMS_BYTES, MIDDLE = DEPARTING + SUMS_BYTES;
constexpr int THROUGH = MIDDLE + SUMS_BYTES;        // WARPS * SLAB floats
constexpr int PARKED = THROUGH + WARPS * SLAB * 4;  // 16 floats of each thread: 112640 bytes in all

__device__ __forceinline__ int lane_of() { return threadIdx.x % WARP; }
__device__ __forceinline__ int block_of() { return threadIdx.x / WARP % ROW_BLOCKS; }                      // the 16 rows of this warp
__device__ __forceinline__ int share_of() { return threadIdx.x / WARP / ROW_BLOCKS * SHARE; }              // and its first channel

__device__ __forceinline__ unsigned transpose(unsigned x)
{
    unsigned y;
    asm("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(y) : "r"(x));
    return y;
}

// c += a x, with x [16 rows, 16 channels] as a lane's pairs
__device__ __forceinline__ void multiply_rows(const unsigned (&a)[4], const unsigned (&x)[4], MmaSums (&c)[2])
{
    multiply_add(a, transpose(x[0]), transpose(x[1]), c[0]);
    multiply_add(a, transpose(x[2]), transpose(x[3]), c[1]);
}

// ---- This lane's elements: rows l / 4 and l / 4 + 8 of the warp's block, 4 neighbouring channels ----

struct Chunk {
    int rows, slab, width;

    __device__ __forceinline__ int row(int i) const { return block_of() * ROW_BLOCK + lane_of() / 4 + 8 * i; }
    __device__ __forceinline__ int channel(int step) const { return share_of() + step * CHANNELS + lane_of() % 4 * 4; }  // within the slab
    __device__ __forceinline__ bool has(int i, int step) const { return row(i) < rows && slab + channel(step) < width; }

    __device__ __forceinline__ int offset(int i, int step, int stride) const { return row(i) * stride + slab + channel(step); }  // from the chunk's first row

    __device__ __forceinline__ void load(const bf16* x, int stride, int step, unsigned (&pairs)[4]) const
    {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            uint2 y = make_uint2(0, 0);
            if (has(i, step)) y = *(const uint2*)(x + offset(i, step, stride));
            pairs[i] = y.x, pairs[2 + i] = y.y;
        }
    }

    __device__ __forceinline__ void store(const float (&x)[OWN], int step, bf16* to, int stride) const
    {
#pragma unroll
        for (int i = 0; i < 2; ++i)
            if (has(i, step))
                *(uint2*)(to + offset(i, step, stride)) = make_uint2(pack_bf16(x[2 * i], x[2 * i + 1]), pack_bf16(x[4 + 2 * i], x[4 + 2 * i + 1]));
    }

    // log2 of the decays; what does not exist does not decay
    __device__ __forceinline__ void load_logs(const float* g, int stride, int step, float (&x)[OWN]) const
    {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            float4 y = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
            if (has(i, step)) y = *(const float4*)(g + offset(i, step, stride));
            x[2 * i] = LOG2_E * y.x, x[2 * i + 1] = LOG2_E * y.y, x[4 + 2 * i] = LOG2_E * y.z, x[5 + 2 * i] = LOG2_E * y.w;
        }
    }
};

__device__ __forceinline__ void exp2_all(float (&x)[OWN])
{
#pragma unroll
    for (int i = 0; i < OWN; ++i) x[i] = exp2_approximate(x[i]);
}

// Sums of a lane's elements over the block's 16 rows: one per channel, in every lane.
__device__ __forceinline__ float4 sum_rows(const float (&x)[OWN])
{
    float y[4];
#pragma unroll
    for (int c = 0; c < 4; ++c) {
        y[c] = x[c / 2 * 4 + c % 2] + x[c / 2 * 4 + c % 2 + 2];
#pragma unroll
        for (int lanes = 4; lanes < WARP; lanes *= 2) y[c] += __shfl_xor_sync(0xFFFFFFFFu, y[c], lanes);
    }
    return make_float4(y[0], y[1], y[2], y[3]);
}

__device__ __forceinline__ unsigned sums_at(unsigned sums, int block, int channel) { return sums + (block * SLAB + channel) * 4; }

__device__ __forceinline__ void store_sums(const float (&x)[OWN], unsigned sums, int channel)
{
    const float4 y = sum_rows(x);
    if (lane_of() < 4) store_shared(sums_at(sums, block_of(), channel), y);
}

__device__ __forceinline__ void load_sums(unsigned sums, int block, int channel, float (&x)[4])
{
    const float4 y = load_float4(sums_at(sums, block, channel));
    x[0] = y.x, x[1] = y.y, x[2] = y.z, x[3] = y.w;
}

// ---- Before the gradients ----

// A block of the scores A = scale dO v^T.
__device__ __forceinline__ void score_block(WideTile d_out, WideTile v, int row, int column, float scale, SlabTile scores)
{
    MmaSums sums[2] = {};
#pragma unroll
    for (int e = 0; e < WIDTH; e += MMA_SUMMANDS) {
        unsigned left[4], right[4];
        d_out.left(row, e, left);
        v.right_of_transpose(column, e, right);
        multiply_add(left, right[0], right[1], sums[0]);
        multiply_add(left, right[2], right[3], sums[1]);
    }
#pragma unroll
    for (int p = 0; p < 4; ++p) scores.store_pair(row, column, p, pack_bf16(scale * sums[p / 2].at[p % 2 * 2], scale * sums[p / 2].at[p % 2 * 2 + 1]));
}

// The ten blocks on and below the diagonal, by eight warps.
__device__ __forceinline__ void make_scores(unsigned shared, float scale)
{
#pragma unroll 1
    for (int i = threadIdx.x / WARP; i < ROW_BLOCKS * (ROW_BLOCKS + 1) / 2; i += WARPS) {
        const int row = i < 1 ? 0 : i < 3 ? 1 : i < 6 ? 2 : 3, column = i - row * (row + 1) / 2;
        score_block({ shared + OUT }, { shared + V }, row * ROW_BLOCK, column * ROW_BLOCK, scale, { shared + SCORES });
    }
}

// Products of P and D, channel by channel: each warp's share of the rows.
__device__ __forceinline__ void multiply_states(SlabTile p, SlabTile d, unsigned through)
{
    const int warp = threadIdx.x / WARP, lane = lane_of();
    float low = 0.0f, high = 0.0f;
#pragma unroll
    for (int e = warp * (WIDTH / WARPS); e < (warp + 1) * (WIDTH / WARPS); ++e) {
        const unsigned x = __float_as_uint(load_float(p.piece(e, lane / 4) + lane % 4 * 4)), y = __float_as_uint(load_float(d.piece(e, lane / 4) + lane % 4 * 4));
        low = fmaf(low_of(x), low_of(y), low);
        high = fmaf(high_of(x), high_of(y), high);
    }
    // the tile's pairs 0 2 4 6, 1 3 5 7 of 16 channels
    store_shared(through + (warp * SLAB + lane / 8 * CHANNELS + lane % 4 * 4 + lane / 4 % 2 * 2) * 4, make_float2(low, high));
}

// ---- Masks of a lane's pairs in an 8 x 8 block of a left operand: row l / 4, columns 2 (l % 4) and the next ----

template <typename Keep> __device__ __forceinline__ unsigned mask_pair(unsigned pair, Keep keep)
{
    const int row = lane_of() / 4, column = lane_of() % 4 * 2;
    return (keep(row, column) ? pair & 0xFFFFu : 0u) | (keep(row, column + 1) ? pair & 0xFFFF0000u : 0u);
}

constexpr unsigned ONES = 0x3F803F80u;  // two bf16

__device__ __forceinline__ unsigned ones_from_row() { return mask_pair(ONES, [](int row, int column) { return column >= row; }); }
__device__ __forceinline__ unsigned ones_before_row() { return mask_pair(ONES, [](int row, int column) { return column < row; }); }

// Sums within groups of LEVEL rows: from the row on in upper rows, before the row in lower ones.
template <int LEVEL> __device__ __forceinline__ unsigned ones_of_level()
{
    return mask_pair(ONES, [](int row, int column) { return row / LEVEL == column / LEVEL && (row & LEVEL ? column >= row : column < row); });
}

// The scores of the 16 x 16 block on the diagonal, one symmetric left operand per level: two pairs of it are not zero.
struct LevelScores {
    unsigned one[2], two[2], four[2], eight[2];
    float own[2];  // A_ii of both rows

    __device__ __forceinline__ LevelScores(SlabTile scores)
    {
        const int at = block_of() * ROW_BLOCK;
        unsigned straight[4], crossed[4];
        scores.left(at, at, straight);
        scores.left_of_transpose(at, at, crossed);
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            const unsigned lower = straight[3 * i], upper = crossed[3 * i];
            one[i] = mask_pair(is_upper<1>() ? lower : upper, [](int r, int c) { return (r ^ c) == 1; });
            two[i] = mask_pair(is_upper<2>() ? lower : upper, [](int r, int c) { return (r ^ c) / 2 == 1; });
            four[i] = mask_pair(is_upper<4>() ? lower : upper, [](int r, int c) { return (r ^ c) / 4 == 1; });
            const unsigned pair = __shfl_sync(0xFFFFFFFFu, lower, lane_of() / 4 * 4 + lane_of() / 8);  // of columns row, row ^ 1
            own[i] = lane_of() / 4 % 2 ? high_of(pair) : low_of(pair);
        }
        eight[0] = straight[1];
        eight[1] = crossed[2];
    }

    template <int LEVEL> __device__ __forceinline__ void operand(unsigned (&a)[4]) const
    {
        a[0] = a[1] = a[2] = a[3] = 0;
        if (LEVEL == 8) a[1] = eight[0], a[2] = eight[1];
        else a[0] = LEVEL == 1 ? one[0] : LEVEL == 2 ? two[0] : four[0], a[3] = LEVEL == 1 ? one[1] : LEVEL == 2 ? two[1] : four[1];
    }
};

#endif

#endif
