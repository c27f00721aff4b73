// The walk of linear_attention_output.cu on Hopper's tensor cores, for bf16, one decay for all channels, widths of multiples of 8 up to 128, at least as many q heads as key heads:
//     S_i = exp(g) . S_{i-1} + k_scale k_i^T v_i          out_i = out_scale q_i S_i          with q, k, v, S_0 and reverse as there (o; dq; dk and dv of ungrouped heads)
// q [B, N, Hq, D]; k [B, N, Hk, D]; v [B, N, Hk, E]; out [B, N, Hq, E] bf16; decay and entering fp32.
// entering [segments, B, Hq, D, E], or [.., E, D] when transposed = 1: the state that enters each segment; null: zero.
// Consumer w holds columns 64 w to 64 w + 63 of the state, transposed, in registers, as fp32. For each sub-chunk, with weights from attention_panels.cuh:
//     P^T = k q^T, masked and decayed         shared by the consumers through memory, as bf16, in two panels by turns
//     out^T = (S^T q^T) . from entry + v^T P^T,          S^T = through . S^T + (v . to exit)^T k          S^T as the left operand is rounded to bf16, the carry is not
// fp32 accumulation in a fixed order. With PATHS the walk also keeps the states that enter the sub-chunks, and finds what arrives from them (decay_paths.cuh).
#ifndef LASP_OUTPUT_WALK
#define LASP_OUTPUT_WALK
#include "decay_paths.cuh"

#if LASP_ELEMENT_BF16 && __CUDA_ARCH_FEAT_SM90_ALL

// A consumer's share of a state in memory (null: zero): row r of its sums is column 64 consumer + r of the state.
template <int D> __device__ __forceinline__ void load_columns(const float* from, int width, int value_width, int transposed, Sums<D>& state)
{
    const int64 row_step = transposed ? 1 : value_width, column_step = transposed ? width : 1;
    const int d = sums_column(0), e = consumer() * PANEL + sums_row(0);
    const bool any = from;
    from += d * row_step + e * column_step;
#pragma unroll
    for (int block = 0; block < D / 8; ++block, from += 8 * row_step)
#pragma unroll
        for (int i = 0; i < 4; ++i)
            state.at[4 * block + i] = any && d + 8 * block + i % 2 < width && e + i / 2 * 8 < value_width ? from[i % 2 * row_step + i / 2 * 8 * column_step] : 0.0f;
}

// Decays P^T (rows: tokens j; columns: tokens i from first_column on), zero where j > i, and leaves it in a panel as bf16.
template <int N> __device__ __forceinline__ void store_scores(const Sums<N>& scores, const DecayTable& table, float factor, int first_column, unsigned panel)
{
    const int lane = threadIdx.x % WARP, warp = threadIdx.x % WARPGROUP / WARP;
    const float row_logs[2] = { table.logs[sums_row(0)], table.logs[sums_row(2)] };
    const unsigned to = panel + (16 * warp + lane % 16) * PANEL_ROW;
#pragma unroll
    for (int block = 0; block < N / 16; ++block) {
        unsigned pairs[4];
#pragma unroll
        for (int pair = 0; pair < 4; ++pair) {
            const int first = 8 * block + 2 * pair, row = sums_row(first), column = first_column + sums_column(first);
            const float2 logs = *(const float2*)(table.logs + column);
            const float low = factor * scores.at[first] * exp2_approximate(logs.x - row_logs[pair % 2]), high = factor * scores.at[first + 1] * exp2_approximate(logs.y - row_logs[pair % 2]);
            pairs[pair] = pack_bf16(row <= column ? low : 0.0f, row <= column + 1 ? high : 0.0f);
        }
        store_matrices(to + ((first_column / 8 + 2 * block + lane / 16 ^ lane % 8) << 4), pairs);
    }
}

template <int D, int E, bool PATHS> struct OutputWalk {
    static constexpr int CONSUMERS = E / PANEL, THREADS_OF_BLOCK = (1 + CONSUMERS) * WARPGROUP;
    static constexpr int BLOCKS = D == 64 && E == 64 ? 2 : 1;                                     // of a multiprocessor
    static constexpr int REGISTERS = CONSUMERS == 2 ? 232 : BLOCKS == 2 ? 216 : 0, SPARE = 40;    // of a consumer's and a producer's thread, where they move; no more than at launch
    static constexpr int Q_BYTES = panels_of(D) * PANEL_BYTES, V_BYTES = panels_of(E) * PANEL_BYTES, STAGE_BYTES = 2 * Q_BYTES + (PATHS ? 2 : 1) * V_BYTES;
    static constexpr int STAGES = (200 << 10) / BLOCKS / STAGE_BYTES, AHEAD = STAGES - 2;
    static constexpr int OWN = TILE / CONSUMERS;  // columns of P^T that a consumer makes

    struct Shared {
        unsigned char panels[STAGES * STAGE_BYTES], scores[CONSUMERS * PANEL_BYTES];
        float arriving[PATHS ? CONSUMERS * WARPGROUP / WARP : 1][TILE];  // by warps
        DecayTable tables[STAGES];
        Handover<STAGES> stages;
    };

    struct Operands {
        HeadColumns q, k, v, own_q;  // the last is read for its paths, in the width of the outputs
    };

    static __device__ __forceinline__ void produce(const Operands& x, const HeadDecay& g, const Segment& segment, float k_scale, float out_scale, Shared& shared)
    {
        const int chunks = segment.chunks();
        const auto chunk_at = [&](int i) { return chunk_of(segment, i); };
        DecayTables tables = { g, segment.reverse, out_scale, k_scale };
        tables.start(chunks, chunk_at);
        shared.stages.template produce<AHEAD>(chunks, [&](int i, int stage) {
            const Chunk chunk = chunk_at(i);
            const unsigned to = shared_address(shared.panels) + stage * STAGE_BYTES;
            copy_chunk<D>(x.q, chunk, to);
            copy_chunk<D>(x.k, chunk, to + Q_BYTES);
            copy_chunk<E>(x.v, chunk, to + 2 * Q_BYTES);
            if constexpr (PATHS) copy_chunk<E>(x.own_q, chunk, to + 2 * Q_BYTES + V_BYTES);
            tables.fill(i, chunks, chunk_at, shared.tables[stage]);
        });
    }

    // This warp's share of the paths that arrive at each token, from this consumer's columns of the outputs.
    static __device__ __forceinline__ void add_arriving(const Sums<TILE>& sum, unsigned own_q, unsigned to)
    {
        unsigned queries[STEPS][4];
        float paths[16];
        load_transposed(own_q, queries);
#pragma unroll
        for (int i = 0; i < 16; ++i) {
            const unsigned upper = queries[i / 4][i / 2 % 2 * 2], lower = queries[i / 4][i / 2 % 2 * 2 + 1];
            const int at = i / 2 * 4 + i % 2;
            paths[i] = fmaf(sum.at[at], i % 2 ? high_of(upper) : low_of(upper), sum.at[at + 2] * (i % 2 ? high_of(lower) : low_of(lower)));
        }
        store_shared(to + threadIdx.x % WARP * 8, sum_columns(paths));
    }

    // The state passes a sub-chunk, whose outputs are added up in sum. On return all of the consumer's warps have read its panel of values.
    static __device__ __forceinline__ void pass(unsigned panels, unsigned score_panel, const DecayTable& table, float scale, Sums<D>& state, Sums<TILE>& sum, uint4* kept, unsigned arriving)
    {
        const unsigned q_panels = panels, own_queries = q_panels + consumer() * OWN * PANEL_ROW, k_panels = panels + Q_BYTES, v_panel = panels + 2 * Q_BYTES + consumer() * PANEL_BYTES;
        Sums<OWN> scores;
        unsigned entering[D / SUMMANDS][4], values[STEPS][4], weighted[STEPS][4];
#pragma unroll
        for (int step = 0; step < D / SUMMANDS; ++step) pack_sums(state, step, entering[step]);
        if constexpr (PATHS)
#pragma unroll
            for (int step = 0; step < D / SUMMANDS; ++step) kept[step * WARPGROUP] = make_uint4(entering[step][0], entering[step][1], entering[step][2], entering[step][3]);
        start_scores_and_entering<D>(k_panels, q_panels, own_queries, entering, scores, sum);

        load_transposed(v_panel, values);
        weigh_summands(values, table.to_exit, 1.0f, weighted);
#pragma unroll
        for (int i = 0; i < Sums<D>::COUNT; ++i) state.at[i] *= table.through;
        begin_products();
#pragma unroll
        for (int step = 0; step < STEPS; ++step) product<DOWN>(weighted[step], down(k_panels, step, PANEL_BYTES), 1, state);
        commit_products();

        wait_products<2>();
        pin(scores);
        store_scores(scores, table, scale, consumer() * OWN, score_panel);
        publish_to_products();
        sync_threads(TOGETHER, CONSUMERS * WARPGROUP);
        wait_products<1>();
        pin(sum);
#pragma unroll
        for (int i = 0; i < Sums<TILE>::COUNT; i += 2) {
            const float2 factor = *(const float2*)(table.from_entry + sums_column(i));
            sum.at[i] *= factor.x, sum.at[i + 1] *= factor.y;
        }
        if constexpr (PATHS) add_arriving(sum, panels + 2 * Q_BYTES + V_BYTES + consumer() * PANEL_BYTES, arriving);
        begin_products();
#pragma unroll
        for (int step = 0; step < STEPS; ++step) product<DOWN>(values[step], down(score_panel, step, PANEL_BYTES), 1, sum);
        commit_products();
        wait_products<0>();
        pin(sum);
        pin(state);
    }

    static __device__ __forceinline__ void consume(const HeadColumns& out, const Segment& segment, float scale, const DecayPaths& paths, Shared& shared, Sums<D>& state)
    {
        const int thread = threadIdx.x % WARPGROUP;
        const unsigned arriving = PATHS ? shared_address(shared.arriving[consumer() * (WARPGROUP / WARP)]) : 0;
#pragma unroll 1
        for (int i = 0; i < segment.chunks(); ++i) {
            const unsigned panels = shared_address(shared.panels) + i % STAGES * STAGE_BYTES;
            const unsigned score_panel = shared_address(shared.scores) + i % CONSUMERS * PANEL_BYTES;  // the other consumer may still read the last one
            const Chunk chunk = chunk_of(segment, i);
            Sums<TILE> sum;
            shared.stages.take(i);
            pass(panels, score_panel, shared.tables[i % STAGES], scale, state, sum, PATHS ? paths.state<E, D>(chunk) : nullptr, arriving + thread / WARP * (TILE * 4));
            store_columns(sum, panels + 2 * Q_BYTES + consumer() * PANEL_BYTES, chunk, out);
            if constexpr (PATHS)  // all warps of this consumer are past store_columns' barrier, and none is past the next sub-chunk's
                if (thread < TILE) paths.at(chunk).arriving[consumer()][thread] = sum_warps(arriving, thread);
            shared.stages.release(i);
        }
    }
};

template <int D, int E, bool PATHS = false> __device__ __forceinline__ void walk_segment(
    const element* q, const element* k, const element* v, const float* decay, int kind, int64 tokens, int q_heads, int k_heads, int width, int value_width, int64 batches,
    int64 segment_tokens, const SegmentRow* cut, int reverse, float k_scale, float out_scale, const float* entering, int transposed, element* out, const element* own_q = nullptr, uint4* states = nullptr,
    ChunkPaths* sums = nullptr)
{
    typedef OutputWalk<D, E, PATHS> Walk;
    extern __shared__ __align__(1024) unsigned char memory[];
    auto& shared = *(typename Walk::Shared*)memory;
    const int64 head = blockIdx.x % q_heads, batch = blockIdx.x / q_heads % batches, k_head = head / (q_heads / k_heads);
    const Segment segment = segment_of(blockIdx.x / q_heads / batches, segment_tokens, cut, tokens, reverse);
    shared.stages.init(Walk::CONSUMERS);
    if (threadIdx.x < WARPGROUP) {
        if constexpr (Walk::REGISTERS > 0) give_registers<Walk::SPARE>();
        const typename Walk::Operands operands = {
            head_columns(q, batch, tokens, q_heads, head, width, 0), head_columns(k, batch, tokens, k_heads, k_head, width, 0), head_columns(v, batch, tokens, k_heads, k_head, value_width, 0),
            head_columns(own_q, batch, tokens, q_heads, head, value_width, 0) };
        Walk::produce(operands, head_decay(decay, kind, batch, tokens, q_heads, head, width), segment, k_scale, out_scale, shared);
    } else {
        if constexpr (Walk::REGISTERS > 0) take_registers<Walk::REGISTERS>();
        Sums<D> state;
        load_columns(state_of(entering, segment, batches, batch, q_heads, head, (int64)width * value_width), width, value_width, transposed, state);
        Walk::consume(head_columns(out, batch, tokens, q_heads, head, value_width, 0), segment, k_scale * out_scale, { states, sums, (int)(batches * q_heads), (int)(batch * q_heads + head) }, shared, state);
    }
}

#endif

#endif
