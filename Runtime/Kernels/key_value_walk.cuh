// The walk that makes the gradients of keys and values together on Hopper's tensor cores, and, with PATHS, finds what decay_paths.cuh needs of it on its way.
// For bf16, one decay for all channels, widths of multiples of 8 up to 128, as many key heads as heads. With D the gradient of the
// state and tokens from the last to the first (attention_decay.cuh with reverse = 1: the decay acts on what is handed to the next row):
//     D_r = D_{r-1}, decayed, + scale q_r^T dO_r          dv_r = k_r D_r          dk_r = v_r D_r^T
// q, k, dk [B, N, H, D]; v, dO, dv [B, N, H, E] bf16; decay none, per head or per token; leaving [segments, B, H, D, E] fp32: the gradient of the state that leaves each segment; null: zero.
// Consumer 0 makes dv, consumer 1 dk. Each holds 64 rows of D in registers as fp32 (with 64 rows consumer 0 holds all), and both read a copy in shared memory, rounded to bf16. For each sub-chunk:
//     dv = from entry . (k D) + (k q^T, masked and decayed) dO          D = through . D + (q . to exit)^T dO
//     dk = from entry . (v D^T) + (v dO^T, masked and decayed) q
// fp32 accumulation in a fixed order.
#ifndef LASP_KEY_VALUE_WALK
#define LASP_KEY_VALUE_WALK
#include "decay_paths.cuh"

#if LASP_ELEMENT_BF16 && __CUDA_ARCH_FEAT_SM90_ALL

// What depends on it is found anew where it is needed: kept from one sub-chunk to the next it would take registers that the states need.
__device__ __forceinline__ int lane_here()
{
    int lane = threadIdx.x % WARP;
    asm volatile("" : "+r"(lane));
    return lane;
}

// Writes the sums of columns 64 panel to 64 panel + 63 to 64 rows of a panel, as bf16.
template <int N> __device__ __forceinline__ void store_rows(const Sums<N>& sums, int panel, unsigned to)
{
    const int lane = lane_here(), warp = threadIdx.x % WARPGROUP / WARP;
#pragma unroll
    for (int block = 0; block < PANEL / 16; ++block) {
        unsigned pairs[4];
        pack_sums(sums, panel * (PANEL / 16) + block, pairs);
        store_matrices(to + panel_offset(16 * warp + lane % 16, 2 * block + lane / 16), pairs);
    }
}

// The scores of rows r and columns s as left operands: decayed from row s to row r, zero where s > r.
__device__ __forceinline__ void mask_scores(const Sums<TILE>& scores, const DecayTable& table, float factor, unsigned (&masked)[STEPS][4])
{
    const float row_logs[2] = { table.logs[sums_row(0)], table.logs[sums_row(2)] };
#pragma unroll
    for (int i = 0; i < Sums<TILE>::COUNT; i += 2) {
        const int row = sums_row(i), column = sums_column(i);
        const float2 logs = *(const float2*)(table.logs + column);
        const float low = factor * scores.at[i] * exp2_approximate(row_logs[i / 2 % 2] - logs.x), high = factor * scores.at[i + 1] * exp2_approximate(row_logs[i / 2 % 2] - logs.y);
        masked[i / 8][i / 2 % 4] = pack_bf16(column <= row ? low : 0.0f, column < row ? high : 0.0f);
    }
}

template <int D, int E, bool PATHS> struct KeyValueWalk {
    static constexpr int CONSUMERS = 2, THREADS_OF_BLOCK = (1 + CONSUMERS) * WARPGROUP, REGISTERS = 232, SPARE = 40;
    static constexpr int D_BYTES = panels_of(D) * PANEL_BYTES, E_BYTES = panels_of(E) * PANEL_BYTES, STAGE_BYTES = 2 * (D_BYTES + E_BYTES);
    static constexpr int K = D_BYTES, V = 2 * D_BYTES, DO = 2 * D_BYTES + E_BYTES;    // where they start in a stage, which starts with q
    static constexpr int STAGES = (192 << 10) / STAGE_BYTES, AHEAD = STAGES - 2;
    static constexpr int COPY_PANEL = D * PANEL_ROW;                                  // bytes of 64 columns of D

    struct Shared {
        unsigned char panels[STAGES * STAGE_BYTES], copy[panels_of(E) * COPY_PANEL];
        DecayTable tables[STAGES];
        Handover<STAGES> stages;
    };

    struct Operands {
        HeadColumns q, k, v, dO;
    };

    static __device__ __forceinline__ void produce(const Operands& x, const HeadDecay& g, const Segment& segment, float scale, Shared& shared)
    {
        const int chunks = segment.chunks();
        const auto chunk_at = [&](int i) { return chunk_of(segment, i); };
        DecayTables tables = { g, segment.reverse, 1.0f, scale };
        tables.start(chunks, chunk_at);
        shared.stages.template produce<AHEAD>(chunks, [&](int i, int stage) {
            const Chunk chunk = chunk_at(i);
            const unsigned to = shared_address(shared.panels) + stage * STAGE_BYTES;
            copy_chunk<D>(x.q, chunk, to);
            copy_chunk<D>(x.k, chunk, to + K);
            copy_chunk<E>(x.v, chunk, to + V);
            copy_chunk<E>(x.dO, chunk, to + DO);
            tables.fill(i, chunks, chunk_at, shared.tables[stage]);
        });
    }

    // What consumer 0 (dv) and consumer 1 (dk) do alike: rows of `OWN` columns are multiplied with D and with the other rows.
    template <bool VALUES> struct Side {
        static constexpr int OWN = VALUES ? D : E, OUT = VALUES ? E : D, ROWS = VALUES ? K : V, OTHERS = VALUES ? 0 : DO, RIGHT = VALUES ? DO : 0;
        static constexpr bool HOLDS_STATE = VALUES || D > PANEL, READS_STATE = PATHS && HOLDS_STATE;

        // What a sub-chunk gives to the gradient of the decay, of this thread's rows and columns.
        struct Found {
            float rows[2];  // departing, or the pairs that rows are the earlier token of
            float2 columns; // the pairs that columns 2 l and 2 l + 1 are the later token of, by this warp's rows
        };

        Shared& shared;
        DecayPaths paths;
        Sums<E> state;
        unsigned entering[READS_STATE ? E / SUMMANDS : 1][4];  // this thread's share of the state that enters the next sub-chunk

        __device__ __forceinline__ void load_state(const float* from, int width, int value_width)
        {
            if constexpr (HOLDS_STATE)
#pragma unroll
            for (int i = 0; i < Sums<E>::COUNT; i += 2) {
                const int d = consumer() * PANEL + sums_row(i), e = sums_column(i);
                const float2 pair = from && d < width && e < value_width ? *(const float2*)(from + (int64)d * value_width + e) : make_float2(0.0f, 0.0f);
                state.at[i] = pair.x, state.at[i + 1] = pair.y;
            }
        }

        // Shows the state to both consumers, once these are in step again.
        __device__ __forceinline__ void copy_state() const
        {
            if constexpr (HOLDS_STATE)
#pragma unroll
            for (int panel = 0; panel < panels_of(E); ++panel) store_rows(state, panel, shared_address(shared.copy) + panel * COPY_PANEL + consumer() * PANEL_BYTES);
            publish_to_products();
        }

        __device__ __forceinline__ void read_entering(const Chunk& chunk)
        {
            if constexpr (READS_STATE) {
                const uint4* from = paths.state<D, E>(chunk);
#pragma unroll
                for (int step = 0; step < E / SUMMANDS; ++step) {
                    const uint4 pairs = from[step * WARPGROUP];
                    entering[step][0] = pairs.x, entering[step][1] = pairs.y, entering[step][2] = pairs.z, entering[step][3] = pairs.w;
                }
            }
        }

        // <P, D> of this thread's elements.
        __device__ __forceinline__ float multiply_states() const
        {
            float sum[2] = {};
            if constexpr (READS_STATE)
#pragma unroll
                for (int step = 0; step < E / SUMMANDS; ++step) multiply_block(state, step, entering[step], sum);
            return sum[0] + sum[1];
        }

        __device__ __forceinline__ void leave_through(float through, const Chunk& chunk) const
        {
            if constexpr (READS_STATE) {
                through = warp_reduce(through, Sum());
                if (threadIdx.x % WARP == 0) paths.at(chunk).through[threadIdx.x / WARP - PRODUCER_WARPS] = through;
            }
        }

        // dk by k, of the rows that these have so far.
        __device__ __forceinline__ void find_departing(unsigned stage, const Sums<OUT>& out, float (&rows)[2]) const
        {
            const int lane = threadIdx.x % WARP, warp = threadIdx.x % WARPGROUP / WARP;
            rows[0] = rows[1] = 0.0f;
#pragma unroll
            for (int step = 0; step < OUT / SUMMANDS; ++step) {
                unsigned keys[4];
                load_matrices(stage + K + step / STEPS * PANEL_BYTES + panel_offset(16 * warp + lane % 16, step % STEPS * 2 + lane / 16), keys);
                multiply_block(out, step, keys, rows);
            }
        }

        // v dO^T of the sub-chunk.
        __device__ __forceinline__ void start_gains(unsigned stage, Sums<TILE>& gains) const
        {
            begin_products();
#pragma unroll
            for (int step = 0; step < E / SUMMANDS; ++step) {
                const unsigned panel = step / STEPS * PANEL_BYTES;
                product<ALONG, ALONG>(along(stage, step % STEPS, V + panel), along(stage, step % STEPS, DO + panel), step > 0, gains);
            }
            commit_products();
        }

        // Z of decay_paths.cuh below its diagonal, summed by rows and columns.
        static __device__ __forceinline__ void find_pairs(const unsigned (&masked)[STEPS][4], const Sums<TILE>& gains, Found& found)
        {
            float columns[16];
            found.rows[0] = found.rows[1] = 0.0f;
#pragma unroll
            for (int i = 0; i < 16; ++i) {
                const int at = i / 2 * 4 + i % 2;
                float z[2];
#pragma unroll
                for (int half = 0; half < 2; ++half) {
                    const unsigned pair = masked[i / 4][i / 2 % 2 * 2 + half];
                    z[half] = sums_column(at) == sums_row(2 * half) ? 0.0f : gains.at[at + 2 * half] * (i % 2 ? high_of(pair) : low_of(pair));
                    found.rows[half] += z[half];
                }
                columns[i] = z[0] + z[1];
            }
            found.columns = sum_columns(columns);
        }

        __device__ __forceinline__ void start_products(unsigned stage, Sums<TILE>& scores, Sums<OUT>& out) const
        {
            const unsigned copy = shared_address(shared.copy);
            begin_products();
#pragma unroll
            for (int step = 0; step < OWN / SUMMANDS; ++step) {
                const unsigned panel = step / STEPS * PANEL_BYTES;
                product<ALONG, ALONG>(along(stage, step % STEPS, ROWS + panel), along(stage, step % STEPS, OTHERS + panel), step > 0, scores);
            }
            commit_products();
#pragma unroll
            for (int step = 0; step < OWN / SUMMANDS; ++step) {
                const Operand rows = along(stage, step % STEPS, ROWS + step / STEPS * PANEL_BYTES);
                if constexpr (VALUES) product<ALONG, DOWN>(rows, down(copy, step, COPY_PANEL), step > 0, out);
                else product<ALONG, ALONG>(rows, along(copy, step % STEPS, step / STEPS * COPY_PANEL), step > 0, out);
            }
            commit_products();
        }

        __device__ __forceinline__ void start_state(unsigned stage, const DecayTable& table)
        {
            if constexpr (HOLDS_STATE) {
                unsigned queries[STEPS][4], weighted[STEPS][4];
                load_transposed(stage + consumer() * PANEL_BYTES, queries);
                weigh_summands(queries, table.to_exit, 1.0f, weighted);
#pragma unroll
                for (int i = 0; i < Sums<E>::COUNT; ++i) state.at[i] *= table.through;
                begin_products();
#pragma unroll
                for (int step = 0; step < STEPS; ++step) product<DOWN>(weighted[step], down(stage, step, PANEL_BYTES, DO), 1, state);
            }
            commit_products();
        }

        // Makes the gradients of a sub-chunk and moves the state past it.
        __device__ __forceinline__ void pass(unsigned stage, const DecayTable& table, float scale, Sums<OUT>& out, Found& found)
        {
            Sums<TILE> scores;
            unsigned masked[STEPS][4];
            start_products(stage, scores, out);
            start_state(stage, table);
            wait_products<2>();
            pin(scores);
            mask_scores(scores, table, scale, masked);
            if constexpr (PATHS && VALUES) {
                start_gains(stage, scores);
                wait_products<2>();
            } else {
                wait_products<1>();
            }
            pin(out);
            const float from_entry[2] = { table.from_entry[sums_row(0)], table.from_entry[sums_row(2)] };
#pragma unroll
            for (int i = 0; i < Sums<OUT>::COUNT; ++i) out.at[i] *= from_entry[i / 2 % 2];
            if constexpr (PATHS && !VALUES) find_departing(stage, out, found.rows);
            begin_products();
#pragma unroll
            for (int step = 0; step < STEPS; ++step) product<DOWN>(masked[step], down(stage, step, PANEL_BYTES, RIGHT), 1, out);
            commit_products();
            if constexpr (PATHS && VALUES) {
                wait_products<1>();
                pin(scores);
                find_pairs(masked, scores, found);
            }
            wait_products<0>();
            pin(out);
            pin(state);
        }

        // Once both consumers have read the sub-chunk: what was found goes where q was, or out.
        __device__ __forceinline__ void leave(const Found& found, unsigned q_panel, const Chunk& chunk) const
        {
            const int lane = threadIdx.x % WARP, warp = threadIdx.x % WARPGROUP / WARP;
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                const int row = sums_row(2 * half);
                const float sum = sum_row(found.rows[half]);
                if (lane % 4 != 0) continue;
                if constexpr (VALUES) store_shared(q_panel + row * 4, __float_as_uint(sum));
                else if (row < chunk.rows) paths.at(chunk).departing[chunk.rows - 1 - row] = sum;
            }
            if constexpr (VALUES) store_shared(q_panel + (1 + warp) * (TILE * 4) + lane * 8, found.columns);
        }

        // After a barrier of this consumer.
        __device__ __forceinline__ void leave_pairs(unsigned q_panel, const Chunk& chunk) const
        {
            const int row = threadIdx.x % WARPGROUP;
            if (row < chunk.rows) paths.at(chunk).pairs[chunk.rows - 1 - row] = sum_warps(q_panel + TILE * 4, row) - load_float(q_panel + row * 4);
        }

        // Through the panels of this consumer's rows, which nobody else reads.
        __device__ __forceinline__ void store_gradient(const Sums<OUT>& out, unsigned rows, const Chunk& chunk, const HeadColumns& to) const
        {
            constexpr int AT_ONCE = OWN < OUT ? panels_of(OWN) : panels_of(OUT);
#pragma unroll
            for (int first = 0; first < panels_of(OUT); first += AT_ONCE) {
                if (first > 0) sync_threads(ALONE + consumer(), WARPGROUP);
#pragma unroll
                for (int i = 0; i < AT_ONCE; ++i) store_rows(out, first + i, rows + i * PANEL_BYTES);
                sync_threads(ALONE + consumer(), WARPGROUP);
#pragma unroll
                for (int i = 0; i < AT_ONCE; ++i) store_panel(rows + i * PANEL_BYTES, (first + i) * PANEL, chunk, to);
            }
        }

        __device__ __forceinline__ void consume(const HeadColumns& to, const Segment& segment, float scale)
        {
            read_entering(chunk_of(segment, 0));
            copy_state();
#pragma unroll 1
            for (int i = 0; i < segment.chunks(); ++i) {
                const unsigned stage = shared_address(shared.panels) + i % STAGES * STAGE_BYTES;
                const Chunk chunk = chunk_of(segment, i);
                Sums<OUT> out;
                Found found;
                float through = multiply_states();  // of all that the sub-chunk needs, this is there before its panels
                finish(through);
                shared.stages.take(i);
                leave_through(shared.tables[i % STAGES].through * through, chunk);
                sync_threads(TOGETHER, CONSUMERS * WARPGROUP);  // both have copied their states
                pass(stage, shared.tables[i % STAGES], scale, out, found);
                if constexpr (READS_STATE) read_entering(chunk_of(segment, min(i + 1, segment.chunks() - 1)));  // in any case: registers that may keep their values stay taken
                sync_threads(TOGETHER, CONSUMERS * WARPGROUP);  // both have read the copy
                copy_state();
                if constexpr (PATHS) leave(found, stage, chunk);
                store_gradient(out, stage + ROWS, chunk, to);
                if constexpr (PATHS && VALUES) leave_pairs(stage, chunk);
                shared.stages.release(i);
            }
        }
    };

    template <bool VALUES> static __device__ __forceinline__ void walk(
        Shared& shared, const DecayPaths& paths, const float* state, int width, int value_width, const HeadColumns& to, const Segment& segment, float scale)
    {
        Side<VALUES> side = { shared, paths };
        side.load_state(state, width, value_width);
        side.consume(to, segment, scale);
    }
};

template <int D, int E, bool PATHS = false> __device__ __forceinline__ void key_value_segment(
    const element* q, const element* k, const element* v, const element* dO, const float* decay, int kind, int64 tokens, int heads, int width, int value_width, int64 batches,
    int64 segment_tokens, const SegmentRow* cut, float scale, const float* leaving, element* dk, element* dv, uint4* states = nullptr, ChunkPaths* sums = nullptr)
{
    typedef KeyValueWalk<D, E, PATHS> Walk;
    extern __shared__ __align__(1024) unsigned char memory[];
    auto& shared = *(typename Walk::Shared*)memory;
    const int64 head = blockIdx.x % heads, batch = blockIdx.x / heads % batches;
    const Segment segment = segment_of(blockIdx.x / heads / batches, segment_tokens, cut, tokens, 1);
    const auto columns = [&](const element* x, int columns) { return head_columns(x, batch, tokens, heads, head, columns, 0); };
    const float* state = state_of(leaving, segment, batches, batch, heads, head, (int64)width * value_width);
    shared.stages.init(Walk::CONSUMERS);
    if (threadIdx.x < WARPGROUP) {
        give_registers<Walk::SPARE>();
        Walk::produce({ columns(q, width), columns(k, width), columns(v, value_width), columns(dO, value_width) }, head_decay(decay, kind, batch, tokens, heads, head, width), segment, scale, shared);
    } else {
        take_registers<Walk::REGISTERS>();
        const DecayPaths paths = { states, sums, (int)(batches * heads), (int)(batch * heads + head) };
        if (consumer() == 0) Walk::template walk<true>(shared, paths, state, width, value_width, columns(dv, value_width), segment, scale);
        else Walk::template walk<false>(shared, paths, state, width, value_width, columns(dk, width), segment, scale);
    }
}

#endif

#endif
