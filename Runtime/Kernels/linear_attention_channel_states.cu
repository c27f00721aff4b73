// The states of a decay per channel on Hopper's warpgroup products, for any decay. For one head and segment, per chunk of 64 tokens and channel of D, with G_i = sum of g over the chunk's tokens 0 .. i and
// A = exp(G of the last), in one direction (or of a decay per token, which is all channels' alike):
//     forward     S <- A . S + sum_i (exp(G_last - G_i) . x_i)^T v_i           x = k
//     backward    S <- A . S + sum_i (scale exp(G_i) . x_i)^T v_i              x = q, v = dO, chunks from last to first
// and, for the gradients, what enters every chunk beside what the segment leaves backwards in one pass over k, v, q and dO, with W = exp(sum of g over the segment's tokens before the chunk):
//     P <- A . P + sum_i (exp(G_last - G_i) . k_i)^T v_i        M <- M + sum_i (scale W exp(G_i) . q_i)^T dO_i
// M grows from the segment's entry on, by ever smaller weights, so that it is never scaled.
// S and P start with `entering` [segments, B, H, D, E] fp32 (null: zero) and are kept where they enter a chunk (S backwards: leave it) as chunk_states of linear_attention_channel_decay (null: not kept).
// S, or M: states [segments, B, H, D, E] fp32, with factors [segments, B, H, D] (or [segments, B, H]), the decay over the segment; null: not written.
// q [B, N, H, D], k [B, N, Hk, D], v [B, N, Hk, E], dO [B, N, H, E] bf16, D and E multiples of 8 up to 128, rows at multiples of 16 bytes; decay fp32 [B, N, H, D] (or [B, N, H]). fp32 states in registers,
// log decays over the segment in fp64, bf16 operands, fixed order. Launch, all: 384 threads, one block per (segment, b, h), h fastest; 232192 bytes of shared memory.
#include "channel_decay_panels.cuh"

#if LASP_ELEMENT_BF16 && __CUDA_ARCH_FEAT_SM90_ALL

constexpr int REGISTERS = 192, SPARE = 120;  // of a consumer's and of a producer's thread

extern __shared__ __align__(1024) unsigned char memory[];

__device__ __forceinline__ float2 exp2_of(float x, float y) { return make_float2(exp2_approximate(x), exp2_approximate(y)); }

// This thread's log decays, base 2: of its pair of channels, or one for both. Returns their sum.
template <bool PER_TOKEN = false> __device__ __forceinline__ float2 read_logs(unsigned logs, float2 (&a)[PART])
{
    float2 sum = make_float2(0.0f, 0.0f);
#pragma unroll
    for (int row = 0; row < PART; ++row) {
        if (PER_TOKEN) a[row].x = a[row].y = load_float(logs + (part_of() * PART + row) * 4);
        else a[row] = load_float2(first_log(logs) + row * LOG_ROW);
        a[row].x *= LOG2_E, a[row].y *= LOG2_E;
        sum.x += a[row].x, sum.y += a[row].y;
    }
    return sum;
}

__device__ __forceinline__ void exponentiate(float2 (&a)[PART])
{
#pragma unroll
    for (int row = 0; row < PART; ++row) a[row] = exp2_of(a[row].x, a[row].y);
}

// sums + x^T y, for this consumer's 64 columns of x
__device__ __forceinline__ void start_products(unsigned x, unsigned y, Sums<WIDTH>& sums)
{
    begin_products();
#pragma unroll
    for (int step = 0; step < STEPS; ++step) product<DOWN, DOWN>(down(x + consumer() * PANEL_BYTES, step, PANEL_BYTES), down(y, step, PANEL_BYTES), 1, sums);
    commit_products();
}

__device__ __forceinline__ void pack_state(const Sums<WIDTH>& state, unsigned (&packed)[WIDTH / SUMMANDS][4])
{
#pragma unroll
    for (int step = 0; step < WIDTH / SUMMANDS; ++step) pack_sums(state, step, packed[step]);
}

// Which segment and head a block has.
struct Unit {
    unsigned number;  // (segment, b, h)
    int64 head, batch, segment, tokens_of_segment;

    __device__ __forceinline__ Unit(int64 tokens, int heads, int64 batches, int64 segment_tokens)
        : number(blockIdx.x), head(number % heads), batch(number / heads % (unsigned)batches), segment(number / heads / (unsigned)batches)
    {
        const int64 left = tokens - segment * segment_tokens;
        tokens_of_segment = left < segment_tokens ? left : segment_tokens;
    }

    // Its state [D, E] in `states` (null: zero).
    __device__ __forceinline__ void load(Sums<WIDTH>& state, const float* states, int width, int value_width) const
    {
        const float* own = states ? states + number * (int64)width * value_width : nullptr;
        each(state, [&](float& x, int channel, int column) { x = own && channel < width && column < value_width ? own[channel * value_width + column] : 0.0f; });
    }

    __device__ __forceinline__ void store(Sums<WIDTH>& state, float* states, int width, int value_width) const
    {
        float* own = states + number * (int64)width * value_width;
        each(state, [&](float& x, int channel, int column) {
            if (channel < width && column < value_width) own[channel * value_width + column] = x;
        });
    }
};

// ---- One direction ----

constexpr int ROW_STAGES = 4, LOG_STAGES = 3, AHEAD = 2;  // chunks of weighed rows and values, and of log decays; how many are on their way while one is weighed

struct SharedOneWay {
    unsigned char rows[ROW_STAGES][ROWS_BYTES], values[ROW_STAGES][ROWS_BYTES], logs[LOG_STAGES][LOGS_BYTES];
    float2 later[PAIRS];               // sums of the log decays of a chunk's last 32 rows
    float through[ROW_STAGES][WIDTH];  // A
    Handover<ROW_STAGES> stages;
};

static_assert(sizeof(SharedOneWay) <= 232192, "shared memory of the launch");

struct OperandsOneWay {
    HeadColumns x, v;
    ChannelLogs g;
    int kind;

    __device__ __forceinline__ void copy(const Run& run, int i, SharedOneWay& shared) const
    {
        if (i < run.chunks()) {
            const Chunk chunk = run.chunk(i);
            const unsigned logs = shared_address(shared.logs[i % LOG_STAGES]);
            copy_chunk<WIDTH>(x, chunk, shared_address(shared.rows[i % ROW_STAGES]));
            copy_chunk<WIDTH>(v, chunk, shared_address(shared.values[i % ROW_STAGES]));
            if (kind == DECAY_PER_CHANNEL) copy_logs(g, chunk, logs);
            else copy_token_logs(g, chunk, logs);
        }
        commit_copies();
    }
};

template <bool REVERSE> __device__ __forceinline__ void produce_one_way(const OperandsOneWay& x, const Run& run, float scale, SharedOneWay& shared, double (&log)[2])
{
    const int chunks = run.chunks();
    const bool later = part_of() > 0;
    for (int i = 0; i < AHEAD; ++i) x.copy(run, i, shared);
#pragma unroll 1
    for (int i = 0; i < chunks; ++i) {
        const int stage = i % ROW_STAGES, next = i + AHEAD;
        float2 a[PART];
        if (next < chunks) wait_turn(shared.stages.empty[next % ROW_STAGES], (next / ROW_STAGES & 1) ^ 1);
        x.copy(run, next, shared);
        wait_copies<AHEAD>();
        sync_threads(PRODUCER, WARPGROUP);  // of all threads
        const unsigned logs = shared_address(shared.logs[i % LOG_STAGES]);
        const float2 sum = x.kind == DECAY_PER_CHANNEL ? read_logs(logs, a) : read_logs<true>(logs, a);
        if (later) shared.later[pair_of()] = sum;
        sync_threads(PRODUCER, WARPGROUP);  // the log decays have been read
        const float2 other = later ? make_float2(0.0f, 0.0f) : shared.later[pair_of()], behind = exp2_of(other.x, other.y);
        exponentiate(a);
        weigh_rows<true, REVERSE>(shared_address(shared.rows[stage]), a, REVERSE ? make_float2(scale * behind.x, scale * behind.y) : behind);
        if (!later) *(float2*)(shared.through[stage] + 2 * pair_of()) = exp2_of(sum.x + other.x, sum.y + other.y);
        log[0] += sum.x + other.x, log[1] += sum.y + other.y;
        publish_to_products();
        arrive(shared.stages.full[stage]);
    }
}

__device__ __forceinline__ void consume_one_way(const Run& run, SharedOneWay& shared, Sums<WIDTH>& state, bf16* chunk_states, int64 chunk_stride)
{
#pragma unroll 1
    for (int i = 0; i < run.chunks(); ++i) {
        const int stage = i % ROW_STAGES;
        shared.stages.take(i);
        if (chunk_states) {
            unsigned packed[WIDTH / SUMMANDS][4];
            pack_state(state, packed);
            store_chunk_state(packed, chunk_states + (run.first / TILE + run.place(i)) * chunk_stride);
        }
        scale_columns(state, shared.through[stage]);
        start_products(shared_address(shared.values[stage]), shared_address(shared.rows[stage]), state);
        wait_products<0>();
        pin(state);
        shared.stages.release(i);
    }
}

template <bool REVERSE> __device__ __forceinline__ void walk_one_way(
    const bf16* x, const bf16* v, const float* decay, int kind, int64 tokens, int heads, int x_heads, int width, int value_width, int64 batches, int64 segment_tokens, float scale,
    const float* entering, float* states, float* factors, bf16* chunk_states)
{
    auto& shared = *(SharedOneWay*)memory;
    const Unit unit(tokens, heads, batches, segment_tokens);
    const int64 x_head = unit.head / (heads / x_heads), head = unit.batch * tokens * heads + unit.head;
    const Run run = { unit.segment * segment_tokens, unit.tokens_of_segment, REVERSE };
    const bool per_channel = kind == DECAY_PER_CHANNEL;
    shared.stages.init(CONSUMERS);
    if (threadIdx.x < WARPGROUP) {
        give_registers<SPARE>();
        double log[2] = {};
        const ChannelLogs g = per_channel ? ChannelLogs { decay + head * width, heads * width, width } : ChannelLogs { decay + head, heads, width };
        const OperandsOneWay operands = { head_columns(x, unit.batch, tokens, x_heads, x_head, width, 0), head_columns(v, unit.batch, tokens, x_heads, x_head, value_width, 0), g, kind };
        produce_one_way<REVERSE>(operands, run, scale, shared, log);
        const int channel = 2 * pair_of();
        if (!factors || part_of() > 0) return;
        if (per_channel && channel < width) *(float2*)(factors + unit.number * (int64)width + channel) = make_float2((float)exp2(log[0]), (float)exp2(log[1]));
        if (!per_channel && channel == 0) factors[unit.number] = (float)exp2(log[0]);
    } else {
        take_registers<REGISTERS>();
        Sums<WIDTH> state;
        unit.load(state, entering, width, value_width);
        consume_one_way(run, shared, state, chunk_states ? chunk_states + (unit.batch * heads + unit.head) * CHUNK_STATE : nullptr, batches * heads * CHUNK_STATE);
        if (states) unit.store(state, states, width, value_width);
    }
}

#define ONE_WAY_PARAMETERS                                                                                                                                                 \
    const bf16 *x, const bf16 *v, const float *decay, int kind, int64 tokens, int heads, int x_heads, int width, int value_width, int64 batches, int64 segment_tokens,       \
        float scale, const float *entering, float *states, float *factors, bf16 *chunk_states
#define ONE_WAY_ARGUMENTS x, v, decay, kind, tokens, heads, x_heads, width, value_width, batches, segment_tokens, scale, entering, states, factors, chunk_states

KERNEL __launch_bounds__(THREADS_OF_BLOCK, 1) linear_attention_channel_state(ONE_WAY_PARAMETERS) { walk_one_way<false>(ONE_WAY_ARGUMENTS); }

// x = q and v = dO, of all query heads.
KERNEL __launch_bounds__(THREADS_OF_BLOCK, 1) linear_attention_channel_bwd_state(ONE_WAY_PARAMETERS) { walk_one_way<true>(ONE_WAY_ARGUMENTS); }

// ---- Both directions ----

constexpr int QUERIES = 0, KEYS = ROWS_BYTES, VALUES = 2 * ROWS_BYTES, OUT = 3 * ROWS_BYTES, STAGE_BYTES = 4 * ROWS_BYTES, STAGES = 3;

struct Shared {
    unsigned char panels[STAGES * STAGE_BYTES], logs[LOGS_BYTES];
    float2 sums[WARPGROUP];        // of the log decays of each producer's thread
    float through[STAGES][WIDTH];  // A
    Handover<STAGES> stages;
};

static_assert(sizeof(Shared) <= 232192, "shared memory of the launch");

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
        float2 a[PART];
        wait_copies<1>();                   // all but the next chunk's operands
        sync_threads(PRODUCER, WARPGROUP);  // of all threads
        const float2 sum = read_logs(logs, a);
        shared.sums[threadIdx.x] = sum;
        sync_threads(PRODUCER, WARPGROUP);  // the log decays have been read
        if (i + 1 < chunks) copy_logs(x.g, run.chunk(i + 1), logs);
        commit_copies();
        const float2 other = shared.sums[threadIdx.x ^ PAIRS];
        const bool later = part_of() > 0;
        exponentiate(a);
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

__device__ __forceinline__ void consume(const Run& run, Shared& shared, Sums<WIDTH>& entering, Sums<WIDTH>& leaving, bf16* chunk_states, int64 chunk_stride)
{
#pragma unroll 1
    for (int i = 0; i < run.chunks(); ++i, chunk_states += chunk_stride) {
        const unsigned stage = shared_address(shared.panels) + i % STAGES * STAGE_BYTES;
        unsigned packed[WIDTH / SUMMANDS][4];
        shared.stages.take(i);
        start_products(stage + OUT, stage + QUERIES, leaving);
        pack_state(entering, packed);
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
    auto& shared = *(Shared*)memory;
    const Unit unit(tokens, heads, batches, segment_tokens);
    const int64 head = unit.head, batch = unit.batch, key_head = head / (heads / key_heads);
    const Run run = { unit.segment * segment_tokens, unit.tokens_of_segment, 0 };
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
        if (factors && part_of() == 0 && channel < width) *(float2*)(factors + unit.number * (int64)width + channel) = make_float2((float)exp2(log[0]), (float)exp2(log[1]));
    } else {
        take_registers<REGISTERS>();
        Sums<WIDTH> p, m = {};
        unit.load(p, entering, width, value_width);
        const int64 chunk_stride = batches * heads * CHUNK_STATE;
        consume(run, shared, p, m, chunk_states + run.first / TILE * chunk_stride + (batch * heads + head) * CHUNK_STATE, chunk_stride);
        unit.store(m, states, width, value_width);
    }
}

#endif
