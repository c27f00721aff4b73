// The gradients of a gentle chunk: one through which no channel decays by more than GENTLE and none grows. Per channel, with e_i = exp(sum of g over the chunk's tokens 0 .. i), A the same over all, A_ij as in
// linear_attention_channel_decay_bwd.cu, and X_i = e_i q_i, Y_j = k_j / e_j as bf16,
//     dX_i = scale dO_i P^T + sum_{j < i} A_ij Y_j        dY_j = A (v_j D^T) + sum_{i > j} A_ij X_i        dq_i = e_i (dX_i + A_ii Y_i)        dk_j = (dY_j + A_jj X_j) / e_j
//     dg_i = sum_{s >= i} (X_s dX_s - Y_s (pairs of dY_s)) + sum_{j < i} Y_j A (v_j D^T) + A sum_e P D
// A pair's path stands in X dX and in Y dY with the same rounded factors, so that what does not cross position i cancels to the rounding of fp32; a token's pair with itself is left out of both.
// Decays and results are a thread's 2 channels of 8 rows (group, pair); between them stand products whose sums change hands in shared memory.
#ifndef LASP_CHANNEL_DECAY_GENTLE
#define LASP_CHANNEL_DECAY_GENTLE
#include "channel_decay_scores.cuh"
#include "wgmma.cuh"
#if LASP_ELEMENT_BF16 && __CUDA_ARCH_FEAT_SM90_ALL

constexpr int PAIRS = SLAB / 2, GROUPS = THREADS / PAIRS, GROUP = CHUNK / GROUPS;
constexpr int GROUP_SUMS = GROUPS * SLAB * 4;
constexpr int PRODUCTS = DECAYS, LATER = DECAYS, SOONER = DECAYS + GROUP_SUMS;            // by groups: products of decays; then sums of paths
constexpr int FLOATS_BYTES = CHUNK * SLAB * 4;
constexpr int OWN_SCORES = SCORES;  // dO_i . v_i, 64 floats
constexpr int SUMS_MADE = 1;       // named barrier
constexpr int PANEL_BYTES = CHUNK * PANEL_ROW, STEPS = CHUNK / SUMMANDS;
constexpr int D_QUERIES = V, D_KEYS_INTER = V + FLOATS_BYTES, D_KEYS_PAIRS = V + 2 * FLOATS_BYTES;  // fp32 sums where v, dO and P have been

__device__ __forceinline__ int pair_of() { return threadIdx.x % PAIRS; }
__device__ __forceinline__ int group_of() { return threadIdx.x / PAIRS; }

// This thread's pair of channels in row i of its group, in a panel whose columns are in the order of chunk_states: `first` is the place in row 0. Panels begin at multiples of 1024 bytes and groups are
// 8 rows, so that a row's permutation is flipped into the address, and no address but `first` is kept.
__device__ __forceinline__ unsigned first_pair(unsigned panel) { return panel + panel_offset(group_of() * GROUP, pair_of() / 8 * 2 + pair_of() % 2) + pair_of() % 8 / 2 * 4; }

__device__ __forceinline__ unsigned pair_at(unsigned first, int i) { return (first ^ (i << 4)) + i * PANEL_ROW; }

// Four fp32 of a row.
__device__ __forceinline__ unsigned floats_at(unsigned tile, int row, int four) { return tile + row * (SLAB * 4) + ((four ^ (row & 1) << 2) << 4); }

// The same for sums, in such a tile.
__device__ __forceinline__ unsigned first_sum(unsigned tile) { return floats_at(tile, group_of() * GROUP, 0) + pair_of() * 8; }

__device__ __forceinline__ float2 load_sum(unsigned first, int i) { return load_float2((first ^ (i & 1) << 6) + i * (SLAB * 4)); }

// What a thread keeps from the beginning to the end.
struct GentleRows {
    float2 e[GROUP];  // at first the decay of each row
    unsigned q[GROUP], k[GROUP];
    float2 through;
    int64 first;  // of the first row, in q, decay and their gradients
    int count;    // rows that exist

    static __device__ __forceinline__ unsigned parked(unsigned shared, int i) { return shared + PARKED + (i / 2 * THREADS + threadIdx.x) * 16; }

    // e, in a place of this thread's own while the products need its registers.
    __device__ __forceinline__ void park(unsigned shared) const
    {
#pragma unroll
        for (int i = 0; i < GROUP; i += 2) store_shared(parked(shared, i), make_float4(e[i].x, e[i].y, e[i + 1].x, e[i + 1].y));
    }

    __device__ __forceinline__ void fetch(unsigned shared)
    {
#pragma unroll
        for (int i = 0; i < GROUP; i += 2) {
            const float4 x = load_float4(parked(shared, i));
            e[i] = make_float2(x.x, x.y), e[i + 1] = make_float2(x.z, x.w);
        }
    }
};

// x, moved on by rows that lie `stride` bytes apart, in one multiplication and addition.
template <typename T> __device__ __forceinline__ T* skip_rows(T* x, unsigned rows, unsigned stride)
{
    T* y;
    asm("mad.wide.u32 %0, %1, %2, %3;" : "=l"(y) : "r"(rows), "r"(stride), "l"(x));
    return y;
}

// Global memory where `exists`, else zero or nothing; without a branch, so that the next row is not waited for.
__device__ __forceinline__ unsigned load_pair(const bf16* from, bool exists)
{
    unsigned x;
    asm volatile("{ .reg .pred p; setp.ne.b32 p, %2, 0; mov.b32 %0, 0; @p ld.global.nc.b32 %0, [%1]; }" : "=r"(x) : "l"(from), "r"((int)exists));
    return x;
}

__device__ __forceinline__ float2 load_pair(const float* from, bool exists)
{
    float2 x;
    asm volatile("{ .reg .pred p; setp.ne.b32 p, %3, 0; mov.b32 %0, 0; mov.b32 %1, 0; @p ld.global.nc.v2.f32 {%0, %1}, [%2]; }" : "=f"(x.x), "=f"(x.y) : "l"(from), "r"((int)exists));
    return x;
}

__device__ __forceinline__ void store_pair(bf16* to, float low, float high, bool exists)
{
    asm volatile("{ .reg .pred p; setp.ne.b32 p, %2, 0; @p st.global.b32 [%0], %1; }" ::"l"(to), "r"(pack_bf16(low, high)), "r"((int)exists) : "memory");
}

__device__ __forceinline__ void store_pair(float* to, const float2& x, bool exists)
{
    asm volatile("{ .reg .pred p; setp.ne.b32 p, %3, 0; @p st.global.v2.f32 [%0], {%1, %2}; }" ::"l"(to), "f"(x.x), "f"(x.y), "r"((int)exists) : "memory");
}

// q, decay and k from the chunk's first row on, which is element `first` of q.
template <bool Q, bool K> __device__ __forceinline__ void read_rows(
    const Chunk& chunk, int64 first, const bf16* q, const float* decay, int stride, const bf16* k, int k_stride, GentleRows& x)
{
    const int channel = chunk.slab + 2 * pair_of(), row = group_of() * GROUP, own = row * stride + channel;
    x.first = first + own;
    x.count = channel < chunk.width ? chunk.rows - row : 0;
    q += own, decay += own, k += row * k_stride + channel;
#pragma unroll
    for (int i = 0; i < GROUP; ++i) {
        x.e[i] = load_pair(skip_rows(decay, i, 4 * stride), i < x.count);
        if (Q) x.q[i] = load_pair(skip_rows(q, i, 2 * stride), i < x.count);
        if (K) x.k[i] = load_pair(skip_rows(k, i, 2 * k_stride), i < x.count);
    }
}

// Leaves the product of this thread's decays. The caller synchronises. False: a channel grows, or decays by more than GENTLE within these rows already.
__device__ __forceinline__ bool multiply_rows(unsigned shared, GentleRows& x)
{
    float most = 0.0f;
    float2 product = make_float2(1.0f, 1.0f);
#pragma unroll
    for (int i = 0; i < GROUP; ++i) {
        most = fmaxf(most, fmaxf(x.e[i].x, x.e[i].y));
        x.e[i].x = exp2_approximate(LOG2_E * x.e[i].x), x.e[i].y = exp2_approximate(LOG2_E * x.e[i].y);
        product.x *= x.e[i].x, product.y *= x.e[i].y;
    }
    store_shared(shared + PRODUCTS + (group_of() * SLAB + 2 * pair_of()) * 4, product);
    return most <= 0.0f && product.x >= GENTLE && product.y >= GENTLE;
}

// Turns decays into e, and makes X and Y. False: this thread's channels are not gentle. The caller synchronises.
template <bool Q, bool K> __device__ __forceinline__ bool weigh_rows(unsigned shared, GentleRows& x)
{
    float2 weight = make_float2(1.0f, 1.0f);
    x.through = weight;
#pragma unroll
    for (int other = 0; other < GROUPS; ++other) {
        const float2 y = load_float2(shared + PRODUCTS + (other * SLAB + 2 * pair_of()) * 4);
        x.through.x *= y.x, x.through.y *= y.y;
        if (other < group_of()) weight.x *= y.x, weight.y *= y.y;
    }
    const unsigned first = first_pair(shared);
#pragma unroll
    for (int i = 0; i < GROUP; ++i) {
        weight.x *= x.e[i].x, weight.y *= x.e[i].y;
        x.e[i] = weight;
        if (Q) store_shared(pair_at(first, i) + QUERIES, pack_bf16(weight.x * low_of(x.q[i]), weight.y * high_of(x.q[i])));
        if (K) store_shared(pair_at(first, i) + KEYS, pack_bf16(reciprocal_approximate(weight.x) * low_of(x.k[i]), reciprocal_approximate(weight.y) * high_of(x.k[i])));
    }
    return x.through.x >= GENTLE && x.through.y >= GENTLE;
}

// ---- Products: warpgroup 0 makes dX, warpgroup 1 dY ----

// Begins to fill panels with a chunk's rows (at least 1) of up to WIDTH columns; what lies beyond becomes zero.
__device__ __forceinline__ void fetch_rows(const Rows& x, int rows, unsigned to)
{
    constexpr int PACKS = WIDTH / PACK, AT_ONCE = THREADS / PACKS;  // a multiple of 8 rows, whose packs are permuted alike
    const int pack = threadIdx.x % PACKS, first = threadIdx.x / PACKS;
    const bool exists = pack * PACK < x.columns;
    const bf16* from = x.start + (exists ? pack * PACK : 0);
    to += pack / 8 * PANEL_BYTES + panel_offset(first, pack % 8);
#pragma unroll
    for (int i = 0; i < CHUNK; i += AT_ONCE) {
        const int row = first + i;
        copy16_async(to + i * PANEL_ROW, skip_rows(from, row < rows ? row : rows - 1, 2 * x.stride), exists && row < rows ? 16 : 0);
    }
}

// The same with a slab of a state.
__device__ __forceinline__ void fetch_state_panel(const bf16* from, unsigned to)
{
    constexpr int PACKS = SLAB / PACK, AT_ONCE = THREADS / PACKS;
    const int pack = threadIdx.x % PACKS, first = threadIdx.x / PACKS;
    from += first * WIDTH + pack * PACK, to += panel_offset(first, pack);
#pragma unroll
    for (int i = 0; i < WIDTH; i += AT_ONCE) copy16_async(to + i * PANEL_ROW, from + i * WIDTH, 16);
}

// x y^T of 64 x 64, both [64, WIDTH].
__device__ __forceinline__ void start_scores(unsigned x, unsigned y, Sums<CHUNK>& scores)
{
    begin_products();
#pragma unroll
    for (int step = 0; step < WIDTH / SUMMANDS; ++step)
        product<ALONG, ALONG>(along(x, step % STEPS, step / STEPS * PANEL_BYTES), along(y, step % STEPS, step / STEPS * PANEL_BYTES), step > 0, scores);
    commit_products();
}

// x [64, WIDTH] times a state [WIDTH, SLAB]
__device__ __forceinline__ void start_inter(unsigned x, unsigned state, Sums<SLAB>& sums)
{
    begin_products();
#pragma unroll
    for (int step = 0; step < WIDTH / SUMMANDS; ++step) product<ALONG, DOWN>(along(x, step % STEPS, step / STEPS * PANEL_BYTES), down(state, step, PANEL_BYTES), step > 0, sums);
    commit_products();
}

// + scores y, with y [64, SLAB]
__device__ __forceinline__ void start_pairs(const unsigned (&scores)[STEPS][4], unsigned y, int accumulate, Sums<SLAB>& sums)
{
    begin_products();
#pragma unroll
    for (int step = 0; step < STEPS; ++step) product<DOWN>(scores[step], down(y, step, PANEL_BYTES), accumulate || step > 0, sums);
    commit_products();
}

// Scores of different tokens, as a left operand: of earlier columns, or of later ones.
__device__ __forceinline__ void mask_scores(const Sums<CHUNK>& scores, bool earlier, unsigned (&masked)[STEPS][4])
{
#pragma unroll
    for (int step = 0; step < STEPS; ++step)
#pragma unroll
        for (int p = 0; p < 4; ++p) {
            const int i = 8 * step + 2 * p, ahead = sums_column(i) - sums_row(i);
            masked[step][p] = pack_bf16((earlier ? ahead < 0 : ahead > 0) ? scores.at[i] : 0.0f, (earlier ? ahead + 1 < 0 : ahead + 1 > 0) ? scores.at[i + 1] : 0.0f);
        }
}

__device__ __forceinline__ void store_own(const Sums<CHUNK>& scores, unsigned to)
{
#pragma unroll
    for (int i = 0; i < Sums<CHUNK>::COUNT; ++i)
        if (sums_column(i) == sums_row(i)) store_shared(to + sums_row(i) * 4, __float_as_uint(scores.at[i]));
}

// Columns in the order of chunk_states leave each lane four neighbours.
__device__ __forceinline__ void store_sums(const Sums<SLAB>& sums, unsigned tile)
{
#pragma unroll
    for (int i = 0; i < Sums<SLAB>::COUNT; i += 8)
#pragma unroll
        for (int row = i; row < i + 4; row += 2)
            store_shared(floats_at(tile, sums_row(row), i / 2 + lane_of() % 4), make_float4(sums.at[row], sums.at[row + 1], sums.at[row + 4], sums.at[row + 5]));
}

// Products of P and D, channel by channel: each warp's share of the rows.
__device__ __forceinline__ void multiply_panels(unsigned p, unsigned d, unsigned through)
{
    const int warp = threadIdx.x / WARP, lane = lane_of();
    const unsigned at = panel_offset(warp * (WIDTH / WARPS), lane / 4) + lane % 4 * 4;
    float low = 0.0f, high = 0.0f;
#pragma unroll
    for (int i = 0; i < WIDTH / WARPS; ++i) {
        const unsigned row = (at ^ (i % 8 << 4)) + i * PANEL_ROW, x = load_unsigned(p + row), y = load_unsigned(d + row);
        low = fmaf(low_of(x), low_of(y), low);
        high = fmaf(high_of(x), high_of(y), high);
    }
    store_shared(through + (warp * SLAB + lane / 8 * CHANNELS + lane % 4 * 4 + lane / 4 % 2 * 2) * 4, make_float2(low, high));
}

// The products of one warpgroup, whose operands are here, for dX (QUERY) or dY: the sums stay as fp32, without scale. All threads meet at a barrier before any leaves its sums.
template <bool QUERY, bool DECAY> __device__ __forceinline__ void make_sums(unsigned shared, Sums<CHUNK>& scores)
{
    unsigned masked[STEPS][4];
    Sums<SLAB> inter, pairs;
    mask_scores(scores, QUERY, masked);
    start_inter(shared + (QUERY ? OUT : V), shared + (QUERY ? ENTERING : LEAVING), inter);
    start_pairs(masked, shared + (QUERY ? KEYS : QUERIES), QUERY, QUERY ? inter : pairs);
    if (DECAY) multiply_panels(shared + ENTERING, shared + LEAVING, shared + THROUGH);
    wait_products<0>();
    pin(inter);
    if (!QUERY) pin(pairs);
    sync_threads(SUMS_MADE, THREADS);
    store_sums(inter, shared + (QUERY ? D_QUERIES : D_KEYS_INTER));
    if (!QUERY) store_sums(pairs, shared + D_KEYS_PAIRS);
}

template <bool QUERIES_TOO, bool KEYS_TOO, bool DECAY> __device__ __forceinline__ void make_all_sums(unsigned shared, Sums<CHUNK>& scores)
{
    if (threadIdx.x < WARPGROUP) {
        store_own(scores, shared + OWN_SCORES);
        if constexpr (QUERIES_TOO) make_sums<true, DECAY>(shared, scores);
        else sync_threads(SUMS_MADE, THREADS);
    } else {
        if constexpr (KEYS_TOO) make_sums<false, DECAY>(shared, scores);
        else sync_threads(SUMS_MADE, THREADS);
    }
    __syncthreads();
}

// ---- Results ----

// Adds what other groups and the states give to the sums of paths that each row has from its own group.
__device__ __forceinline__ void add_paths(unsigned shared, const float2& through, float2 (&dg)[GROUP])
{
    float2 sum = make_float2(0.0f, 0.0f);
#pragma unroll
    for (int warp = 0; warp < WARPS; ++warp) {
        const float2 y = load_float2(shared + THROUGH + (warp * SLAB + 2 * pair_of()) * 4);
        sum.x += y.x, sum.y += y.y;
    }
    sum.x *= through.x, sum.y *= through.y;
#pragma unroll
    for (int other = 0; other < GROUPS; ++other) {
        if (other == group_of()) continue;
        const float2 y = load_float2(shared + (other > group_of() ? LATER : SOONER) + (other * SLAB + 2 * pair_of()) * 4);
        sum.x += y.x, sum.y += y.y;
    }
#pragma unroll
    for (int i = 0; i < GROUP; ++i) dg[i].x += sum.x, dg[i].y += sum.y;
}

template <bool QUERY, bool KEY, bool DECAY> __device__ __forceinline__ void finish_rows(
    unsigned shared, const GentleRows& x, float scale, bf16* dq, bf16* dk, float* d_decay, int stride)
{
    const int keys = dk ? x.count : 0;
    dq += x.first, dk += x.first, d_decay += x.first;
    float2 dg[GROUP], sooner = make_float2(0.0f, 0.0f), later = sooner;  // paths from the group's rows so far
    const unsigned first = first_pair(shared), sums = first_sum(shared), own_scores = shared + OWN_SCORES + group_of() * GROUP * 4;
#pragma unroll
    for (int i = 0; i < GROUP; ++i, dq = skip_rows(dq, 1, 2 * stride), dk = skip_rows(dk, 1, 2 * stride)) {
        const float own = load_float(own_scores + i * 4);
        const unsigned query = KEY || DECAY ? load_unsigned(pair_at(first, i) + QUERIES) : 0, key = QUERY || DECAY ? load_unsigned(pair_at(first, i) + KEYS) : 0;
        if (QUERY || DECAY) {
            const float2 d = load_sum(sums + D_QUERIES, i);
            if (QUERY) store_pair(dq, scale * x.e[i].x * fmaf(own, low_of(key), d.x), scale * x.e[i].y * fmaf(own, high_of(key), d.y), i < x.count);
            if (DECAY) dg[i] = make_float2(scale * low_of(query) * d.x, scale * high_of(query) * d.y);
        }
        if (KEY || DECAY) {
            float2 inter = load_sum(sums + D_KEYS_INTER, i), pairs = load_sum(sums + D_KEYS_PAIRS, i);
            inter.x *= x.through.x, inter.y *= x.through.y, pairs.x *= scale, pairs.y *= scale;
            if (KEY)
                store_pair(dk, reciprocal_approximate(x.e[i].x) * (inter.x + fmaf(scale * own, low_of(query), pairs.x)),
                    reciprocal_approximate(x.e[i].y) * (inter.y + fmaf(scale * own, high_of(query), pairs.y)), i < keys);
            if (!DECAY) continue;
            dg[i].x = fmaf(-low_of(key), pairs.x, dg[i].x), dg[i].y = fmaf(-high_of(key), pairs.y, dg[i].y);
            later.x += dg[i].x, later.y += dg[i].y;
            dg[i].x = sooner.x - later.x + dg[i].x, dg[i].y = sooner.y - later.y + dg[i].y;
            sooner.x = fmaf(low_of(key), inter.x, sooner.x), sooner.y = fmaf(high_of(key), inter.y, sooner.y);
        }
    }
    if constexpr (DECAY) {
#pragma unroll
        for (int i = 0; i < GROUP; ++i) dg[i].x += later.x, dg[i].y += later.y;
        store_shared(shared + LATER + (group_of() * SLAB + 2 * pair_of()) * 4, later);
        store_shared(shared + SOONER + (group_of() * SLAB + 2 * pair_of()) * 4, sooner);
        __syncthreads();
        add_paths(shared, x.through, dg);
#pragma unroll
        for (int i = 0; i < GROUP; ++i, d_decay = skip_rows(d_decay, 1, 4 * stride))
            store_pair(d_decay, dg[i], i < x.count);
    }
}

#endif

#endif
