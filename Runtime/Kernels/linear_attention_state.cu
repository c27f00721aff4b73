// The state that a run of tokens leaves behind, and how the states of its segments compose.
//     forward (reverse = 0)      M = sum_i exp(G_N - G_i) . scale k_i^T v_i          the state left by the run, entered with zero
//     backward (reverse = 1)     M = sum_i exp(G_i) . scale k_i^T v_i                with k = q and v = dO: the gradient of the entering state
// k [B, N, Hk, D], v [B, N, Hk, E], decay (log) fp32 of any DecayKind, states [segments, B, H, D, E] fp32; G_i = sum of the decay over 1..i.
// Both directions are one recursion over the tokens in processing order, M = exp(g) . M + k^T v; attention_decay.cuh says where they differ.
// The run is cut into segments of segment_tokens tokens (a multiple of 64), which compose as pairs (A, M).
// fp32 accumulation in a fixed order: token by token within sub-chunks of 64, sub-chunk by sub-chunk, segment by segment.
#include "attention_decay.cuh"

template <bool PER_CHANNEL> __device__ __forceinline__ void segment_state(
    const element* k, const element* v, const float* decay, int kind, int64 tokens, int heads, int key_heads, int width, int value_width, int64 batches,
    int64 segment_tokens, const SegmentRow* cut, int reverse, float scale_factor, float* states)
{
    __shared__ __align__(16) float k_tile[TILE_FLOATS], v_tile[TILE_FLOATS];
    __shared__ ChunkDecay shared_decay;
    __shared__ ChannelDecay channel_decay;
    const int tx = threadIdx.x % SIDE, ty = threadIdx.x / SIDE;
    const int slices = (value_width + TILE - 1) / TILE, slabs = (width + TILE - 1) / TILE;
    const int column = blockIdx.x % slices * TILE, row = blockIdx.x / slices % slabs * TILE;
    const int64 state = blockIdx.x / (slices * slabs);  // (segment, b, h)
    const int64 head = state % heads, batch = state / heads % batches;
    const Segment segment = segment_of(state / heads / batches, segment_tokens, cut, tokens, reverse);
    const int64 key_head = head / (heads / key_heads);
    const HeadColumns k_columns = head_columns(k, batch, tokens, key_heads, key_head, width, row);
    const HeadColumns v_columns = head_columns(v, batch, tokens, key_heads, key_head, value_width, column);
    const HeadDecay g = head_decay(decay, PER_CHANNEL ? DECAY_PER_CHANNEL : kind, batch, tokens, heads, head, width);

    Fragment sum = {};
    for (int i = 0; i < segment.chunks(); ++i) {
        const Chunk chunk = chunk_of(segment, i);
        load_tile(k_columns, chunk.first, chunk.direction(), chunk.rows, k_tile);
        load_tile(v_columns, chunk.first, chunk.direction(), chunk.rows, v_tile);
        if constexpr (PER_CHANNEL) {
            __syncthreads();
            weigh_to_exit(g.from(row), k_columns.columns, chunk, k_tile, channel_decay);
        } else {
            load_decay(g, chunk, shared_decay);
        }
        __syncthreads();
        weigh(sum, [&](int d, int) { return PER_CHANNEL ? channel_decay.through[d] : shared_decay.through; });
        outer(k_tile, v_tile, chunk.rows, tx, ty, [&](int t) { return PER_CHANNEL ? scale_factor : scale_factor * shared_decay.to_exit[t]; }, sum);
        __syncthreads();
    }

    float* out = state_of(states, segment, batches, batch, heads, head, (int64)width * value_width);
#pragma unroll
    for (int i = 0; i < 4; ++i)
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            const int d = row + 4 * ty + i, e = column + 4 * tx + j;
            if (d < width && e < value_width) out[(int64)d * value_width + e] = sum.at[i][j];
        }
}

// Launch, both: 256 threads; one block per (segment, b, h, 64 columns of D, 64 columns of E), the last of these fastest.
// bf16 has faster ones (linear_attention_mma.cu, linear_attention_state_wgmma.cu), whose weighted operands are rounded; this one is for the gradients of decays.
KERNEL __launch_bounds__(THREADS) linear_attention_state(
    const element* k, const element* v, const float* decay, int kind, int64 tokens, int heads, int key_heads, int width, int value_width, int64 batches,
    int64 segment_tokens, const SegmentRow* cut, int reverse, float scale_factor, float* states)
{
    segment_state<false>(k, v, decay, kind, tokens, heads, key_heads, width, value_width, batches, segment_tokens, cut, reverse, scale_factor, states);
}

KERNEL __launch_bounds__(THREADS) linear_attention_state_per_channel(
    const element* k, const element* v, const float* decay, int kind, int64 tokens, int heads, int key_heads, int width, int value_width, int64 batches,
    int64 segment_tokens, const SegmentRow* cut, int reverse, float scale_factor, float* states)
{
    segment_state<true>(k, v, decay, kind, tokens, heads, key_heads, width, value_width, batches, segment_tokens, cut, reverse, scale_factor, states);
}

// factors[segment, b, h] = A of a segment = exp(sum of its log decays [B, N, H]), summed in fp64; channels is 1. Launch: one block of 256 threads per factor.
KERNEL __launch_bounds__(THREADS) linear_attention_segment_decay_per_token(
    const float* decay, int64 tokens, int64 batches, int heads, int, int64, int64 segment_tokens, const SegmentRow* cut, float* factors)
{
    __shared__ double scratch[THREADS / WARP];
    const int64 state = blockIdx.x, head = state % heads, batch = state / heads % batches;  // (segment, b, h)
    const HeadDecay g = head_decay(decay, DECAY_PER_TOKEN, batch, tokens, heads, head, 1);
    const Segment segment = segment_of(state / heads / batches, segment_tokens, cut, tokens, 0);
    double sum = 0.0;
#pragma unroll 8
    for (int64 t = threadIdx.x; t < segment.tokens; t += THREADS) sum += g.at(segment.first + t, 0);
    sum = block_reduce(sum, 0.0, scratch, Sum());
    if (threadIdx.x == 0) factors[(segment.state * batches + batch) * heads + head] = (float)exp(sum);
}

// factors[segment, b, h, channel] = A of a segment = exp(sum of its log decays [B, N, H, channels]), summed in fp64. Launch: one thread per factor.
KERNEL linear_attention_segment_decay_per_channel(
    const float* decay, int64 tokens, int64 batches, int heads, int channels, int64 segments, int64 segment_tokens, float* factors)
{
    const int64 i = global_thread();
    if (i >= segments * batches * heads * channels) return;
    const int channel = (int)(i % channels);
    const int64 state = i / channels;  // (segment, b, h)
    const HeadDecay g = head_decay(decay, DECAY_PER_CHANNEL, state / heads % batches, tokens, heads, state % heads, channels);
    const Segment segment = segment_of(state / heads / batches, segment_tokens, tokens, 0);
    double sum = 0.0;
#pragma unroll 8
    for (int64 t = 0; t < segment.tokens; ++t) sum += g.at(segment.first + t, channel);
    factors[i] = (float)exp(sum);
}

// One thread's share of the scan: COUNT consecutive elements that have their factors in common, AHEAD segments of which are read before the first is used.
template <int COUNT> struct EdgeScan {
    static constexpr int AHEAD = 8;

    float at[COUNT];

    __device__ __forceinline__ void read(const float* from)
    {
        if constexpr (COUNT == 4) {
            const float4 x = *(const float4*)from;
            at[0] = x.x, at[1] = x.y, at[2] = x.z, at[3] = x.w;
        } else {
            at[0] = *from;
        }
    }

    __device__ __forceinline__ void write(float* to) const
    {
        if constexpr (COUNT == 4) *(float4*)to = make_float4(at[0], at[1], at[2], at[3]);
        else *to = at[0];
    }

    // `step` floats from one segment's states to the next that is processed; its A is through(its place).
    template <typename Through> static __device__ __forceinline__ void run(const float* states, int64 step, Through through, const float* initial, int segments, float* entering, float* final)
    {
        EdgeScan p = {}, m[AHEAD] = {};
        if (initial) p.read(initial);
#pragma unroll 1
        for (int done = 0; done < segments; done += AHEAD) {
#pragma unroll
            for (int i = 0; i < AHEAD; ++i)
                if (states && done + i < segments) m[i].read(states + i * step);
#pragma unroll
            for (int i = 0; i < AHEAD; ++i) {
                if (done + i >= segments) continue;
                if (entering) p.write(entering + i * step);
                const float a = through(done + i);
#pragma unroll
                for (int j = 0; j < COUNT; ++j) p.at[j] = fmaf(a, p.at[j], m[i].at[j]);
            }
            if (states) states += AHEAD * step;
            if (entering) entering += AHEAD * step;
        }
        if (final) p.write(final);
    }
};

// Packed runs, which lie one after another in one batch row: where the states of a run's segments begin, and how it is cut (PackedCut of the host).
struct RunRow {
    int64 state, index;  // of its first segment among the states; its own among initial and final
    int64 tokens, segment_tokens;
};

// P = initial (null: zero); for each segment in processing order: entering[segment] = P, P = fma(A, P, M); final = P.
// A comes from factors [segments, B, H, channels], channels 1 or D; where these are null from decay [H], and without that too it is 1.
// states and entering [segments, B, H, D, E], which may be the same; initial and final [B, H, D, E].
// With packed (rows of `batches` runs): states and entering [segments, H, D, E], factors [segments, H, channels], initial and final [runs, H, D, E].
// Null are allowed: entering, final; states with one segment and no final. Launch: one thread per 4 elements of a state (b, h, d, e).
KERNEL __launch_bounds__(THREADS, 3) linear_attention_enter(
    const float* states, const float* factors, const float* decay, const float* initial, int64 tokens, int64 batches, int heads, int width, int value_width, int channels,
    int64 segment_tokens, const RunRow* packed, int reverse, float* entering, float* final)
{
    const int64 size = (int64)width * value_width, count = batches * heads * size;
    const auto from = [](auto* x, int64 offset) { return x ? x + offset : nullptr; };
    const auto scan = [&](int64 i, auto edges) {
        const int64 batch = i / (heads * size), head = i / size % heads, in_run = i - batch * heads * size, channel = channels > 1 ? i % size / value_width : 0;
        const RunRow run = packed ? packed[batch] : RunRow{ 0, batch, tokens, segment_tokens };
        const int64 beside = packed ? 1 : batches, step = beside * heads * size;              // runs whose states of one segment lie beside each other
        const int64 first = packed ? run.state * step + in_run : i, edge = run.index * heads * size + in_run;
        const int64 factor_step = beside * heads * channels, factor = packed ? run.state * factor_step + head * channels + channel : (batch * heads + head) * channels + channel;
        const double log_decay = !factors && decay ? decay[head] : 0.0;
        const int segments = run.tokens == 0 ? 0 : (int)((run.tokens + run.segment_tokens - 1) / run.segment_tokens), entry = reverse ? segments - 1 : 0, turn = reverse ? -1 : 1;
        const float whole = expf((float)(log_decay * run.segment_tokens)), rest = expf((float)(log_decay * (run.tokens - (segments - 1) * run.segment_tokens)));
        const auto through = [&](int place) {
            const int s = entry + turn * place;
            return factors ? factors[s * factor_step + factor] : s == segments - 1 ? rest : whole;
        };
        const int64 start = first + entry * step;
        decltype(edges)::run(from(states, start), turn * step, through, from(initial, edge), segments, from(entering, start), from(final, edge));
    };
    const int64 first = 4 * global_thread();
    if (first >= count) return;
    const auto quads = [](const float* x) { return ((unsigned long long)x & 15) == 0; };
    if (value_width % 4 == 0 && quads(states) && quads(initial) && quads(entering) && quads(final)) scan(first, EdgeScan<4>());
    else
        for (int64 i = first; i < first + 4 && i < count; ++i) scan(i, EdgeScan<1>());
}
