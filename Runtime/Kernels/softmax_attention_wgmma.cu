// Softmax attention over a block of keys on Hopper's warpgroup products (sm_90a, bf16, heads of 64 or 128 channels); everything else runs softmax_attention.cu, whose contract this is:
//     o_i = sum_j softmax_j(scale q_i . k_j) v_j,   lse_i = log sum_j exp(scale q_i . k_j)     over the keys j that query i sees (softmax_visibility.cuh), scale > 0
// A query that sees none has o = 0 and lse = -infinity.
// q [B, C, H, D], k, v [B, M, Hk, D], 16-byte aligned; o [B, C, H, D] bf16 or, in the kernels named f32, fp32; lse [B, C, H] fp32.
// A block makes 128 queries of one head. Two threads of warpgroup 0 order copies of tiles of 128 keys and of values into two stages; warpgroups 1 and 2 hold 64 queries each: scores, weights and
// the output stay in their registers. While the tensor cores form the scores of the next tile and add the values of this one, the other warpgroup turns scores into weights.
// fp32 sums and running maxima, keys in ascending order: deterministic. The weights are rounded to bf16 for their product with v.
#include "softmax_rows.cuh"
#include "stages.cuh"

#if LASP_ELEMENT_BF16 && __CUDA_ARCH_FEAT_SM90_ALL

constexpr int QUERIES = 64;               // of one consumer
constexpr int CONSUMERS = 2;              // warpgroups
constexpr int BLOCK_QUERIES = CONSUMERS * QUERIES;
constexpr int KEYS = 128;                 // of one tile
constexpr int STAGES = 2;
constexpr int THREADS = (1 + CONSUMERS) * WARPGROUP;
constexpr int PRODUCER_REGISTERS = 24, CONSUMER_REGISTERS = 240;
constexpr int TURN = 1;                   // named barriers: the turn of consumer 0, of consumer 1

// ---- What a block works on ----

struct Call {
    const TensorMap *q, *k, *v;  // boxes of 64 queries, of 128 keys
    const int64* ranges;
    int64 first_key;
    Extents extents;
    float scale;
};

template <int D> struct Tiles {
    static constexpr unsigned QUERY_BYTES = QUERIES * D * 2, KEY_BYTES = KEYS * D * 2;
    unsigned q, k, v;  // addresses: [CONSUMERS] x 64 queries, [STAGES] x 128 keys, the same of values

    static __device__ __forceinline__ Tiles at(unsigned start) { return { start, start + CONSUMERS * QUERY_BYTES, start + CONSUMERS * QUERY_BYTES + STAGES * KEY_BYTES }; }
};

struct Stages {
    Barrier q_full, k_full[STAGES], k_empty[STAGES], v_full[STAGES], v_empty[STAGES];

    __device__ __forceinline__ void init()
    {
        init_barrier(q_full, 1);
        for (int s = 0; s < STAGES; ++s) {
            init_barrier(k_full[s], 1);
            init_barrier(v_full[s], 1);
            init_barrier(k_empty[s], CONSUMERS * WARPGROUP);
            init_barrier(v_empty[s], CONSUMERS * WARPGROUP);
        }
    }
};

// ---- Producers: one thread for queries and keys, one for values ----

template <int D> __device__ __forceinline__ void copy_rows(unsigned to, const TensorMap* from, Box box, int rows, Barrier& full)
{
    for (; box.column < D; box.column += PANEL, to += rows * PANEL_ROW) copy_box_async(to, from, box, full);
}

template <int D> __device__ __forceinline__ void produce_queries(const Call& call, const Unit& unit, const Tiles<D>& tiles, Stages& stages)
{
    expect_bytes(stages.q_full, CONSUMERS * Tiles<D>::QUERY_BYTES);
#pragma unroll 1
    for (int n = 0; n < CONSUMERS; ++n)
        copy_rows<D>(tiles.q + n * Tiles<D>::QUERY_BYTES, call.q, { 0, unit.head, (int)unit.token + n * QUERIES, (int)unit.batch }, QUERIES, stages.q_full);
    arrive(stages.q_full);
}

template <int D> __device__ __forceinline__ void produce_keys(
    const TensorMap* from, const Unit& unit, int first, int count, unsigned tiles, Barrier (&full)[STAGES], Barrier (&empty)[STAGES])
{
#pragma unroll 1
    for (int tile = 0; tile < count; ++tile) {
        const int stage = tile % STAGES;
        wait_turn(empty[stage], (tile / STAGES & 1) ^ 1);
        expect_bytes(full[stage], Tiles<D>::KEY_BYTES);
        copy_rows<D>(tiles + stage * Tiles<D>::KEY_BYTES, from, { 0, unit.key_head, first + tile * KEYS, (int)unit.batch }, KEYS, full[stage]);
        arrive(full[stage]);
    }
}

// ---- Consumer ----

// The running softmax of this thread's two rows: maximum of the scores, and this thread's part of the sum of 2^(factor (score - maximum)).
struct RunningSoftmax {
    float maximum[2], sum[2];

    // Turns scores into weights relative to the new maxima; what was accumulated under the old ones is to be multiplied by `kept`.
    __device__ __forceinline__ void absorb(Sums<KEYS>& scores, float factor, float (&kept)[2])
    {
#pragma unroll
        for (int row = 0; row < 2; ++row) {
            float top = maximum[row], other = -INFINITE;
#pragma unroll
            for (int i = 2 * row; i < Sums<KEYS>::COUNT; i += 4) {
                top = fmaxf(top, scores.at[i]);
                other = fmaxf(other, scores.at[i + 1]);
            }
            top = row_reduce(fmaxf(top, other), Maximum());
            const float reference = top == -INFINITE ? 0.0f : top * factor;  // nothing seen yet: all weights are 2^(-infinity)
            kept[row] = exp2_approximate(fmaf(maximum[row], factor, -reference));
            maximum[row] = top;
            float added = 0.0f, also = 0.0f;
#pragma unroll
            for (int i = 2 * row; i < Sums<KEYS>::COUNT; i += 4) {
                scores.at[i] = exp2_approximate(fmaf(scores.at[i], factor, -reference));
                scores.at[i + 1] = exp2_approximate(fmaf(scores.at[i + 1], factor, -reference));
                added += scores.at[i];
                also += scores.at[i + 1];
            }
            sum[row] = fmaf(sum[row], kept[row], added + also);
        }
    }
};

template <int D> struct Consumer {
    const Tiles<D>& tiles;
    Stages& stages;
    KeySpan seen[2];        // of this thread's rows
    KeySpan seen_by_all;    // of this warp's rows
    int number;
    Sums<KEYS> scores;
    Sums<D> out;
    unsigned weights[KEYS / SUMMANDS][4];
    RunningSoftmax softmax;

    // scores = q k^T of a tile; not waited for.
    __device__ __forceinline__ void start_scores(int tile)
    {
        const int stage = tile % STAGES;
        wait_turn(stages.k_full[stage], tile / STAGES & 1);
        const unsigned q = tiles.q + number * Tiles<D>::QUERY_BYTES, k = tiles.k + stage * Tiles<D>::KEY_BYTES;
        begin_products();
#pragma unroll
        for (int step = 0; step < D / SUMMANDS; ++step)
            product<ALONG, ALONG>(along(q, step % 4, step / 4 * QUERIES * PANEL_ROW), along(k, step % 4, step / 4 * KEYS * PANEL_ROW), step > 0, scores);
        commit_products();
    }

    // out += weights v of a tile; not waited for.
    __device__ __forceinline__ void start_output(int tile)
    {
        const int stage = tile % STAGES;
        wait_turn(stages.v_full[stage], tile / STAGES & 1);
        begin_products();
#pragma unroll
        for (int step = 0; step < KEYS / SUMMANDS; ++step) product<DOWN>(weights[step], down(tiles.v + stage * Tiles<D>::KEY_BYTES, step, KEYS * PANEL_ROW), 1, out);
        commit_products();
    }

    __device__ __forceinline__ void mask(int first)
    {
        if (seen_by_all.first <= first && first + KEYS - 1 <= seen_by_all.last) return;
#pragma unroll
        for (int row = 0; row < 2; ++row) {
            const int offset = first + sums_column(0) - seen[row].first;
            const unsigned count = seen[row].count();
#pragma unroll
            for (int i = 2 * row; i < Sums<KEYS>::COUNT; i += 4) {
                if ((unsigned)(offset + i / 4 * 8) >= count) scores.at[i] = -INFINITE;
                if ((unsigned)(offset + i / 4 * 8 + 1) >= count) scores.at[i + 1] = -INFINITE;
            }
        }
    }

    __device__ __forceinline__ void rescale(const float (&kept)[2])
    {
        if (__all_sync(0xFFFFFFFFu, kept[0] == 1.0f && kept[1] == 1.0f)) return;
#pragma unroll
        for (int i = 0; i < Sums<D>::COUNT; ++i) out.at[i] *= kept[i / 2 % 2];
    }

    __device__ __forceinline__ void pack_weights()
    {
#pragma unroll
        for (int step = 0; step < KEYS / SUMMANDS; ++step) pack_sums(scores, step, weights[step]);
    }

    __device__ __forceinline__ void take_turn()
    {
        sync_threads(TURN + number, CONSUMERS * WARPGROUP);
    }

    __device__ __forceinline__ void pass_turn()
    {
        asm volatile("bar.arrive %0, %1;" ::"r"(TURN + 1 - number), "r"(CONSUMERS * WARPGROUP) : "memory");
    }

    __device__ __forceinline__ void run(int first, int count, float factor)
    {
        float kept[2];
        if (number == 1) pass_turn();  // consumer 0 starts
        take_turn();
        start_scores(0);
        pass_turn();
        wait_products<0>();
        pin(scores);
        arrive(stages.k_empty[0]);
        mask(first);
        softmax.absorb(scores, factor, kept);
        pack_weights();
#pragma unroll 1
        for (int tile = 1; tile < count; ++tile) {
            take_turn();
            start_scores(tile);
            start_output(tile - 1);
            pass_turn();
            wait_products<1>();
            pin(scores);
            arrive(stages.k_empty[tile % STAGES]);
            mask(first + tile * KEYS);
            softmax.absorb(scores, factor, kept);
            wait_products<0>();
            pin(out);
            arrive(stages.v_empty[(tile - 1) % STAGES]);
            rescale(kept);
            pack_weights();
        }
        take_turn();
        start_output(count - 1);
        if (number == 0) pass_turn();
        wait_products<0>();
        pin(out);
    }
};

template <int D, typename Output> __device__ __forceinline__ void consume(
    const Call& call, const Unit& unit, const Tiles<D>& tiles, Stages& stages, int first, int count, Output* o, float* log_sum_exp)
{
    const int number = threadIdx.x / WARPGROUP - 1, first_row = number * QUERIES;
    const int64 row_of_token = (unit.batch * call.extents.queries + unit.token) * call.extents.heads + unit.head;
    Consumer<D> consumer = { tiles, stages };
    consumer.number = number;
    consumer.softmax = { { -INFINITE, -INFINITE }, { 0.0f, 0.0f } };
    SpanOfQueries seen = SpanOfQueries::neutral(call.extents.keys);
#pragma unroll
    for (int row = 0; row < 2; ++row) {
        const int query = first_row + sums_row(2 * row);
        consumer.seen[row] = { 0, call.extents.keys - 1 };
        if (query >= unit.rows) continue;
        consumer.seen[row] = seen_by(call.ranges, unit.token + query, call.first_key, call.extents.keys);
        seen = seen.and_of({ consumer.seen[row], consumer.seen[row] });
    }
    consumer.seen_by_all = reduce_spans(seen).all;
#pragma unroll
    for (int i = 0; i < Sums<D>::COUNT; ++i) consumer.out.at[i] = 0.0f;
    wait_turn(stages.q_full, 0);
    if (count > 0) consumer.run(first, count, call.scale * LOG2_E);

#pragma unroll
    for (int row = 0; row < 2; ++row) {
        const int query = first_row + sums_row(2 * row);
        const float sum = row_reduce(consumer.softmax.sum[row], Sum()), inverse = sum > 0.0f ? 1.0f / sum : 0.0f;
        if (query >= unit.rows) continue;
        const int64 to = row_of_token + query * (int64)call.extents.heads;
#pragma unroll
        for (int i = 2 * row; i < Sums<D>::COUNT; i += 4) store_pair(consumer.out.at[i] * inverse, consumer.out.at[i + 1] * inverse, o + to * D + sums_column(i));
        if (threadIdx.x % 4 == 0) log_sum_exp[to] = sum > 0.0f ? fmaf(consumer.softmax.maximum[row], call.scale, logf(sum)) : -INFINITE;
    }
}

template <int D, typename Output> __device__ __forceinline__ void attend(const Call& call, Output* o, float* log_sum_exp)
{
    extern __shared__ unsigned char memory[];
    __shared__ Stages stages;
    __shared__ KeySpan seen_by_warp[BLOCK_QUERIES / WARP];
    const Extents& x = call.extents;
    const Unit unit = unit_of(x, D, BLOCK_QUERIES);
    const Tiles<D> tiles = Tiles<D>::at((shared_address(memory) + 1023) & ~1023u);
    if (threadIdx.x < BLOCK_QUERIES) {
        const KeySpan mine = (int)threadIdx.x < unit.rows ? seen_by(call.ranges, unit.token + threadIdx.x, call.first_key, x.keys) : KeySpan { x.keys, -1 };
        const KeySpan any = reduce_spans({ mine, mine }).any;
        if (threadIdx.x % WARP == 0) seen_by_warp[threadIdx.x / WARP] = any;
    }
    if (threadIdx.x == 0) stages.init();
    __syncthreads();
    KeySpan any = seen_by_warp[0];
    for (int w = 1; w < BLOCK_QUERIES / WARP; ++w) any = { min(any.first, seen_by_warp[w].first), max(any.last, seen_by_warp[w].last) };
    const int count = any.empty() ? 0 : (any.last - any.first) / KEYS + 1;

    if (threadIdx.x < WARPGROUP) {
        give_registers<PRODUCER_REGISTERS>();
        if (threadIdx.x == 0) {
            produce_queries<D>(call, unit, tiles, stages);
            produce_keys<D>(call.k, unit, any.first, count, tiles.k, stages.k_full, stages.k_empty);
        } else if (threadIdx.x == WARP) {
            produce_keys<D>(call.v, unit, any.first, count, tiles.v, stages.v_full, stages.v_empty);
        }
    } else {
        take_registers<CONSUMER_REGISTERS>();
        consume<D>(call, unit, tiles, stages, any.first, count, o, log_sum_exp);
    }
}

// Launch: 384 threads, one block per (128 queries, b, h), 1024 + 1280 D bytes of dynamic shared memory.
#define SOFTMAX_ATTENTION(name, D, Output)                                                                                                                                        \
    KERNEL __launch_bounds__(THREADS, 1) name(                                                                                                                                      \
        const __grid_constant__ TensorMap q, const __grid_constant__ TensorMap k, const __grid_constant__ TensorMap v, const int64* ranges, int64 first_key, int64 queries, int keys,  \
        int heads, int key_heads, int64 batches, float scale, Output* o, float* log_sum_exp)                                                                                         \
    {                                                                                                                                                                                \
        attend<D>({ &q, &k, &v, ranges, first_key, { queries, keys, heads, key_heads, batches }, scale }, o, log_sum_exp);                                                                \
    }

#if WANTS(softmax_attention_fwd_64)
SOFTMAX_ATTENTION(softmax_attention_fwd_64, 64, bf16)
#endif
#if WANTS(softmax_attention_fwd_64_f32)
SOFTMAX_ATTENTION(softmax_attention_fwd_64_f32, 64, float)
#endif
#if WANTS(softmax_attention_fwd_128)
SOFTMAX_ATTENTION(softmax_attention_fwd_128, 128, bf16)
#endif
#if WANTS(softmax_attention_fwd_128_f32)
SOFTMAX_ATTENTION(softmax_attention_fwd_128_f32, 128, float)
#endif

#endif
