// The states that the gradients of a decay per channel begin with, of both directions in one pass over k, v, q and dO, for any decay. For one head and segment, per chunk of 64 tokens and channel of D, with
// G_i = sum of g over the chunk's tokens 0 .. i, A = exp(G of the last) and W = exp(sum of g over the segment's tokens before the chunk):
//     chunk_states = P        P <- A . P + sum_i (exp(G_last - G_i) . k_i)^T v_i        M <- M + sum_i (scale W exp(G_i) . q_i)^T dO_i
// P starts with `entering` (null: zero) and is kept as chunk_states of linear_attention_channel_decay; M is what the segment leaves backwards: states [segments, B, H, D, E] fp32, with factors
// [segments, B, H, D], the decay over the segment (null: not written). It grows from the segment's entry on, by ever smaller weights, so that it is never scaled.
// q [B, N, H, D], k [B, N, Hk, D], v [B, N, Hk, E], dO [B, N, H, E] bf16, D and E multiples of 8 up to 128, rows at multiples of 16 bytes; decay fp32 [B, N, H, D]. fp32 states in registers, log decays over the
// segment in fp64, bf16 operands, fixed order. Launch: 384 threads, one block per (segment, b, h), h fastest; 232192 bytes of shared memory.
#include "channel_decay_panels.cuh"

#if LASP_ELEMENT_BF16 && __CUDA_ARCH_FEAT_SM90_ALL

constexpr int QUERIES = 0, KEYS = ROWS_BYTES, VALUES = 2 * ROWS_BYTES, OUT = 3 * ROWS_BYTES, STAGE_BYTES = 4 * ROWS_BYTES, STAGES = 3;
constexpr int REGISTERS = 192, SPARE = 120;  // of a consumer's and of a producer's thread

struct Shared {
    unsigned char panels[STAGES * STAGE_BYTES], logs[LOGS_BYTES];
    float2 sums[WARPGROUP];        // of the log decays of each producer's thread
    float through[STAGES][WIDTH];  // A
    Handover<STAGES> stages;
};

static_assert(sizeof(Shared) <= 232192, "shared memory of the launch");

// ---- Warpgroup 0: copies and weighs ----

struct Operands {
    HeadColumns q, k, v, d_out;
    ChannelLogs g;
};

__device__ __forceinline__ void copy_operands(const Operands& x, const Chunk& chunk, unsigned to)
{
    copy_chunk<WIDTH>(x.q, chunk, to + QUERIES);
    copy_chunk<WIDTH>(x.k, chunk, to + KEYS);
    copy_chunk<WIDTH>(x.v, chunk, to + VALUES);
    copy_chunk<WIDTH>(x.d_out, chunk, to + OUT);
}

__device__ __forceinline__ float2 exp2_of(float x, float y) { return make_float2(exp2_approximate(x), exp2_approximate(y)); }

// Log decays are copied one chunk ahead, once those before them have been read, and operands two, once the consumers have done with what lay there. Returns the log decay over the segment, base 2.
__device__ __forceinline__ void produce(const Operands& x, const Run& run, float scale, Shared& shared, double (&log)[2])
{
    const int chunks = run.chunks();
    const unsigned panels = shared_address(shared.panels), logs = shared_address(shared.logs);
    if (chunks > 0) copy_logs(x.g, run.chunk(0), logs), copy_operands(x, run.chunk(0), panels);
    commit_copies();
    if (chunks > 1) copy_operands(x, run.chunk(1), panels + STAGE_BYTES);
    commit_copies();
#pragma unroll 1
    for (int i = 0; i < chunks; ++i) {
        const unsigned stage = panels + i % STAGES * STAGE_BYTES;
        float2 a[PART], sum = make_float2(0.0f, 0.0f);
        wait_copies<1>();                   // all but the next chunk's operands
        sync_threads(PRODUCER, WARPGROUP);  // of all threads
#pragma unroll
        for (int row = 0; row < PART; ++row) {
            a[row] = load_float2(first_log(logs) + row * LOG_ROW);
            a[row].x *= LOG2_E, a[row].y *= LOG2_E;
            sum.x += a[row].x, sum.y += a[row].y;
        }
        shared.sums[threadIdx.x] = sum;
        sync_threads(PRODUCER, WARPGROUP);  // the log decays have been read
        if (i + 1 < chunks) copy_logs(x.g, run.chunk(i + 1), logs);
        commit_copies();
        const float2 other = shared.sums[threadIdx.x ^ PAIRS];
        const bool later = part_of() > 0;
#pragma unroll
        for (int row = 0; row < PART; ++row) a[row] = exp2_of(a[row].x, a[row].y);
        const float2 weight = exp2_of((float)log[0] + (later ? other.x : 0.0f), (float)log[1] + (later ? other.y : 0.0f));
        weigh_rows<false, true>(stage + QUERIES, a, make_float2(scale * weight.x, scale * weight.y));
        weigh_rows<true, false>(stage + KEYS, a, exp2_of(later ? 0.0f : other.x, later ? 0.0f : other.y));
        if (!later) *(float2*)(shared.through[i % STAGES] + 2 * pair_of()) = exp2_of(sum.x + other.x, sum.y + other.y);
        log[0] += sum.x + other.x, log[1] += sum.y + other.y;
        publish_to_products();
        arrive(shared.stages.full[i % STAGES]);
        if (i + 2 < chunks) {
            wait_turn(shared.stages.empty[(i + 2) % STAGES], ((i + 2) / STAGES & 1) ^ 1);
            copy_operands(x, run.chunk(i + 2), panels + (i + 2) % STAGES * STAGE_BYTES);
        }
        commit_copies();
    }
}

// ---- Consumers ----

// sums + x^T y, for this consumer's 64 columns of x
__device__ __forceinline__ void start_products(unsigned x, unsigned y, Sums<WIDTH>& sums)
{
    begin_products();
#pragma unroll
    for (int step = 0; step < STEPS; ++step) product<DOWN, DOWN>(down(x + consumer() * PANEL_BYTES, step, PANEL_BYTES), down(y, step, PANEL_BYTES), 1, sums);
    commit_products();
}

__device__ __forceinline__ void consume(const Run& run, Shared& shared, Sums<WIDTH>& entering, Sums<WIDTH>& leaving, bf16* chunk_states, int64 chunk_stride)
{
#pragma unroll 1
    for (int i = 0; i < run.chunks(); ++i, chunk_states += chunk_stride) {
        const unsigned stage = shared_address(shared.panels) + i % STAGES * STAGE_BYTES;
        unsigned packed[WIDTH / SUMMANDS][4];
        shared.stages.take(i);
        start_products(stage + OUT, stage + QUERIES, leaving);
#pragma unroll
        for (int step = 0; step < WIDTH / SUMMANDS; ++step) pack_sums(entering, step, packed[step]);
        scale_columns(entering, shared.through[i % STAGES]);
        start_products(stage + VALUES, stage + KEYS, entering);
        store_chunk_state(packed, chunk_states);
        wait_products<0>();
        pin(entering);
        pin(leaving);
        shared.stages.release(i);
    }
}

KERNEL __launch_bounds__(THREADS_OF_BLOCK, 1) linear_attention_channel_states(
    const bf16* q, const bf16* k, const bf16* v, const bf16* d_out, const float* decay, int64 tokens, int heads, int key_heads, int width, int value_width, int64 batches, int64 segment_tokens,
    float scale, const float* entering, float* states, float* factors, bf16* chunk_states)
{
    extern __shared__ __align__(1024) unsigned char memory[];
    auto& shared = *(Shared*)memory;
    const unsigned unit = blockIdx.x;  // (segment, b, h)
    const int64 head = unit % heads, batch = unit / heads % (unsigned)batches, segment = unit / heads / (unsigned)batches, key_head = head / (heads / key_heads);
    const int64 left = tokens - segment * segment_tokens, size = (int64)width * value_width;
    const Run run = { segment * segment_tokens, left < segment_tokens ? left : segment_tokens, 0 };
    shared.stages.init(CONSUMERS);
    if (threadIdx.x < WARPGROUP) {
        give_registers<SPARE>();
        double log[2] = {};
        const Operands x = {
            head_columns(q, batch, tokens, heads, head, width, 0), head_columns(k, batch, tokens, key_heads, key_head, width, 0), head_columns(v, batch, tokens, key_heads, key_head, value_width, 0),
            head_columns(d_out, batch, tokens, heads, head, value_width, 0), { decay + (batch * tokens * heads + head) * width, heads * width, width }
        };
        produce(x, run, scale, shared, log);
        const int channel = 2 * pair_of();
        if (factors && part_of() == 0 && channel < width) *(float2*)(factors + unit * (int64)width + channel) = make_float2((float)exp2(log[0]), (float)exp2(log[1]));
    } else {
        take_registers<REGISTERS>();
        Sums<WIDTH> p, m = {};
        const auto place = [&](int channel, int column) { return unit * size + (int64)channel * value_width + column; };
        each(p, [&](float& x, int channel, int column) { x = entering && channel < width && column < value_width ? entering[place(channel, column)] : 0.0f; });
        const int64 chunk_stride = batches * heads * CHUNK_STATE;
        consume(run, shared, p, m, chunk_states + run.first / TILE * chunk_stride + (batch * heads + head) * CHUNK_STATE, chunk_stride);
        each(m, [&](float& x, int channel, int column) {
            if (channel < width && column < value_width) states[place(channel, column)] = x;
        });
    }
}

#endif
