// What the Hopper kernels of linear attention share: sub-chunks of 64 tokens as panels of wgmma.cuh, filled in advance by a warpgroup that does nothing else, results written by whole rows, and, for one decay
// of all channels, that of a sub-chunk as tables and left operands weighted in registers. Tensors are bf16, and their rows start at multiples of 16 bytes.
// Warpgroup 0 produces; the others consume, and each holds 64 rows of a state (or of its transpose) in registers while the sub-chunks pass by.
#ifndef LASP_ATTENTION_PANELS
#define LASP_ATTENTION_PANELS
#include "attention_decay.cuh"
#include "stages.cuh"

#if __CUDA_ARCH_FEAT_SM90_ALL

constexpr int PANEL_BYTES = TILE * PANEL_ROW;  // of a sub-chunk's 64 tokens
constexpr int STEPS = TILE / SUMMANDS;         // products that sum over a sub-chunk, or over a panel's columns

__device__ __forceinline__ constexpr int panels_of(int width) { return width / PANEL; }

constexpr int TOGETHER = 1, ALONE = 2;         // named barriers: all consumers; consumer 0, consumer 1
constexpr int PRODUCER_WARPS = WARPGROUP / WARP;

__device__ __forceinline__ int consumer() { return threadIdx.x / WARPGROUP - 1; }  // number of this warpgroup among the consumers

// ---- Handing over ----

template <int STAGES> struct Handover {
    Barrier full[STAGES], empty[STAGES];

    // By all threads of the block.
    __device__ __forceinline__ void init(int consumers)
    {
        if (threadIdx.x == 0)
            for (int i = 0; i < STAGES; ++i) {
                init_barrier(full[i], WARPGROUP);
                init_barrier(empty[i], consumers * WARPGROUP);
            }
        __syncthreads();
    }

    // By warpgroup 0: fill(i, stage) starts the copies of chunk i; AHEAD chunks are under way while the one before them is handed over.
    template <int AHEAD, typename Fill> __device__ __forceinline__ void produce(int chunks, Fill fill)
    {
#pragma unroll 1
        for (int i = 0; i < chunks + AHEAD; ++i) {
            if (i < chunks) {
                wait_turn(empty[i % STAGES], (i / STAGES & 1) ^ 1);
                fill(i, i % STAGES);
            }
            commit_copies();
            if (i < AHEAD) continue;
            wait_copies<AHEAD>();
            publish_to_products();
            arrive(full[(i - AHEAD) % STAGES]);
        }
    }

    // By the consumers.
    __device__ __forceinline__ void take(int i) { wait_turn(full[i % STAGES], i / STAGES & 1); }

    __device__ __forceinline__ void release(int i) { arrive(empty[i % STAGES]); }
};

// ---- Filling, by warpgroup 0 ----

// Starts the copies of a sub-chunk's rows of WIDTH columns to panels at `to`. Rows and columns that do not exist become zero.
template <int WIDTH> __device__ __forceinline__ void copy_chunk(const HeadColumns& x, const Chunk& chunk, unsigned to)
{
    constexpr int PACKS = WIDTH / PACK, ROWS = WARPGROUP / PACKS;  // a thread's rows are ROWS apart, a multiple of 8: the permutation of packs is theirs alike
    const int row = threadIdx.x / PACKS, pack = threadIdx.x % PACKS;
    const bool exists = pack * PACK < x.columns;
    const int step = ROWS * chunk.direction() * x.stride;
    const element* from = x.start + (exists ? pack * PACK : 0) + chunk.token(row) * x.stride;
    to += pack / 8 * PANEL_BYTES + panel_offset(row, pack % 8);
    if (chunk.rows == TILE) {
#pragma unroll
        for (int i = 0; i < TILE / ROWS; ++i, from += step) copy16_async(to + i * ROWS * PANEL_ROW, from, exists ? 16 : 0);
    } else {
#pragma unroll 1
        for (int i = row; i < TILE; i += ROWS, from += step, to += ROWS * PANEL_ROW) copy16_async(to, i < chunk.rows ? from : x.start, exists && i < chunk.rows ? 16 : 0);
    }
}

// ---- The decay of a sub-chunk ----

struct __align__(16) DecayTable {
    float logs[TILE];        // from entry to row r, base 2
    float from_entry[TILE];  // the same as a factor, times the caller's
    float to_exit[TILE];     // from row r to exit, times the caller's
    float through;           // from entry to exit
};

// Makes the tables: the producer's warps take turns, two rows per lane, and read the decays of their next chunk ahead.
struct DecayTables {
    const HeadDecay& g;
    int reverse;
    float entry_factor, exit_factor;
    float first, second;  // the lane's log decays

    // `chunk_at(i)` is chunk i of the pass, 0 <= i < chunks. Before the first chunk is filled.
    template <typename ChunkAt> __device__ __forceinline__ void start(int chunks, ChunkAt chunk_at)
    {
        const int warp = threadIdx.x / WARP;
        if (warp < chunks) read(chunk_at(warp));
    }

    template <typename ChunkAt> __device__ __forceinline__ void fill(int i, int chunks, ChunkAt chunk_at, DecayTable& table)
    {
        if (i % PRODUCER_WARPS != threadIdx.x / WARP) return;
        fill(table);
        if (i + PRODUCER_WARPS < chunks) read(chunk_at(i + PRODUCER_WARPS));
    }

private:
    __device__ __forceinline__ void read(const Chunk& chunk)
    {
        const int row = 2 * (threadIdx.x % WARP);
        first = row < chunk.rows ? g.at(chunk.token(row), 0) : 0.0f, second = row + 1 < chunk.rows ? g.at(chunk.token(row + 1), 0) : 0.0f;
    }

    __device__ __forceinline__ void fill(DecayTable& table) const
    {
        constexpr double LOG2_E = 1.4426950408889634;
        const int lane = threadIdx.x % WARP;
        const double both = (double)first + second;
        double sum = both;
#pragma unroll
        for (int lanes = 1; lanes < WARP; lanes *= 2) {
            const double below = __shfl_up_sync(0xFFFFFFFFu, sum, lanes);
            if (lane >= lanes) sum += below;
        }
        const double total = __shfl_sync(0xFFFFFFFFu, sum, WARP - 1), before = sum - both;
        const double logs[2] = { reverse ? before : before + first, reverse ? before + first : sum };
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            table.logs[2 * lane + i] = (float)(LOG2_E * logs[i]);
            table.from_entry[2 * lane + i] = entry_factor * exp2f((float)(LOG2_E * logs[i]));
            table.to_exit[2 * lane + i] = exit_factor * exp2f((float)(LOG2_E * (total - logs[i])));
        }
        if (lane == 0) table.through = exp2f((float)(LOG2_E * total));
    }
};

// ---- Writing, by a consumer ----

// 16 bytes of shared memory.
__device__ __forceinline__ uint4 load_shared16(unsigned from)
{
    uint4 x;
    asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w) : "r"(from) : "memory");
    return x;
}

// 16 bytes of global memory in one access: a plain store of the four was found taken apart.
__device__ __forceinline__ void store_global16(void* to, uint4 x)
{
    asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(to), "r"(x.x), "r"(x.y), "r"(x.z), "r"(x.w) : "memory");
}

// A warpgroup writes a panel as columns first_column to first_column + 63 of a sub-chunk's rows; columns and rows that do not exist are left out.
__device__ __forceinline__ void store_panel(unsigned panel, int first_column, const Chunk& chunk, const HeadColumns& to)
{
    constexpr int PACKS = PANEL / PACK, ROWS = WARPGROUP / PACKS;
    const int thread = threadIdx.x % WARPGROUP, row = thread / PACKS, pack = thread % PACKS, column = first_column + pack * PACK;
    element* out = (element*)to.start + chunk.token(row) * to.stride + column;
    const int64 step = (int64)ROWS * chunk.direction() * to.stride;
    const int rows = column < to.columns ? chunk.rows - row : 0;
#pragma unroll
    for (int i = 0; i < TILE / ROWS; ++i)
        if (i * ROWS < rows) store_global16(out + i * step, load_shared16(panel + panel_offset(row, pack) + i * ROWS * PANEL_ROW));
}

// Writes a warpgroup's 64 columns of a sub-chunk's outputs, given transposed, through a panel that only this warpgroup uses.
__device__ __forceinline__ void store_columns(const Sums<TILE>& out, unsigned panel, const Chunk& chunk, const HeadColumns& to)
{
    const int lane = threadIdx.x % WARP, warp = threadIdx.x % WARPGROUP / WARP;
#pragma unroll
    for (int block = 0; block < TILE / 16; ++block) {
        unsigned pairs[4];
        pack_sums(out, block, pairs);
        store_matrices_transposed(panel + panel_offset(16 * block + lane % 8 + lane / 16 * 8, 2 * warp + lane / 8 % 2), pairs);
    }
    sync_threads(ALONE + consumer(), WARPGROUP);
    store_panel(panel, consumer() * PANEL, chunk, to);
}

// ---- Left operands in registers, of a consumer ----

// A panel's columns 16 w to 16 w + 15 for warp w of the warpgroup, as the rows of left operands that sum over the panel's rows.
__device__ __forceinline__ void load_transposed(unsigned panel, unsigned (&x)[STEPS][4])
{
    const int lane = threadIdx.x % WARP, warp = threadIdx.x % WARPGROUP / WARP;
    const unsigned from = panel + panel_offset(lane % 8 + lane / 16 * 8, 2 * warp + lane / 8 % 2);
#pragma unroll
    for (int step = 0; step < STEPS; ++step) load_matrices_transposed(from + step * SUMMANDS * PANEL_ROW, x[step]);
}

// y = x with summand j multiplied by factor weights[j], rounded once.
__device__ __forceinline__ void weigh_summands(const unsigned (&x)[STEPS][4], const float* weights, float factor, unsigned (&y)[STEPS][4])
{
#pragma unroll
    for (int step = 0; step < STEPS; ++step)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            float2 weight = *(const float2*)(weights + step * SUMMANDS + half * 8 + 2 * (threadIdx.x % 4));
            weight.x *= factor, weight.y *= factor;
#pragma unroll
            for (int i = 2 * half; i < 2 * half + 2; ++i) y[step][i] = pack_bf16(weight.x * low_of(x[step][i]), weight.y * high_of(x[step][i]));
        }
}

// ---- Products that both walks with output begin with ----

// Starts two groups of products of a sub-chunk: the scores of its far rows (keys) with this consumer's near rows (queries), and in sum what the state that enters, as bf16 left operands, gives to all near rows.
template <int D, int OWN> __device__ __forceinline__ void start_scores_and_entering(
    unsigned far, unsigned near, unsigned own_near, const unsigned (&entering)[D / SUMMANDS][4], Sums<OWN>& scores, Sums<TILE>& sum)
{
    begin_products();
#pragma unroll
    for (int step = 0; step < D / SUMMANDS; ++step) {
        const unsigned panel = step / STEPS * PANEL_BYTES;
        product<ALONG, ALONG>(along(far, step % STEPS, panel), along(own_near, step % STEPS, panel), step > 0, scores);
    }
    commit_products();
#pragma unroll
    for (int step = 0; step < D / SUMMANDS; ++step) product<ALONG>(entering[step], along(near, step % STEPS, step / STEPS * PANEL_BYTES), step > 0, sum);
    commit_products();
}

#endif

#endif
