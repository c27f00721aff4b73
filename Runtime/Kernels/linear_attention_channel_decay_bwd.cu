// Gradients of q, k and the log decay of linear attention with a decay per channel, on tensor cores; the states are linear_attention_channel_states', dv and those of its walk linear_attention_channel_decay's. Every chunk of 64 tokens
// is on its own: P is the state that enters it and D the gradient of the one that leaves it. Per channel, with from_i, to_j, A of the chunk and A_ij = scale dO_i . v_j for i >= j,
//     dq_i = scale from_i . (dO_i P^T) + sum_j A_ij exp(G_i - G_j) . k_j            dk_j = to_j . (v_j D^T) + sum_i A_ij exp(G_i - G_j) . q_i
//     dg_i = the sum of all paths that cross position i; nothing is subtracted:
//            sum_{s >= i} q_s . dq_s and sum_{j < i} k_j . dk_j of the parts with P and D, A . sum_e P D, and of the pairs (s, j) of each level (channel_decay.cuh), whose two halves
//            meet at a midpoint m: for i in the upper half sum_{s >= i} q_s . dq_s, for i in the lower half sum_{j < i} k_j . dk_j, both within the half.
// q [B, N, H, D], dO [B, N, H, E], k [B, N, Hk, D], v [B, N, Hk, E] bf16, D and E multiples of 8 up to 128, rows at multiples of 16 bytes; decay and d_decay fp32 [B, N, H, D];
// entering and leaving bf16: P and D as chunk_states of linear_attention_channel_decay. dq, dk [B, N, H, D] bf16 (dk of each query head).
// Launch: 256 threads; one block per (chunk, b, h, 64 channels), the last fastest; 112640 bytes of shared memory. fp32 sums, fixed order.
// Chunks through which nothing decays much are channel_decay_gentle.cuh's, all others channel_decay_levels.cuh's.
#include "channel_decay_gentle.cuh"
#include "channel_decay_levels.cuh"
#if LASP_ELEMENT_BF16 && __CUDA_ARCH_FEAT_SM90_ALL

// What a block reads: the chunk's first rows, whole, and their distances.
struct Call {
    const bf16 *q, *k;
    int q_stride, k_stride;
    const float* g;  // in the rows of q
    float scale;
};

// The decay over each block, and the operands of other blocks: queries decayed from their block's entry, keys to its exit.
template <bool QUERY, bool KEY, bool DECAY> __device__ __forceinline__ void decay_operands(unsigned shared, const Chunk& chunk, const Call& call)
{
    float a[SHARE_STEPS][OWN];
    unsigned q[SHARE_STEPS][4], k[SHARE_STEPS][4];
#pragma unroll
    for (int step = 0; step < SHARE_STEPS; ++step) {  // all loads are under way before the first is waited for
        chunk.load_logs(call.g, call.q_stride, step, a[step]);
        if (KEY || DECAY) chunk.load(call.q, call.q_stride, step, q[step]);
        if (QUERY || DECAY) chunk.load(call.k, call.k_stride, step, k[step]);
    }
#pragma unroll
    for (int step = 0; step < SHARE_STEPS; ++step) {
        const int row = block_of() * ROW_BLOCK, column = share_of() + step * CHANNELS;
        exp2_all(a[step]);
        const Decays decays = climb(a[step], [](auto, const float (&)[OWN]) {});
        if (lane_of() < 4)
            store_shared(sums_at(shared + DECAYS, block_of(), chunk.channel(step)),
                make_float4(decays.from[0] * decays.to[0], decays.from[1] * decays.to[1], decays.from[4] * decays.to[4], decays.from[5] * decays.to[5]));
        const auto store = [&](const unsigned (&x)[4], const float (&factor)[OWN], SlabTile tile) {
            unsigned y[4];
            scale_pairs(x, factor, y);
#pragma unroll
            for (int p = 0; p < 4; ++p) tile.store_pair(row, column, p, y[p]);
        };
        if (KEY || DECAY) store(q[step], decays.from, { shared + QUERIES });
        if (QUERY || DECAY) store(k[step], decays.to, { shared + KEYS });
    }
}

template <bool QUERY, bool KEY, bool DECAY> __device__ __forceinline__ void make_gradients(unsigned shared, const Chunk& chunk, const Call& call, int step, Gradients& d)
{
    const int column = share_of() + step * CHANNELS, channel = chunk.channel(step);
    float a[OWN], outer[4];
    unsigned q[4] = {}, k[4] = {};
    chunk.load_logs(call.g, call.q_stride, step, a);
    if (KEY || DECAY) chunk.load(call.q, call.q_stride, step, q);
    if (QUERY || DECAY) chunk.load(call.k, call.k_stride, step, k);
    exp2_all(a);
    const LevelScores scores({ shared + SCORES });
    const Decays decays = climb(a, [&](auto level, const float (&factor)[OWN]) { add_level<DECAY, decltype(level)::count>(q, k, factor, scores, d); });
    add_own<QUERY, KEY>(q, k, scores.own, d);
    if (QUERY || DECAY) {
        MmaSums pairs[2] = {}, inter[2] = {};
        add_earlier_blocks<DECAY>(shared, column, channel, q, decays.from, pairs);
        multiply_state({ shared + OUT }, { shared + ENTERING }, column, inter);
        decay_over(shared + DECAYS, 0, block_of(), channel, call.scale, outer);
        add_outside<DECAY, true>(pairs, inter, q, decays.from, outer, shared + ARRIVING, channel, d.dq, d.dg);
    }
    if (KEY || DECAY) {
        MmaSums pairs[2] = {}, inter[2] = {};
        add_later_blocks<DECAY>(shared, column, channel, k, decays.to, pairs);
        multiply_state({ shared + V }, { shared + LEAVING }, column, inter);
        decay_over(shared + DECAYS, block_of() + 1, ROW_BLOCKS, channel, 1.0f, outer);
        add_outside<DECAY, false>(pairs, inter, k, decays.to, outer, shared + DEPARTING, channel, d.dk, d.dg);
    }
}

__device__ __forceinline__ void fetch_state(const bf16* from, SlabTile tile)
{
    constexpr int PIECES = SLAB / 8, STRIDE = THREADS / PIECES;
    const int row = threadIdx.x / PIECES, piece = threadIdx.x % PIECES;
#pragma unroll
    for (int i = 0; i < WIDTH; i += STRIDE) copy16_async(tile.piece(row, piece) + i * SlabTile::ROW_BYTES, from + (row + i) * WIDTH + piece * 8, 16);
}

// The sums of a step wait in shared memory, each thread's for itself, until all warps have left what they found.
__device__ __forceinline__ unsigned parked(unsigned shared, int step, int half) { return shared + PARKED + ((2 * step + half) * THREADS + threadIdx.x) * 16; }

__device__ __forceinline__ void park_sums(unsigned shared, int step, const MmaSums (&x)[2])
{
#pragma unroll
    for (int half = 0; half < 2; ++half) store_shared(parked(shared, step, half), make_float4(x[half].at[0], x[half].at[1], x[half].at[2], x[half].at[3]));
}

__device__ __forceinline__ void fetch_sums(unsigned shared, int step, MmaSums (&x)[2])
{
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const float4 y = load_float4(parked(shared, step, half));
        x[half].at[0] = y.x, x[half].at[1] = y.y, x[half].at[2] = y.z, x[half].at[3] = y.w;
    }
}

#define GRADIENT_PARAMETERS                                                                                                                                          \
    const bf16 *q, const bf16 *k, const bf16 *v, const bf16 *d_out, const float *decay, int64 tokens, int heads, int key_heads, int width, int value_width, \
        int64 batches, float scale, const bf16 *entering, const bf16 *leaving, bf16 *dq, bf16 *dk, float *d_decay
#define GRADIENT_ARGUMENTS q, k, v, d_out, decay, tokens, heads, key_heads, width, value_width, batches, scale, entering, leaving, dq, dk, d_decay

// What a block works on. Rows are the chunk's.
struct Place {
    int64 first;  // element of q, decay and their gradients at which it begins
    int64 left;   // tokens from there on
    Chunk chunk;
    Rows values, outputs;
    Call call;
    const bf16 *entering, *leaving;
};

__device__ __forceinline__ Place place_of(unsigned block, GRADIENT_PARAMETERS)
{
    const unsigned slab = width > SLAB ? block % 2 : 0, unit = width > SLAB ? block / 2 : block, place = unit / heads, head = unit - place * heads;  // unit: (chunk, b, h)
    const unsigned chunk = place / (unsigned)batches, batch = place - chunk * (unsigned)batches, key_head = head * key_heads / heads;
    const int64 first = (int64)chunk * CHUNK, token = batch * tokens + first, left = tokens - first, state = (int64)unit * CHUNK_STATE + slab * SLAB;
    const int q_stride = heads * width, k_stride = key_heads * width, v_stride = key_heads * value_width, out_stride = heads * value_width;
    const int64 own = token * q_stride + head * width;
    return {
        own, left, { left < CHUNK ? (int)left : CHUNK, (int)slab * SLAB, width },
        { v + token * v_stride + key_head * value_width, v_stride, value_width }, { d_out + token * out_stride + head * value_width, out_stride, value_width },
        { q + own, k + token * k_stride + key_head * width, q_stride, k_stride, decay + own, scale }, entering + state, leaving + state
    };
}

// What the block of the same head and channels AHEAD blocks or a little more later reads, fetched into the L2 while this one computes. Blocks begin in their order, two to a multiprocessor.
constexpr unsigned AHEAD = 96;

__device__ __forceinline__ void prefetch_line(const void* x) { asm volatile("prefetch.global.L2 [%0];" ::"l"(x)); }

template <bool Q, bool K> __device__ __forceinline__ void prefetch_chunk(const Place& at, unsigned runs)
{
    constexpr int PARTS = THREADS / CHUNK, LINE_FLOATS = SLAB / 2;
    const unsigned chunks = AHEAD / (at.chunk.width > SLAB ? 2 * runs : runs) + 1, row = chunks * CHUNK + threadIdx.x / PARTS, part = threadIdx.x % PARTS, slab = at.chunk.slab;
    if (row >= at.left) return;
    const int64 state = (int64)chunks * runs * CHUNK_STATE + threadIdx.x % WIDTH * WIDTH;
    if (threadIdx.x < WIDTH && K) prefetch_line(at.entering + state);
    if (threadIdx.x >= WIDTH && Q) prefetch_line(at.leaving + state);
    if (part < 2) {
        const Rows& x = part ? at.values : at.outputs;
        prefetch_line(skip_rows(x.start + (slab < x.columns ? slab : 0), row, 2 * x.stride));
        prefetch_line(skip_rows(at.call.g + slab + part * LINE_FLOATS, row, 4 * at.call.q_stride));
    } else if (part == 2) {
        if (Q) prefetch_line(skip_rows(at.call.q + slab, row, 2 * at.call.q_stride));
    } else {
        if (K) prefetch_line(skip_rows(at.call.k + slab, row, 2 * at.call.k_stride));
    }
}

// False: the chunk is not gentle, and nothing has been written.
template <bool QUERY, bool KEY, bool DECAY> __device__ __forceinline__ bool gentle_gradients(unsigned shared, GRADIENT_PARAMETERS)
{
    const Place at = place_of(blockIdx.x, GRADIENT_ARGUMENTS);
    const Chunk& chunk = at.chunk;
    GentleRows rows;
    read_rows<KEY || DECAY, QUERY || DECAY>(chunk, at.first, at.call.q, at.call.g, at.call.q_stride, at.call.k, at.call.k_stride, rows);
    fetch_rows(at.values, chunk.rows, shared + V);
    fetch_rows(at.outputs, chunk.rows, shared + OUT);
    commit_copies();
    if (QUERY || DECAY) fetch_state_panel(at.entering, shared + ENTERING);
    if (KEY || DECAY) fetch_state_panel(at.leaving, shared + LEAVING);
    commit_copies();
    prefetch_chunk<KEY || DECAY, QUERY || DECAY>(at, heads * (unsigned)batches);
    const bool decays = multiply_rows(shared, rows) && chunk.rows >= ROW_BLOCK;
    wait_copies<1>();
    publish_to_products();
    if (!__syncthreads_and(decays)) {
        wait_copies<0>();
        __syncthreads();  // other threads fetch to where this one's copies have gone
        return false;
    }
    const bool makes_queries = threadIdx.x < WARPGROUP;
    Sums<CHUNK> scores;
    start_scores(shared + (makes_queries ? OUT : V), shared + (makes_queries ? V : OUT), scores);
    const bool weighed = weigh_rows<KEY || DECAY, QUERY || DECAY>(shared, rows);
    rows.park(shared);
    wait_copies<0>();
    publish_to_products();
    wait_products<0>();
    pin(scores);
    if (!__syncthreads_and(weighed)) return false;
    make_all_sums<QUERY || DECAY, KEY || DECAY, DECAY>(shared, scores);
    rows.fetch(shared);
    unsigned stride = heads * width;
    keep_in_loop(shared);  // and all other addresses: those of the beginning are not kept
    keep_in_loop(stride);
    finish_rows<QUERY, KEY, DECAY>(shared, rows, scale, dq, dk, d_decay, stride);
    return true;
}

// For any chunk. A function of its own, whose registers are not those of the other.
template <bool QUERY, bool KEY, bool DECAY> __device__ __noinline__ void any_gradients(unsigned shared, GRADIENT_PARAMETERS)
{
    const Place at = place_of(blockIdx.x, GRADIENT_ARGUMENTS);
    const Chunk& chunk = at.chunk;
    const Call& call = at.call;
    at.values.fetch<THREADS>(0, chunk.rows, WideTile { shared + V });
    at.outputs.fetch<THREADS>(0, chunk.rows, WideTile { shared + OUT });
    commit_copies();
    if (QUERY || DECAY) fetch_state(at.entering, { shared + ENTERING });
    if (KEY || DECAY) fetch_state(at.leaving, { shared + LEAVING });
    commit_copies();
    decay_operands<QUERY, KEY, DECAY>(shared, chunk, call);
    wait_copies<1>();
    __syncthreads();
    make_scores(shared, scale);
    wait_copies<0>();
    __syncthreads();
    if (DECAY) multiply_states({ shared + ENTERING }, { shared + LEAVING }, shared + THROUGH);

    const auto make = [&](int step, MmaSums (&dg)[2]) {
        Gradients d;
        keep_in_loop(shared);
        make_gradients<QUERY, KEY, DECAY>(shared, chunk, call, step, d);
        if (QUERY) chunk.store(d.dq, step, dq + at.first, call.q_stride);
        if (KEY && dk) chunk.store(d.dk, step, dk + at.first, call.q_stride);
        dg[0] = d.dg[0], dg[1] = d.dg[1];
    };
    const auto write = [&](int step, MmaSums (&dg)[2]) {
        add_other_blocks(shared, chunk.channel(step), dg);
#pragma unroll
        for (int i = 0; i < 2; ++i)
            if (chunk.has(i, step))
                *(float4*)(d_decay + at.first + chunk.offset(i, step, call.q_stride)) = make_float4(dg[0].at[2 * i], dg[0].at[2 * i + 1], dg[1].at[2 * i], dg[1].at[2 * i + 1]);
    };
#pragma unroll 1
    for (int step = 0; step < SHARE_STEPS; ++step) {
        MmaSums dg[2];
        make(step, dg);
        if (DECAY) park_sums(shared, step, dg);
    }
    if (!DECAY) return;
    __syncthreads();
#pragma unroll 1
    for (int step = 0; step < SHARE_STEPS; ++step) {
        MmaSums dg[2];
        fetch_sums(shared, step, dg);
        write(step, dg);
    }
}

template <bool QUERY, bool KEY, bool DECAY> __device__ __forceinline__ void chunk_gradients(GRADIENT_PARAMETERS)
{
    extern __shared__ __align__(1024) unsigned char memory[];
    const unsigned shared = shared_address(memory);
    if (!gentle_gradients<QUERY, KEY, DECAY>(shared, GRADIENT_ARGUMENTS)) any_gradients<QUERY, KEY, DECAY>(shared, GRADIENT_ARGUMENTS);
}

// What a kernel does not need is null: q, leaving, dk and d_decay for dq; k, entering, dq and d_decay for dk. With d_decay, dk may be null.
#if WANTS(linear_attention_channel_bwd_query)
KERNEL __launch_bounds__(THREADS, 2) linear_attention_channel_bwd_query(GRADIENT_PARAMETERS) { chunk_gradients<true, false, false>(GRADIENT_ARGUMENTS); }
#endif

#if WANTS(linear_attention_channel_bwd_key)
KERNEL __launch_bounds__(THREADS, 2) linear_attention_channel_bwd_key(GRADIENT_PARAMETERS) { chunk_gradients<false, true, false>(GRADIENT_ARGUMENTS); }
#endif

#if WANTS(linear_attention_channel_bwd_key_decay)
KERNEL __launch_bounds__(THREADS, 2) linear_attention_channel_bwd_key_decay(GRADIENT_PARAMETERS) { chunk_gradients<false, true, true>(GRADIENT_ARGUMENTS); }
#endif

#if WANTS(linear_attention_channel_bwd_query_key_decay)
KERNEL __launch_bounds__(THREADS, 2) linear_attention_channel_bwd_query_key_decay(GRADIENT_PARAMETERS) { chunk_gradients<true, true, true>(GRADIENT_ARGUMENTS); }
#endif

#endif
