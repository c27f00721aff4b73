// The walk of linear_attention_channel_decay.cu that makes o, or dv backwards, on Hopper's warpgroup products, as far as chunks are gentle: no channel decays through one by more than 2^-64, none grows.
// For one head, rows in processing order (backwards: from the last token to the first), per chunk of 64 tokens:
//     forward     weight_n = exp(sum of g over rows 0 .. n)         near = scale weight . q     far = k / weight                 v = v, out = o
//     backward    weight_n = exp(sum of g over rows 0 .. n - 1)     near = weight . k           far = scale q / weight           v = dO, out = dv
//     out_n = near_n S + sum_{m <= n} (near_n . far_m) v_m          S <- A . (S + sum_m far_m^T v_m)          A = exp(sum of g over all rows)
// Parameters, layouts and chunk_states as there, but entering [segments, B, H, D, E] fp32 (null: zero): S where the segment begins. fp32 states in registers, bf16 operands, fixed order. The walk ends where a chunk is not gentle:
// reached [segments, B, H] = chunks walked, and stopped [segments, B, H, D, E] fp32 = the state that enters the next one, from which linear_attention_channel_decay goes on.
// Launch, both: 384 threads, one block per (segment, b, h), h fastest; 231680 bytes of shared memory.
#include "channel_decay_panels.cuh"

#if LASP_ELEMENT_BF16 && __CUDA_ARCH_FEAT_SM90_ALL

constexpr int NEAR = 0, FAR = ROWS_BYTES, VALUES = 2 * ROWS_BYTES, STAGE_BYTES = 3 * ROWS_BYTES, STAGES = 3, LOG_STAGES = 2;
constexpr int REGISTERS = 200, SPARE = 104;  // of a consumer's and of a producer's thread
constexpr int SHARE = TILE / CONSUMERS;      // columns of the scores that a consumer makes
constexpr int FEWEST = 16;                   // rows of a gentle chunk: with fewer, what rounding does to single scores is not evened out

struct __align__(16) ChunkNotes {
    float through[WIDTH];  // A
    int steep;             // the walk ends before this chunk
};

struct Shared {
    unsigned char panels[STAGES * STAGE_BYTES], scores[CONSUMERS * PANEL_BYTES], logs[LOG_STAGES * LOGS_BYTES];
    float2 halves[PAIRS];  // decays through the first 32 rows
    ChunkNotes notes[STAGES];
    Handover<STAGES> stages;
};

static_assert(sizeof(Shared) <= 231680, "shared memory of the launch");

// ---- Warpgroup 0: copies and weighs ----

struct Operands {
    HeadColumns near, far, v;
    ChannelLogs g;
};

__device__ __forceinline__ void copy_operands(const Operands& x, const Chunk& chunk, Shared& shared, int i)
{
    const unsigned to = shared_address(shared.panels) + i % STAGES * STAGE_BYTES;
    copy_logs(x.g, chunk, shared_address(shared.logs) + i % LOG_STAGES * LOGS_BYTES);
    copy_chunk<WIDTH>(x.near, chunk, to + NEAR);
    copy_chunk<WIDTH>(x.far, chunk, to + FAR);
    copy_chunk<WIDTH>(x.v, chunk, to + VALUES);
}

// Replaces a pair of channels in 32 rows of near and far by what the products take. INCLUSIVE: a row's own decay acts before it.
template <bool INCLUSIVE> __device__ __forceinline__ void weigh_chunk(unsigned panels, unsigned logs, float near_scale, float far_scale, float2* halves, ChunkNotes& notes)
{
    const int pair = pair_of(), half = part_of();
    const unsigned from = first_log(logs);
    float2 a[PART], product = make_float2(1.0f, 1.0f);
    float most = 0.0f;
#pragma unroll
    for (int i = 0; i < PART; ++i) {
        a[i] = load_float2(from + i * LOG_ROW);
        most = fmaxf(most, fmaxf(a[i].x, a[i].y));
        a[i].x = exp2_approximate(LOG2_E * a[i].x), a[i].y = exp2_approximate(LOG2_E * a[i].y);
        product.x *= a[i].x, product.y *= a[i].y;
    }
    if (half == 0) halves[pair] = product;
    sync_threads(PRODUCER, WARPGROUP);
    float2 weight = make_float2(near_scale, near_scale);
    if (half == 1) {
        const float2 before = halves[pair], all = make_float2(before.x * product.x, before.y * product.y);
        weight.x *= before.x, weight.y *= before.y;
        notes.through[2 * pair] = all.x, notes.through[2 * pair + 1] = all.y;
        if (!(all.x >= GENTLE && all.y >= GENTLE)) notes.steep = 1;
    }
    if (most > 0.0f) notes.steep = 1;
    weight = weigh_rows<false, INCLUSIVE>(panels + NEAR, a, weight);
    weigh_rows<true, !INCLUSIVE>(panels + FAR, a, make_float2(near_scale * far_scale * reciprocal_approximate(weight.x), near_scale * far_scale * reciprocal_approximate(weight.y)));
}

// While a chunk is weighed the next one is on its way, and the consumers have the one before.
template <bool REVERSE> __device__ __forceinline__ void produce(const Operands& x, const Run& run, float scale, Shared& shared)
{
    const int chunks = run.chunks();
    if (chunks > 0) copy_operands(x, run.chunk(0), shared, 0);
    if (threadIdx.x == 0) shared.notes[0].steep = run.rows(0) < FEWEST;
    commit_copies();
#pragma unroll 1
    for (int i = 0; i < chunks; ++i) {
        const int stage = i % STAGES;
        if (i + 1 < chunks) {
            const int next = (i + 1) % STAGES;
            wait_turn(shared.stages.empty[next], ((i + 1) / STAGES & 1) ^ 1);
            copy_operands(x, run.chunk(i + 1), shared, i + 1);
            if (threadIdx.x == 0) shared.notes[next].steep = run.rows(i + 1) < FEWEST;
        }
        commit_copies();
        wait_copies<1>();
        sync_threads(PRODUCER, WARPGROUP);  // all threads' copies are here
        weigh_chunk<!REVERSE>(
            shared_address(shared.panels) + stage * STAGE_BYTES, shared_address(shared.logs) + i % LOG_STAGES * LOGS_BYTES, REVERSE ? 1.0f : scale, REVERSE ? scale : 1.0f, shared.halves, shared.notes[stage]);
        publish_to_products();
        arrive(shared.stages.full[stage]);
        sync_threads(PRODUCER, WARPGROUP);  // the logs and the halves have been read, and all have written their notes
        if (shared.notes[stage].steep) break;
    }
    wait_copies<0>();
}

// ---- Consumers: each holds 64 columns of the state, transposed ----

// Scores (rows: far; columns: near rows from first_column on), zero where far comes later, as bf16 in a panel.
__device__ __forceinline__ void store_scores(const Sums<SHARE>& scores, int first_column, unsigned panel)
{
    const int lane = threadIdx.x % WARP, warp = threadIdx.x % WARPGROUP / WARP;
    const unsigned to = panel + (16 * warp + lane % 16) * PANEL_ROW;
#pragma unroll
    for (int block = 0; block < SHARE / 16; ++block) {
        unsigned pairs[4];
#pragma unroll
        for (int pair = 0; pair < 4; ++pair) {
            const int first = 8 * block + 2 * pair, row = sums_row(first), column = first_column + sums_column(first);
            pairs[pair] = pack_bf16(row <= column ? scores.at[first] : 0.0f, row <= column + 1 ? scores.at[first + 1] : 0.0f);
        }
        store_matrices(to + ((first_column / 8 + 2 * block + lane / 16 ^ lane % 8) << 4), pairs);
    }
}

__device__ __forceinline__ void pass_chunk(unsigned stage, unsigned score_panel, const ChunkNotes& notes, Sums<WIDTH>& state, Sums<TILE>& sum, bf16* kept)
{
    const unsigned near = stage + NEAR, far = stage + FAR, own_near = near + consumer() * SHARE * PANEL_ROW;
    Sums<SHARE> scores;
    unsigned entering[WIDTH / SUMMANDS][4], values[STEPS][4];
#pragma unroll
    for (int step = 0; step < WIDTH / SUMMANDS; ++step) pack_sums(state, step, entering[step]);
    start_scores_and_entering<WIDTH>(far, near, own_near, entering, scores, sum);
    load_transposed(stage + VALUES + consumer() * PANEL_BYTES, values);
    begin_products();
#pragma unroll
    for (int step = 0; step < STEPS; ++step) product<DOWN>(values[step], down(far, step, PANEL_BYTES), 1, state);
    commit_products();
    if (kept) store_chunk_state(entering, kept);

    wait_products<2>();
    pin(scores);
    store_scores(scores, consumer() * SHARE, score_panel);
    publish_to_products();
    sync_threads(TOGETHER, CONSUMERS * WARPGROUP);
    begin_products();
#pragma unroll
    for (int step = 0; step < STEPS; ++step) product<DOWN>(values[step], down(score_panel, step, PANEL_BYTES), 1, sum);
    commit_products();
    wait_products<1>();
    pin(state);
    scale_columns(state, notes.through);
    wait_products<0>();
    pin(sum);
}

// Returns the chunks walked.
__device__ __forceinline__ int consume(const HeadColumns& out, const Run& run, Shared& shared, Sums<WIDTH>& state, bf16* chunk_states, int64 chunk_stride)
{
#pragma unroll 1
    for (int i = 0; i < run.chunks(); ++i) {
        const unsigned stage = shared_address(shared.panels) + i % STAGES * STAGE_BYTES;
        const unsigned score_panel = shared_address(shared.scores) + i % CONSUMERS * PANEL_BYTES;  // the other consumer may still read the last one
        Sums<TILE> sum;
        shared.stages.take(i);
        if (shared.notes[i % STAGES].steep) return i;
        pass_chunk(stage, score_panel, shared.notes[i % STAGES], state, sum, chunk_states ? chunk_states + (run.first / TILE + run.place(i)) * chunk_stride : nullptr);
        store_columns(sum, stage + VALUES + consumer() * PANEL_BYTES, run.chunk(i), out);
        shared.stages.release(i);
    }
    return run.chunks();
}

template <bool REVERSE> __device__ __forceinline__ void walk_gentle(
    const bf16* q, const bf16* k, const bf16* v, const float* decay, int64 tokens, int heads, int key_heads, int width, int value_width, int64 batches, int64 segment_tokens,
    float scale, const float* entering, bf16* out, bf16* chunk_states, int* reached, float* stopped)
{
    extern __shared__ __align__(1024) unsigned char memory[];
    auto& shared = *(Shared*)memory;
    const unsigned unit = blockIdx.x;  // (segment, b, h)
    const int64 head = unit % heads, batch = unit / heads % (unsigned)batches, segment = unit / heads / (unsigned)batches, key_head = head / (heads / key_heads);
    const int64 left = tokens - segment * segment_tokens, size = (int64)width * value_width;
    const Run run = { segment * segment_tokens, left < segment_tokens ? left : segment_tokens, REVERSE };
    shared.stages.init(CONSUMERS);
    if (threadIdx.x < WARPGROUP) {
        give_registers<SPARE>();
        const HeadColumns queries = head_columns(q, batch, tokens, heads, head, width, 0), keys = head_columns(k, batch, tokens, key_heads, key_head, width, 0);
        const HeadColumns values = REVERSE ? head_columns(v, batch, tokens, heads, head, value_width, 0) : head_columns(v, batch, tokens, key_heads, key_head, value_width, 0);
        produce<REVERSE>({ REVERSE ? keys : queries, REVERSE ? queries : keys, values, { decay + (batch * tokens * heads + head) * width, heads * width, width } }, run, scale, shared);
    } else {
        take_registers<REGISTERS>();
        Sums<WIDTH> state;
        const auto place = [&](int channel, int column) { return unit * size + (int64)channel * value_width + column; };
        each(state, [&](float& x, int channel, int column) { x = entering && channel < width && column < value_width ? entering[place(channel, column)] : 0.0f; });
        const int walked = consume(
            head_columns(out, batch, tokens, heads, head, value_width, 0), run, shared, state, chunk_states ? chunk_states + (batch * heads + head) * CHUNK_STATE : nullptr, batches * heads * CHUNK_STATE);
        if (threadIdx.x == WARPGROUP) reached[unit] = walked;
        if (walked == run.chunks()) return;
        each(state, [&](float& x, int channel, int column) {
            if (channel < width && column < value_width) stopped[place(channel, column)] = x;
        });
    }
}

#define WALK_PARAMETERS                                                                                                                                                    \
    const bf16 *q, const bf16 *k, const bf16 *v, const float *decay, int64 tokens, int heads, int key_heads, int width, int value_width, int64 batches,                     \
        int64 segment_tokens, float scale, const float *entering, bf16 *out, bf16 *chunk_states, int *reached, float *stopped
#define WALK_ARGUMENTS q, k, v, decay, tokens, heads, key_heads, width, value_width, batches, segment_tokens, scale, entering, out, chunk_states, reached, stopped

KERNEL __launch_bounds__(THREADS_OF_BLOCK, 1) linear_attention_channel_gentle_output(WALK_PARAMETERS) { walk_gentle<false>(WALK_ARGUMENTS); }

// v = dO, out = dv
KERNEL __launch_bounds__(THREADS_OF_BLOCK, 1) linear_attention_channel_gentle_value(WALK_PARAMETERS) { walk_gentle<true>(WALK_ARGUMENTS); }

#endif
