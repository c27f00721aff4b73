// The state that each segment of a run leaves behind, on Hopper's tensor cores: linear_attention_state.cu for bf16, one decay for all channels, widths of multiples of 8 up to 128.
//     states[segment, b, h] = sum_i exp(log decay from token i to the segment's exit) . scale k_i^T v_i
// k [B, N, Hk, D], v [B, N, Hk, E] bf16, decay fp32 none, per head or per token, states [segments, B, H, D, E] fp32; reverse as in attention_decay.cuh.
// Sub-chunks are taken from the exit to the entry: weights carry the decay so far, the sums are never scaled, and what the walk that follows reads first is what this pass read last.
// k is weighted in fp32 and rounded to bf16 as the left operand; fp32 accumulation in a fixed order, log decays in fp64.
// Launch: 128 + 2 D threads (D = 64 or 128 by the kernel's name), one block per (segment, b, h), h fastest; shared memory stages (D + E) 128 bytes, and 8 KiB.
#include "attention_panels.cuh"

#if LASP_ELEMENT_BF16 && __CUDA_ARCH_FEAT_SM90_ALL

template <int D, int E> struct StatePass {
    static constexpr int CONSUMERS = D / PANEL, THREADS_OF_BLOCK = (1 + CONSUMERS) * WARPGROUP, BLOCKS = 2 / CONSUMERS;  // blocks of a multiprocessor
    static constexpr int K_BYTES = panels_of(D) * PANEL_BYTES, STAGE_BYTES = K_BYTES + panels_of(E) * PANEL_BYTES;
    static constexpr int STAGES = (200 << 10) / BLOCKS / STAGE_BYTES, AHEAD = STAGES - 2;

    struct Shared {
        unsigned char panels[STAGES * STAGE_BYTES];
        DecayTable tables[STAGES];
        Handover<STAGES> stages;
    };

    static __device__ __forceinline__ void produce(const HeadColumns& k, const HeadColumns& v, const HeadDecay& g, const Segment& segment, float scale_factor, Shared& shared)
    {
        const int chunks = segment.chunks();
        const auto chunk_at = [&](int i) { return chunk_of(segment, chunks - 1 - i); };
        DecayTables tables = { g, segment.reverse, 1.0f, scale_factor };
        tables.start(chunks, chunk_at);
        shared.stages.template produce<AHEAD>(chunks, [&](int i, int stage) {
            const Chunk chunk = chunk_at(i);
            const unsigned to = shared_address(shared.panels) + stage * STAGE_BYTES;
            copy_chunk<D>(k, chunk, to);
            copy_chunk<E>(v, chunk, to + K_BYTES);
            tables.fill(i, chunks, chunk_at, shared.tables[stage]);
        });
    }

    static __device__ __forceinline__ void consume(int chunks, Shared& shared, Sums<E>& sum)
    {
        float tail = 1.0f;  // decay from the sub-chunk's exit to the segment's
#pragma unroll 1
        for (int i = 0; i < chunks; ++i) {
            const unsigned k_panels = shared_address(shared.panels) + i % STAGES * STAGE_BYTES, v_panels = k_panels + K_BYTES;
            unsigned keys[STEPS][4], weighted[STEPS][4];
            shared.stages.take(i);
            load_transposed(k_panels + consumer() * PANEL_BYTES, keys);
            weigh_summands(keys, shared.tables[i % STAGES].to_exit, tail, weighted);
            tail *= shared.tables[i % STAGES].through;
            begin_products();
#pragma unroll
            for (int step = 0; step < STEPS; ++step) product<DOWN>(weighted[step], down(v_panels, step, PANEL_BYTES), 1, sum);
            commit_products();
            wait_products<0>();
            pin(sum);
            shared.stages.release(i);
        }
    }
};

template <int D, int E> __device__ __forceinline__ void segment_state(
    const element* k, const element* v, const float* decay, int kind, int64 tokens, int heads, int key_heads, int width, int value_width, int64 batches,
    int64 segment_tokens, const SegmentRow* cut, int reverse, float scale_factor, float* states)
{
    typedef StatePass<D, E> Pass;
    extern __shared__ __align__(1024) unsigned char memory[];
    auto& shared = *(typename Pass::Shared*)memory;
    const int64 state = blockIdx.x, head = state % heads, batch = state / heads % batches, key_head = head / (heads / key_heads);
    const Segment segment = segment_of(state / heads / batches, segment_tokens, cut, tokens, reverse);
    shared.stages.init(Pass::CONSUMERS);
    if (threadIdx.x < WARPGROUP) {
        const HeadColumns k_columns = head_columns(k, batch, tokens, key_heads, key_head, width, 0), v_columns = head_columns(v, batch, tokens, key_heads, key_head, value_width, 0);
        Pass::produce(k_columns, v_columns, head_decay(decay, kind, batch, tokens, heads, head, width), segment, scale_factor, shared);
    } else {
        Sums<E> sum = {};
        Pass::consume(segment.chunks(), shared, sum);
        float* out = state_of(states, segment, batches, batch, heads, head, (int64)width * value_width);
#pragma unroll
        for (int i = 0; i < Sums<E>::COUNT; i += 2) {
            const int d = consumer() * PANEL + sums_row(i), e = sums_column(i);
            if (d < width && e < value_width) *(float2*)(out + (int64)d * value_width + e) = make_float2(sum.at[i], sum.at[i + 1]);
        }
    }
}

#define STATE_KERNEL(D, E) \
    KERNEL __launch_bounds__(StatePass<D, E>::THREADS_OF_BLOCK, StatePass<D, E>::BLOCKS) linear_attention_state_##D##_##E( \
        const element* k, const element* v, const float* decay, int kind, int64 tokens, int heads, int key_heads, int width, int value_width, int64 batches, \
        int64 segment_tokens, const SegmentRow* cut, int reverse, float scale_factor, float* states) \
    { \
        segment_state<D, E>(k, v, decay, kind, tokens, heads, key_heads, width, value_width, batches, segment_tokens, cut, reverse, scale_factor, states); \
    }

#if WANTS(linear_attention_state_64_64)
STATE_KERNEL(64, 64)
#endif
#if WANTS(linear_attention_state_64_128)
STATE_KERNEL(64, 128)
#endif
#if WANTS(linear_attention_state_128_64)
STATE_KERNEL(128, 64)
#endif
#if WANTS(linear_attention_state_128_128)
STATE_KERNEL(128, 128)
#endif

#endif
