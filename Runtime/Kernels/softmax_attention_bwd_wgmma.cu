// Gradients of softmax attention through a block of keys on Hopper's warpgroup products (sm_90a, bf16, heads of 64 or 128 channels); everything else runs softmax_attention_bwd.cu, whose contract
// this is: with p_ij = exp(scale q_i . k_j - lse_i) over the keys j that query i sees (softmax_visibility.cuh),
//     ds_ij = p_ij (dO_i . v_j - delta_i)
//     dq_i += scale sum_j ds_ij k_j        dk_j += scale sum_i ds_ij q_i        dv_j += sum_i p_ij dO_i
// q, dO [B, C, H, D], k, v [B, M, Hk, D], all 16-byte aligned; lse, delta [B, C, H]; dq [B, C, H, D], dk, dv [B, M, Hk, D] fp32, added to; dq 16-byte aligned.
//
// A block owns 128 keys of one key head: scores are formed once, dk and dv stay in registers, and the block's share of dq is added to memory. Shares of the same queries are added in the order of
// their keys, each block waiting for its predecessor's ticket, so that every run gives the same bits; blocks start in that order, and walk the queries (and within them the heads of the group)
// downwards, so that a predecessor is always ahead. Warpgroup 0: two warps fill two stages with 64 queries each, one thread adds the shares of dq. Warpgroups 1 and 2 hold 64 keys each.
// fp32 sums; p and ds are rounded to bf16 for their products.
#include "softmax_gradient_stages.cuh"

#if LASP_ELEMENT_BF16 && __CUDA_ARCH_FEAT_SM90_ALL

// What each run of 64 queries sees, for softmax_attention_bwd_64 and _128. spans [ceil(C / 64)]. Launch: one warp per run, blocks of 256.
#if WANTS(softmax_query_spans)
KERNEL softmax_query_spans(const int64* ranges, int64 first_key, int64 queries, int keys, SpanOfQueries* spans)
{
    const int64 run = global_thread() / WARP;
    if (run * QUERIES < queries) find_span<QUERIES>(ranges, run, first_key, queries, keys, spans);
}
#endif

// ---- Consumers ----

__device__ __forceinline__ float2 pair_of(const float* x, int i) { return *(const float2*)(x + sums_column(i)); }

template <int D> struct Consumer {
    const Tiles<D>& tiles;
    Shared& shared;
    int number, key;                      // the first of its 64 keys
    float factor, scale;
    Sums<D> dk, dv;
    Sums<QUERIES> p, ds;
    unsigned left_p[QUERIES / SUMMANDS][4], left_ds[QUERIES / SUMMANDS][4];  // p and ds as operands

    // p = k q^T
    __device__ __forceinline__ void start_scores(int step)
    {
        begin_products();
        correlate(tiles.k + number * KEYS * PANEL_ROW, tiles.q + step % STAGES * Tiles<D>::QUERY_BYTES, p);
        commit_products();
    }

    // ds = v dO^T
    __device__ __forceinline__ void start_gradients(int step)
    {
        begin_products();
        correlate(tiles.v + number * KEYS * PANEL_ROW, tiles.d_out + step % STAGES * Tiles<D>::QUERY_BYTES, ds);
        commit_products();
    }

    __device__ __forceinline__ void correlate(unsigned keys, unsigned queries, Sums<QUERIES>& sums)
    {
        asm volatile("" : "+r"(keys));  // so that the operands of all steps are not kept in registers from one run to the next
#pragma unroll
        for (int step = 0; step < D / SUMMANDS; ++step)
            product<ALONG, ALONG>(along(keys, step % 4, step / 4 * BLOCK_KEYS * PANEL_ROW), along(queries, step % 4, step / 4 * QUERIES * PANEL_ROW), step > 0, sums);
    }

    // Scores to p.
    __device__ __forceinline__ void exponentiate(const QueryRows& rows, bool masked)
    {
        if (masked) {
#pragma unroll
            for (int i = 0; i < Sums<QUERIES>::COUNT; ++i)
                if ((unsigned)(key + sums_row(i) - rows.first[sums_column(i)]) >= rows.count[sums_column(i)]) p.at[i] = -INFINITE;
        }
#pragma unroll
        for (int i = 0; i < Sums<QUERIES>::COUNT; i += 4) {
            const float2 lse = pair_of(rows.lse, i);
#pragma unroll
            for (int j = i; j < i + 4; ++j) p.at[j] = exp2_approximate(fmaf(p.at[j], factor, j % 2 ? -lse.y : -lse.x));
        }
    }

    // dO . v to ds, 16 queries at a time; p and ds are packed as left operands.
    __device__ __forceinline__ void differentiate(const QueryRows& rows)
    {
#pragma unroll
        for (int i = 0; i < Sums<QUERIES>::COUNT; i += 4) {
            const float2 delta = pair_of(rows.delta, i);
#pragma unroll
            for (int j = i; j < i + 4; ++j) ds.at[j] = p.at[j] * (ds.at[j] - (j % 2 ? delta.y : delta.x));
            if (i % 8 == 0) continue;
            pack_sums(p, i / 8, left_p[i / 8]);
            pack_sums(ds, i / 8, left_ds[i / 8]);
        }
    }

    // sums += left x, with x [64 queries, D]
    static __device__ __forceinline__ void multiply(const unsigned (&left)[QUERIES / SUMMANDS][4], unsigned x, Sums<D>& sums)
    {
#pragma unroll
        for (int step = 0; step < QUERIES / SUMMANDS; ++step) product<DOWN>(left[step], down(x, step, QUERIES * PANEL_ROW), 1, sums);
    }

    __device__ __forceinline__ void store_ds(int buffer)
    {
        const int lane = threadIdx.x % WARP, row = number * KEYS + threadIdx.x % WARPGROUP / WARP * 16 + lane % 16;
#pragma unroll
        for (int step = 0; step < QUERIES / SUMMANDS; ++step) store_matrices(tiles.ds + buffer * Tiles<D>::DS_BYTES + panel_offset(row, 2 * step + lane / 16), left_ds[step]);
        publish_to_products();
    }

    // share = ds k over all keys of the block, for this consumer's half of the columns
    __device__ __forceinline__ void start_share(int step, Sums<D / CONSUMERS>& share)
    {
        const int buffer = step % 2;
        int column = number * D / CONSUMERS;
        asm volatile("" : "+r"(column));
        wait_turn(shared.ds_full[buffer], step / 2 & 1);
        const unsigned k = tiles.k + column / PANEL * BLOCK_KEYS * PANEL_ROW + column % PANEL * 2, left = tiles.ds + buffer * Tiles<D>::DS_BYTES;
        begin_products();
#pragma unroll
        for (int summands = 0; summands < BLOCK_KEYS / SUMMANDS; ++summands)
            product<DOWN, DOWN>(down(left, summands, PANEL_ROW), down(k, summands, PANEL_ROW), summands > 0, share);
        commit_products();
    }

    __device__ __forceinline__ void store_share(int step, const Sums<D / CONSUMERS>& share)
    {
        arrive(shared.ds_empty[step % 2]);
        wait_turn(shared.share_empty, (step & 1) ^ 1);
        const int column = sums_column(0);  // the others are 8 further each: two packs, and a panel after four of them
        unsigned start = tiles.share + number * (D / CONSUMERS / SHARE_PANEL) * QUERIES * PANEL_ROW + panel_offset(sums_row(0), column / 4) + column % 4 * 4;
        asm volatile("" : "+r"(start));
#pragma unroll
        for (int i = 0; i < Sums<D / CONSUMERS>::COUNT; i += 2) {
            const unsigned to = (start ^ i / 4 % 4 << 5) + i / 16 * QUERIES * PANEL_ROW + i / 2 % 2 * 8 * PANEL_ROW;
            asm volatile("st.shared.v2.f32 [%0], {%1, %2};" ::"r"(to), "f"(scale * share.at[i]), "f"(scale * share.at[i + 1]) : "memory");
        }
        publish_to_products();
        arrive(shared.share_full);
    }

    // Whether there is such a step, once that is known.
    __device__ __forceinline__ bool arrives(int step)
    {
        wait_turn(shared.stage_full[step % STAGES], step / STAGES & 1);
        return shared.visits[step % NOTES].run >= 0;
    }

    // dv += p^T dO, dk += ds^T q
    __device__ __forceinline__ void start_sums(int step)
    {
        const int stage = step % STAGES;
        begin_products();
        multiply(left_p, tiles.d_out + stage * Tiles<D>::QUERY_BYTES, dv);
        multiply(left_ds, tiles.q + stage * Tiles<D>::QUERY_BYTES, dk);
        commit_products();
    }

    __device__ __forceinline__ void finish_ds(int step)
    {
        start_gradients(step);
        wait_products<0>();
        pin(ds);
        differentiate(shared.rows[step % STAGES]);
        wait_turn(shared.ds_empty[step % 2], (step / 2 & 1) ^ 1);
        store_ds(step % 2);
        arrive(shared.ds_full[step % 2]);
    }

    // Returns the number of steps. Each turn ends one step while it starts the next: the tensor cores always have something to do.
    __device__ __forceinline__ int run()
    {
        if (!arrives(0)) {
            arrive(shared.share_full);
            return 0;
        }
        start_scores(0);
        wait_products<0>();
        pin(p);
        exponentiate(shared.rows[0], shared.visits[0].masked);
        finish_ds(0);
        int step = 1;
#pragma unroll 1
        for (; arrives(step); ++step) {
            start_sums(step - 1);
            wait_products<0>();
            start_scores(step);
            arrive(shared.stage_empty[(step - 1) % STAGES]);
            Sums<D / CONSUMERS> share;
            start_share(step - 1, share);
            wait_products<1>();
            pin(p);
            exponentiate(shared.rows[step % STAGES], shared.visits[step % NOTES].masked);
            wait_products<0>();
            pin(share);
            store_share(step - 1, share);
            finish_ds(step);
        }
        start_sums(step - 1);
        Sums<D / CONSUMERS> share;
        start_share(step - 1, share);
        wait_products<0>();
        pin(dk);
        pin(dv);
        pin(share);
        store_share(step - 1, share);
        wait_turn(shared.share_empty, (step & 1) ^ 1);
        arrive(shared.share_full);  // no more
        return step;
    }
};

// x [rows, D] += factor sums
template <int D> __device__ __forceinline__ void add_sums(const Sums<D>& sums, float factor, int rows, int64 stride, float* x)
{
#pragma unroll
    for (int i = 0; i < Sums<D>::COUNT; i += 2) {
        if (sums_row(i) >= rows) continue;
        float2* to = (float2*)(x + sums_row(i) * stride + sums_column(i));
        const float2 old = *to;
        *to = make_float2(fmaf(factor, sums.at[i], old.x), fmaf(factor, sums.at[i + 1], old.y));
    }
}

template <int D> __device__ __forceinline__ void consume(const Call& call, const Unit& unit, const Tiles<D>& tiles, Shared& shared)
{
    const int thread = threadIdx.x - WARPGROUP, number = thread / WARPGROUP;
    const int64 stride = (int64)call.key_heads * D, block = ((unit.batch * call.keys + unit.key) * call.key_heads + unit.key_head) * D;
    copy_panels<BLOCK_KEYS, D / PANEL, CONSUMERS * WARPGROUP>(tiles.k, call.k + block, stride, call.keys - unit.key, thread);
    copy_panels<BLOCK_KEYS, D / PANEL, CONSUMERS * WARPGROUP>(tiles.v, call.v + block, stride, call.keys - unit.key, thread);
    publish_copies();
    sync_threads(READY, CONSUMERS * WARPGROUP);

    Consumer<D> consumer = { tiles, shared, number, unit.key + number * KEYS, call.scale * LOG2_E, call.scale };
#pragma unroll
    for (int i = 0; i < Sums<D>::COUNT; ++i) consumer.dk.at[i] = consumer.dv.at[i] = 0.0f;
    if (consumer.run() == 0) return;
    add_sums(consumer.dk, call.scale, call.keys - consumer.key, stride, call.dk + block + number * KEYS * stride);
    add_sums(consumer.dv, 1.0f, call.keys - consumer.key, stride, call.dv + block + number * KEYS * stride);
}

template <int D> __device__ __forceinline__ void differentiate_block(const Call& call)
{
    extern __shared__ unsigned char memory[];
    __shared__ Shared shared;
    const Tiles<D> tiles = Tiles<D>::at((shared_address(memory) + 1023) & ~1023u);
    if (threadIdx.x == 0) {
        const int64 number = atomicAdd(call.tickets, 1), lines = call.batches * call.key_heads, line = number % lines;
        shared.unit = { line / call.key_heads, (int)(line % call.key_heads), (int)(number / lines) * BLOCK_KEYS };
        shared.init();
    }
    __syncthreads();
    const Unit& unit = shared.unit;
    if (threadIdx.x < WARPGROUP) {
        give_registers<PRODUCER_REGISTERS>();
        if (threadIdx.x < STAGES * WARP) produce<D>(call, unit, tiles, shared);
        else if (threadIdx.x == STAGES * WARP) add_shares<D>(call, unit, tiles, shared);
    } else {
        take_registers<CONSUMER_REGISTERS>();
        consume<D>(call, unit, tiles, shared);
    }
}

// Launch: 384 threads, one block per (128 keys, b, key head), 33792 + 1280 D bytes of dynamic shared memory.
#define SOFTMAX_ATTENTION_BACKWARD(name, D)                                                                                                                                          \
    KERNEL __launch_bounds__(THREADS, 1) name(                                                                                                                                      \
        const __grid_constant__ TensorMap q, const bf16* k, const bf16* v, const __grid_constant__ TensorMap d_out, const float* lse, const float* delta, const int64* ranges,         \
        const SpanOfQueries* spans, int* tickets, int64 first_key, int64 queries, int keys, int heads, int key_heads, int64 batches, float scale,                                    \
        const __grid_constant__ TensorMap dq, float* dk, float* dv)                                                                                                                  \
    {                                                                                                                                                                                \
        differentiate_block<D>({ &q, &d_out, &dq, k, v, lse, delta, ranges, spans, tickets, first_key, queries, keys, heads, key_heads, batches, scale, dk, dv });                   \
    }

#if WANTS(softmax_attention_bwd_64)
SOFTMAX_ATTENTION_BACKWARD(softmax_attention_bwd_64, 64)
#endif
#if WANTS(softmax_attention_bwd_128)
SOFTMAX_ATTENTION_BACKWARD(softmax_attention_bwd_128, 128)
#endif

#endif
