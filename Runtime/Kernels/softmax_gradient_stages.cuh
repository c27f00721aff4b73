// What happens around the products of softmax_attention_bwd_wgmma.cu: what a block of 128 keys is called with, how its shared memory is laid out, the two warps that fill its stages with 64 queries each, and
// the thread that adds its shares of dq in the order of the keys.
#ifndef LASP_SOFTMAX_GRADIENT_STAGES
#define LASP_SOFTMAX_GRADIENT_STAGES
#include "softmax_visibility.cuh"
#include "stages.cuh"

#if LASP_ELEMENT_BF16 && __CUDA_ARCH_FEAT_SM90_ALL

constexpr int QUERIES = 64;               // of one step
constexpr int KEYS = 64;                  // of one consumer
constexpr int CONSUMERS = 2;              // warpgroups
constexpr int BLOCK_KEYS = CONSUMERS * KEYS;
constexpr int STAGES = 2;
constexpr int SHARE_PANEL = PANEL / 2;    // columns of fp32
constexpr int NOTES = 8;                  // visits remembered: the share of dq of a step leaves up to four visits later
constexpr int CONSUMER_THREADS = CONSUMERS * WARPGROUP;
constexpr int THREADS = (1 + CONSUMERS) * WARPGROUP;
constexpr int PRODUCER_REGISTERS = 56, CONSUMER_REGISTERS = 224;
constexpr int READY = 1;                  // named barrier of all consumers

struct Call {
    const TensorMap *q, *d_out, *dq;      // boxes of 64 tokens
    const bf16 *k, *v;
    const float *lse, *delta;
    const int64* ranges;
    const SpanOfQueries* spans;
    int* tickets;                         // [1 + B * H * runs], zero before the launch: blocks started, and shares added to each run of 64 queries
    int64 first_key, queries;
    int keys, heads, key_heads;
    int64 batches;
    float scale;
    float *dk, *dv;
};

struct Unit {
    int64 batch;
    int key_head, key;                    // the block's first key
};

// ---- Shared memory ----

// One stage's query rows. Queries that do not exist or see nothing have lse = infinity, so that p = 0.
struct QueryRows {
    float lse[QUERIES], delta[QUERIES];   // lse in units of ln 2
    int first[QUERIES];
    unsigned count[QUERIES];
};

// A step: run `run` of 64 queries of one head. No more steps: run < 0.
struct Visit {
    int run, head, rank;                  // rank: blocks of keys that add to this run before
    bool masked;
};

struct Shared {
    Barrier stage_full[STAGES], stage_empty[STAGES];  // q, dO and their rows
    Barrier ds_full[2], ds_empty[2];
    Barrier share_full, share_empty;                  // of dq
    Visit visits[NOTES];
    Unit unit;
    QueryRows rows[STAGES];

    __device__ __forceinline__ void init()
    {
        for (int s = 0; s < STAGES; ++s) {
            init_barrier(stage_full[s], WARP);
            init_barrier(stage_empty[s], CONSUMER_THREADS);
            init_barrier(ds_full[s], CONSUMER_THREADS);
            init_barrier(ds_empty[s], CONSUMER_THREADS);
        }
        init_barrier(share_full, CONSUMER_THREADS);
        init_barrier(share_empty, 1);
    }
};

template <int D> struct Tiles {
    static constexpr unsigned KEY_BYTES = BLOCK_KEYS * D * 2, QUERY_BYTES = QUERIES * D * 2, DS_BYTES = BLOCK_KEYS * PANEL_ROW;
    unsigned k, v, q, d_out, ds, share;                  // addresses

    static __device__ __forceinline__ Tiles at(unsigned start)
    {
        Tiles t;
        t.k = start;
        t.v = t.k + KEY_BYTES;
        t.q = t.v + KEY_BYTES;
        t.d_out = t.q + STAGES * QUERY_BYTES;
        t.ds = t.d_out + STAGES * QUERY_BYTES;
        t.share = t.ds + 2 * DS_BYTES;
        return t;
    }
};

// ---- Producers: warp s fills stage s ----

// Query rows of one lane, fetched before the stage is free.
struct FetchedRows {
    float lse[QUERIES / WARP], delta[QUERIES / WARP];
    KeySpan seen[QUERIES / WARP];

    __device__ __forceinline__ void fetch(const Call& call, int64 row_of_run, int64 first_query, int rows)
    {
#pragma unroll
        for (int n = 0; n < QUERIES / WARP; ++n) {
            const int i = n * WARP + threadIdx.x % WARP;
            lse[n] = INFINITE;
            delta[n] = 0.0f;
            seen[n] = { 0, -1 };
            if (i >= rows) continue;
            seen[n] = seen_by(call.ranges, first_query + i, call.first_key, call.keys);
            const int64 row = row_of_run + i * (int64)call.heads;
            lse[n] = call.lse[row];
            delta[n] = call.delta[row];
        }
    }

    __device__ __forceinline__ void store(QueryRows& to) const
    {
#pragma unroll
        for (int n = 0; n < QUERIES / WARP; ++n) {
            const int i = n * WARP + threadIdx.x % WARP;
            to.lse[i] = lse[n] == -INFINITE ? INFINITE : lse[n] * LOG2_E;
            to.delta[i] = delta[n];
            to.first[i] = seen[n].first;
            to.count[i] = seen[n].count();
        }
    }
};

// The visits of a block by one warp, which looks at 32 runs of queries at a time: the last run first, its heads upwards.
struct Walk {
    const Call& call;
    const Unit& unit;
    int chunk, head;                      // the next run is that of the highest bit of `sees`, counted from `chunk`
    unsigned sees, masked;
    int first_key;                        // that run `chunk + lane` sees

    static __device__ __forceinline__ Walk start(const Call& call, const Unit& unit)
    {
        return { call, unit, ((int)((call.queries + QUERIES - 1) / QUERIES) + WARP - 1) / WARP * WARP, 0, 0, 0, 0 };
    }

    __device__ __forceinline__ void look_down()
    {
        chunk -= WARP;
        const int run = chunk + threadIdx.x % WARP, last_key = unit.key + BLOCK_KEYS - 1;
        SpanOfQueries seen = SpanOfQueries::neutral(call.keys);
        if (run < (call.queries + QUERIES - 1) / QUERIES) seen = call.spans[run];
        sees = __ballot_sync(0xFFFFFFFFu, seen.any.first <= last_key && unit.key <= seen.any.last);
        masked = __ballot_sync(0xFFFFFFFFu, seen.all.first > unit.key || seen.all.last < last_key);
        first_key = seen.any.first;
    }

    __device__ __forceinline__ Visit next()
    {
        while (!sees && chunk > 0) look_down();
        if (!sees) return { -1, 0, 0, false };
        const int group = call.heads / call.key_heads, bit = WARP - 1 - __clz(sees);
        const int rank = unit.key / BLOCK_KEYS - __shfl_sync(0xFFFFFFFFu, first_key, bit) / BLOCK_KEYS;
        const Visit visit = { chunk + bit, unit.key_head * group + head, rank, (masked >> bit & 1) != 0 };
        if (++head == group) head = 0, sees &= ~(1u << bit);
        return visit;
    }
};

template <int D> __device__ __forceinline__ void copy_queries(const Call& call, Box box, const Tiles<D>& tiles, int stage, Barrier& full)
{
    expect_bytes(full, 2 * Tiles<D>::QUERY_BYTES);
#pragma unroll
    for (; box.column < D; box.column += PANEL) {
        const unsigned panel = stage * Tiles<D>::QUERY_BYTES + box.column / PANEL * QUERIES * PANEL_ROW;
        copy_box_async(tiles.q + panel, call.q, box, full);
        copy_box_async(tiles.d_out + panel, call.d_out, box, full);
    }
}

template <int D> __device__ __forceinline__ void fill_stage(const Call& call, const Unit& unit, const Tiles<D>& tiles, Shared& shared, int step, const Visit& visit)
{
    const int stage = step % STAGES;
    const int64 query = (int64)visit.run * QUERIES, row = (unit.batch * call.queries + query) * call.heads + visit.head;
    const int rows = visit.run < 0 ? 0 : (int)min((int64)QUERIES, call.queries - query);
    FetchedRows fetched;
    fetched.fetch(call, row, query, rows);
    wait_turn(shared.stage_empty[stage], (step / STAGES & 1) ^ 1);
    if (threadIdx.x % WARP == 0) {
        shared.visits[step % NOTES] = visit;
        if (visit.run >= 0) copy_queries<D>(call, { 0, visit.head, (int)query, (int)unit.batch }, tiles, stage, shared.stage_full[stage]);
    }
    fetched.store(shared.rows[stage]);
    arrive(shared.stage_full[stage]);
}

template <int D> __device__ __forceinline__ void produce(const Call& call, const Unit& unit, const Tiles<D>& tiles, Shared& shared)
{
    Walk walk = Walk::start(call, unit);
    for (int step = 0;; ++step) {
        const Visit visit = walk.next();
        if (step % STAGES == threadIdx.x / WARP) fill_stage(call, unit, tiles, shared, step, visit);
        if (visit.run < 0) break;
    }
}

// ---- The thread that adds shares of dq ----

__device__ __forceinline__ void wait_ticket(const int* ticket, int number)
{
    int reached;
    do {
        asm volatile("ld.acquire.gpu.global.s32 %0, [%1];" : "=r"(reached) : "l"(ticket) : "memory");
    } while (reached < number);
}

__device__ __forceinline__ void give_ticket(int* ticket) { asm volatile("red.release.gpu.global.add.s32 [%0], 1;" ::"l"(ticket) : "memory"); }

// By one thread.
template <int D> __device__ __forceinline__ void add_shares(const Call& call, const Unit& unit, const Tiles<D>& tiles, Shared& shared)
{
    const int64 runs = (call.queries + QUERIES - 1) / QUERIES;
    for (int step = 0;; ++step) {
        wait_turn(shared.share_full, step & 1);
        const Visit visit = shared.visits[step % NOTES];
        if (visit.run < 0) return;
        int* ticket = call.tickets + 1 + (unit.batch * call.heads + visit.head) * runs + visit.run;
        wait_ticket(ticket, visit.rank);
#pragma unroll
        for (int column = 0; column < D; column += SHARE_PANEL)
            add_box_async(call.dq, { column, visit.head, visit.run * QUERIES, (int)unit.batch }, tiles.share + column / SHARE_PANEL * QUERIES * PANEL_ROW);
        commit_additions();
        wait_additions_read();
        arrive(shared.share_empty);
        wait_additions();
        give_ticket(ticket);
    }
}

#endif

#endif
