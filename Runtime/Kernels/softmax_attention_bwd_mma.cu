// Gradients of softmax attention through a block of keys on mma.sync (sm_80 and newer without wgmma, bf16, heads of 64 or 128 channels); everything else runs softmax_attention_bwd.cu, whose
// contract this is: with p_ij = exp(scale q_i . k_j - lse_i) over the keys j that query i sees (softmax_visibility.cuh),
//     ds_ij = p_ij (dO_i . v_j - delta_i)
//     dq_i += scale sum_j ds_ij k_j        dk_j += scale sum_i ds_ij q_i        dv_j += sum_i p_ij dO_i
// q, dO [B, C, H, D], k, v [B, M, Hk, D], all 16-byte aligned; lse, delta [B, C, H]; dq [B, C, H, D], dk, dv [B, M, Hk, D] fp32, added to.
// Two kernels, each of which forms the scores: dq has a block per 128 queries, which walks its keys upwards; dk and dv one per 64 or 128 keys, which walks the heads of the group and their queries
// upwards. Nothing is added atomically, so every run gives the same bits. What the next step needs is copied while this one computes, and what of this step is no longer needed makes room for it.
// fp32 sums; p and ds are rounded to bf16 for their products.
#include "mma_panels.cuh"
#include "softmax_rows.cuh"

#if LASP_ELEMENT_BF16 && !__CUDA_ARCH_FEAT_SM90_ALL

constexpr int WARPS = 4;
constexpr int THREADS = WARPS * WARP;

struct Call {
    const bf16 *q, *k, *v, *d_out;
    const float *lse, *delta;
    const int64* ranges;
    int64 first_key;
    Extents extents;
    float scale;
};

// What the rows of a tile of queries share. Queries that do not exist or see nothing have lse = infinity, so that p = 0.
template <int QUERIES> struct QueryRows {
    float lse[QUERIES], delta[QUERIES];  // lse in units of ln 2
    KeySpan seen[QUERIES];
    SpanOfQueries together[QUERIES / WARP];

    // By the first QUERIES threads; the caller synchronises.
    __device__ __forceinline__ void load(const Call& call, int64 batch, int64 token, int head)
    {
        const int i = threadIdx.x;
        if (i >= QUERIES) return;
        lse[i] = INFINITE;
        delta[i] = 0.0f;
        seen[i] = { 0, -1 };
        SpanOfQueries mine = SpanOfQueries::neutral(call.extents.keys);
        if (token + i < call.extents.queries) {
            const int64 row = (batch * call.extents.queries + token + i) * call.extents.heads + head;
            seen[i] = seen_by(call.ranges, token + i, call.first_key, call.extents.keys);
            mine = { seen[i], seen[i] };
            if (call.lse[row] != -INFINITE) lse[i] = call.lse[row] * LOG2_E;
            delta[i] = call.delta[row];
        }
        mine = reduce_spans(mine);
        if (i % WARP == 0) together[i / WARP] = mine;
    }

    // p from a score and ds from dO . v, in place.
    __device__ __forceinline__ void differentiate(int query, int key, bool masked, float factor, float& p, float& ds) const
    {
        p = exp2_approximate(fmaf(p, factor, -lse[query]));
        if (masked && (unsigned)(key - seen[query].first) >= seen[query].count()) p = 0.0f;
        ds = p * (ds - delta[query]);
    }
};

// x [rows, D] += factor sums
template <int D> __device__ __forceinline__ void add_strip(const Strip<D>& sums, float factor, int first_row, int rows, int64 stride, float* x)
{
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const int row = first_row + strip_row(half);
        if (row >= rows) continue;
#pragma unroll
        for (int b = 0; b < D / 8; ++b) {
            float2* to = (float2*)(x + row * stride + strip_column(b, 0));
            const float2 old = *to;
            *to = make_float2(fmaf(factor, sums.at[b].at[2 * half], old.x), fmaf(factor, sums.at[b].at[2 * half + 1], old.y));
        }
    }
}

// ---- dq: 32 queries to a warp, 32 keys at a time ----

template <int D> __device__ __forceinline__ void differentiate_queries(const Call& call, float* dq)
{
    constexpr int STRIPS = 2, QUERIES = 16 * STRIPS * WARPS, KEYS = 32;
    constexpr unsigned TILE_BYTES = KEYS * D * 2;
    extern __shared__ unsigned char memory[];
    __shared__ QueryRows<QUERIES> rows;
    const Extents& x = call.extents;
    __shared__ Unit unit;  // read again where it is needed: registers are scarce
    if (threadIdx.x == 0) unit = unit_of(x, D, QUERIES);
    __syncthreads();
    const unsigned q_tile = (shared_address(memory) + 1023) & ~1023u, d_tile = q_tile + QUERIES * D * 2, v_tile = d_tile + QUERIES * D * 2, k_tiles = v_tile + TILE_BYTES;
    const int64 query_stride = (int64)x.heads * D;
    const auto query_row = [&] { return (unit.batch * x.queries + unit.token) * x.heads + unit.head; };
    const int first_query = threadIdx.x / WARP * 16 * STRIPS;
    const float factor = call.scale * LOG2_E;

    copy_panels<QUERIES, D / PANEL, THREADS>(q_tile, call.q + query_row() * D, query_stride, unit.rows, threadIdx.x);
    copy_panels<QUERIES, D / PANEL, THREADS>(d_tile, call.d_out + query_row() * D, query_stride, unit.rows, threadIdx.x);
    commit_copies();
    rows.load(call, unit.batch, unit.token, unit.head);
    __syncthreads();
    const KeySpan any = span_of_all(rows.together).any;
    const auto copy_keys = [&](const bf16* from, int key, unsigned to) {
        const int64 first_row = (unit.batch * x.keys + key) * x.key_heads + unit.key_head;
        if (key <= any.last) copy_panels<KEYS, D / PANEL, THREADS>(to, from + first_row * D, (int64)x.key_heads * D, x.keys - key, threadIdx.x);
        commit_copies();
    };
    copy_keys(call.k, any.first, k_tiles);
    copy_keys(call.v, any.first, v_tile);
    Strip<D> out[STRIPS] = {};
    unsigned other = 0;  // which of two tiles holds the keys
#pragma unroll 1
    for (int key = any.first; key <= any.last; key += KEYS, other ^= TILE_BYTES) {
        wait_copies<0>();
        __syncthreads();  // keys and values are here, and nobody reads the last keys any more
        copy_keys(call.k, key + KEYS, k_tiles + (other ^ TILE_BYTES));
        Strip<KEYS> p[STRIPS] = {}, ds[STRIPS] = {};
        correlate<QUERIES, KEYS, D>(q_tile, first_query, k_tiles + other, 0, p);
        correlate<QUERIES, KEYS, D>(d_tile, first_query, v_tile, 0, ds);
        __syncthreads();  // nobody reads these values any more
        copy_keys(call.v, key + KEYS, v_tile);
        const KeySpan all = span_of_all(rows.together).all;
        const bool masked = all.first > key || key + KEYS - 1 > all.last;
#pragma unroll
        for (int s = 0; s < STRIPS; ++s)
#pragma unroll
            for (int b = 0; b < KEYS / 8; ++b)
#pragma unroll
                for (int i = 0; i < 4; ++i)
                    rows.differentiate(first_query + 16 * s + strip_row(i / 2), key + strip_column(b, i % 2), masked, factor, p[s].at[b].at[i], ds[s].at[b].at[i]);
        multiply<KEYS>(ds, k_tiles + other, 0, out);
    }
    wait_copies<0>();
#pragma unroll
    for (int s = 0; s < STRIPS; ++s) add_strip(out[s], call.scale, first_query + 16 * s, unit.rows, query_stride, dq + query_row() * D);
}

// ---- dk, dv: 16 keys to a warp, 32 queries at a time ----

constexpr int RUN = 64;               // queries of one span
constexpr int STEP = 32;              // queries of one step
constexpr int RUN_STEPS = RUN / STEP;

// What each run of 64 queries sees, for softmax_attention_bwd_mma_key_value. spans [ceil(C / 64)]. Launch: one warp per run, blocks of 256.
KERNEL softmax_query_spans(const int64* ranges, int64 first_key, int64 queries, int keys, SpanOfQueries* spans)
{
    const int64 run = global_thread() / WARP;
    if (run * RUN < queries) find_span<RUN>(ranges, run, first_key, queries, keys, spans);
}

// Queries [STEP index, STEP (index + 1)) of one head of the group, of whose run some see some of the block's keys.
struct Step {
    int head, index;
    bool masked;  // not all see all of the keys
};

// The steps of a block's keys, heads upwards, in each its queries upwards. Every warp looks for itself, at as many runs as it has lanes.
struct Steps {
    const SpanOfQueries* spans;
    KeySpan keys;
    int count, heads;  // steps of one head; heads of the group

    // The first from this one on; after the last one head = heads.
    __device__ __forceinline__ Step find(int head, int index) const
    {
        const int lane = threadIdx.x % WARP;
#pragma unroll 1
        for (; head < heads; ++head, index = 0)
#pragma unroll 1
            for (int run = index / RUN_STEPS; run * RUN_STEPS < count; run += WARP) {
                const SpanOfQueries seen = (run + lane) * RUN_STEPS < count ? spans[run + lane] : SpanOfQueries::neutral(keys.last + 1);
                const unsigned found = __ballot_sync(0xFFFFFFFFu, seen.any.first <= keys.last && seen.any.last >= keys.first);
                if (found == 0) continue;
                const int source = __ffs(found) - 1, masked = seen.all.first > keys.first || seen.all.last < keys.last;
                return { head, max(index, (run + source) * RUN_STEPS), __shfl_sync(0xFFFFFFFFu, masked, source) != 0 };
            }
        return { heads, 0, false };
    }

    __device__ __forceinline__ Step after(const Step& step) const
    {
        const int index = step.index + 1;
        return index % RUN_STEPS != 0 && index < count ? Step { step.head, index, step.masked } : find(step.head, index);
    }
};

// lse and delta of a step's queries, zero where there is no query: then q = dO = 0, and whatever p is, nothing is added.
struct StepRows { float lse[STEP], delta[STEP]; };

template <int D> struct StepTiles {
    static constexpr unsigned TILE_BYTES = STEP * D * 2;
    unsigned q, d_out;

    __device__ __forceinline__ StepTiles(unsigned base, int stage) : q(base + stage * 2 * TILE_BYTES), d_out(q + TILE_BYTES) {}

    // Starts the copies of STEP queries from `row` on, of which `rows` exist; rows of a tensor's head are `heads` apart.
    __device__ __forceinline__ void copy(const Call& call, int64 row, int rows, StepRows& to) const
    {
        const int64 heads = call.extents.heads;
        copy_panels<STEP, D / PANEL, THREADS>(q, call.q + row * D, heads * D, rows, threadIdx.x);
        copy_panels<STEP, D / PANEL, THREADS>(d_out, call.d_out + row * D, heads * D, rows, threadIdx.x);
        const int i = threadIdx.x % STEP;
        const int64 from = row + (i < rows ? i : 0) * heads;
        if (threadIdx.x < STEP) copy4_async(shared_address(to.lse + i), call.lse + from, i < rows ? 4 : 0);
        else if (threadIdx.x < 2 * STEP) copy4_async(shared_address(to.delta + i), call.delta + from, i < rows ? 4 : 0);
    }
};

// Scores become p and dO . v becomes ds, of keys (rows) from `key` on and a step's queries (columns).
template <int STRIPS> __device__ __forceinline__ void differentiate_step(
    const Call& call, const Step& step, const StepRows& rows, int key, float factor, Strip<STEP> (&p)[STRIPS], Strip<STEP> (&ds)[STRIPS])
{
#pragma unroll
    for (int b = 0; b < STEP / 8; ++b)
#pragma unroll
        for (int j = 0; j < 2; ++j) {
            const int query = strip_column(b, j);
            const int64 token = (int64)step.index * STEP + query;
            const float lse = rows.lse[query], delta = rows.delta[query], reference = lse == -INFINITE ? INFINITE : lse * LOG2_E;
            KeySpan seen = { 0, -1 };
            if (step.masked && token < call.extents.queries) seen = seen_by(call.ranges, token, call.first_key, call.extents.keys);
#pragma unroll
            for (int row = 0; row < 2 * STRIPS; ++row) {
                float &score = p[row / 2].at[b].at[row % 2 * 2 + j], &product = ds[row / 2].at[b].at[row % 2 * 2 + j];
                score = exp2_approximate(fmaf(score, factor, -reference));
                if (step.masked && (unsigned)(key + strip_row(row) - seen.first) >= seen.count()) score = 0.0f;
                product = score * (product - delta);
            }
        }
}

// Strips of 16 keys of a warp: as many as its registers hold sums for. Two share what is loaded of q and dO.
template <int D> constexpr int KEY_STRIPS = D == 64 ? 2 : 1;

template <int D> __device__ __forceinline__ void differentiate_keys(const Call& call, const SpanOfQueries* spans, float* dk, float* dv)
{
    constexpr int STRIPS = KEY_STRIPS<D>, KEYS = 16 * STRIPS * WARPS;
    extern __shared__ unsigned char memory[];
    __shared__ StepRows rows[2];
    __shared__ struct { int64 batch; int key, key_head; } unit;  // read again where it is needed: registers are scarce
    const Extents& x = call.extents;
    if (threadIdx.x == 0) {
        const int64 lines = x.batches * x.key_heads, line = blockIdx.x % lines;
        unit = { line / x.key_heads, (int)(blockIdx.x / lines) * KEYS, (int)(line % x.key_heads) };
    }
    __syncthreads();
    const int first_key = threadIdx.x / WARP * 16 * STRIPS, group = x.heads / x.key_heads;
    const unsigned k_tile = (shared_address(memory) + 1023) & ~1023u, v_tile = k_tile + KEYS * D * 2, stages = v_tile + KEYS * D * 2;
    const int64 key_stride = (int64)x.key_heads * D;
    const auto key_row = [&] { return (unit.batch * x.keys + unit.key) * x.key_heads + unit.key_head; };
    const auto copy_step = [&](const Step& step, int stage) {
        const int64 token = (int64)step.index * STEP, row = (unit.batch * x.queries + token) * x.heads + unit.key_head * group + step.head;
        if (step.head < group) StepTiles<D>(stages, stage).copy(call, row, (int)min((int64)STEP, x.queries - token), rows[stage]);
        commit_copies();
    };

    copy_panels<KEYS, D / PANEL, THREADS>(k_tile, call.k + key_row() * D, key_stride, x.keys - unit.key, threadIdx.x);
    copy_panels<KEYS, D / PANEL, THREADS>(v_tile, call.v + key_row() * D, key_stride, x.keys - unit.key, threadIdx.x);
    const Steps steps = { spans, { unit.key, min(unit.key + KEYS, x.keys) - 1 }, (int)((x.queries + STEP - 1) / STEP), group };
    Strip<D> dk_out[STRIPS] = {}, dv_out[STRIPS] = {};
    int stage = 0;
    Step step = steps.find(0, 0);
    copy_step(step, stage);
#pragma unroll 1
    for (; step.head < group; stage ^= 1) {
        wait_copies<0>();
        __syncthreads();  // this step's queries are here, and nobody reads the last ones any more
        const Step next = steps.after(step);
        copy_step(next, stage ^ 1);
        const StepTiles<D> tiles(stages, stage);
        Strip<STEP> p[STRIPS] = {}, ds[STRIPS] = {};
        correlate<KEYS, STEP, D>(k_tile, first_key, tiles.q, 0, p);
        correlate<KEYS, STEP, D>(v_tile, first_key, tiles.d_out, 0, ds);
        differentiate_step(call, step, rows[stage], unit.key + first_key, call.scale * LOG2_E, p, ds);
        multiply<STEP>(p, tiles.d_out, 0, dv_out);
        multiply<STEP>(ds, tiles.q, 0, dk_out);
        step = next;
    }
    wait_copies<0>();
#pragma unroll
    for (int s = 0; s < STRIPS; ++s) {
        add_strip(dk_out[s], call.scale, first_key + 16 * s, x.keys - unit.key, key_stride, dk + key_row() * D);
        add_strip(dv_out[s], 1.0f, first_key + 16 * s, x.keys - unit.key, key_stride, dv + key_row() * D);
    }
}

// Launch: 128 threads; of _query_ one block per (128 queries, b, h), 1024 + 704 D bytes of dynamic shared memory; of _key_value_ one per (KEYS = 64 KEY_STRIPS keys, b, key head),
// 1024 + (4 KEYS + 256) D bytes. spans from softmax_query_spans.
#define SOFTMAX_ATTENTION_BACKWARD(D)                                                                                                                                                \
    KERNEL __launch_bounds__(THREADS, 2) softmax_attention_bwd_mma_query_##D(                                                                                                       \
        const bf16* q, const bf16* k, const bf16* v, const bf16* d_out, const float* lse, const float* delta, const int64* ranges, int64 first_key, int64 queries, int keys,       \
        int heads, int key_heads, int64 batches, float scale, float* dq)                                                                                                            \
    {                                                                                                                                                                                \
        differentiate_queries<D>({ q, k, v, d_out, lse, delta, ranges, first_key, { queries, keys, heads, key_heads, batches }, scale }, dq);                                       \
    }                                                                                                                                                                                \
                                                                                                                                                                                     \
    KERNEL __launch_bounds__(THREADS, 2) softmax_attention_bwd_mma_key_value_##D(                                                                                                   \
        const bf16* q, const bf16* k, const bf16* v, const bf16* d_out, const float* lse, const float* delta, const int64* ranges, const SpanOfQueries* spans, int64 first_key,        \
        int64 queries, int keys, int heads, int key_heads, int64 batches, float scale, float* dk, float* dv)                                                                                                 \
    {                                                                                                                                                                                \
        differentiate_keys<D>({ q, k, v, d_out, lse, delta, ranges, first_key, { queries, keys, heads, key_heads, batches }, scale }, spans, dk, dv);                               \
    }

SOFTMAX_ATTENTION_BACKWARD(64)
SOFTMAX_ATTENTION_BACKWARD(128)

#endif
