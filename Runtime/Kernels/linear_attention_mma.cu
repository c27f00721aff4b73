// Linear attention of bf16 operands on tensor cores, for a decay that all channels share (none, per head, per token): the states that segments leave, and the walk that makes
// o forward and dq, dk, dv backward. Equations, layouts, segments and directions are those of linear_attention_state.cu and linear_attention_output.cu.
// States and sums are fp32 in a fixed order; what goes into a product is rounded to bf16 once: the weighted pairs P, the weighted values, and the state where q reads it.
// A kernel's name gives WIDTH x SLICE: D rounded up to 64, 128 or 256 (states: up to 128 of its columns), and the columns of E of a block, 64 or 128. Launch: 2 SLICE threads.
#include "mma_tiles.cuh"

#if LASP_ELEMENT_BF16

// ---- States ----

template <int WIDTH, int WARPS, int STAGES> struct StateStage {
    typedef MmaTile<WIDTH> Keys;
    typedef MmaTile<MmaState<WIDTH, WARPS>::SLICE> Values;
    static constexpr int BYTES = Keys::BYTES + Values::BYTES + MmaDecay::BYTES;

    Keys k;
    Values v;
    unsigned steps;

    __device__ __forceinline__ StateStage(unsigned base, int index) : k{ base + index % STAGES * BYTES }, v{ k.address + Keys::BYTES }, steps(v.address + Values::BYTES) {}
};

// What a block reads. It lies in shared memory: the registers hold the state.
struct StateBlock {
    HeadColumns k, v;
    HeadDecay g;
    Segment segment;
};

// Shared memory: STAGES stages of 128 (WIDTH + SLICE) + 256 bytes, and 256 bytes a warp.
// One block per (segment, b, h, WIDTH columns of D, SLICE columns of E), the last of these fastest.
template <int WIDTH, int WARPS, int STAGES> __device__ __forceinline__ void leave_state(
    const element* k, const element* v, const float* decay, int kind, int64 tokens, int heads, int key_heads, int width, int value_width, int64 batches,
    int64 segment_tokens, const SegmentRow* cut, int reverse, float scale_factor, float* states)
{
    typedef MmaState<WIDTH, WARPS> State;
    typedef StateStage<WIDTH, WARPS, STAGES> Stage;
    constexpr int BLOCK_THREADS = WARPS * WARP;
    extern __shared__ __align__(128) unsigned char shared[];
    __shared__ StateBlock block;
    const unsigned base = shared_address(shared);
    const int slices = (value_width + State::SLICE - 1) / State::SLICE, slabs = (width + WIDTH - 1) / WIDTH;
    const int column = blockIdx.x % slices * State::SLICE, row = blockIdx.x / slices % slabs * WIDTH;
    const int state = blockIdx.x / (slices * slabs);  // (segment, b, h)
    if (threadIdx.x == 0) {
        const int head = state % heads, batch = state / heads % (int)batches, key_head = head / (heads / key_heads);
        block = {
            head_columns(k, batch, tokens, key_heads, key_head, width, row), head_columns(v, batch, tokens, key_heads, key_head, value_width, column),
            head_decay(decay, kind, batch, tokens, heads, head, width), segment_of(state / heads / (int)batches, segment_tokens, cut, tokens, reverse)
        };
    }
    __syncthreads();

    const auto prefetch = [&](int index) {
        if (index < block.segment.chunks()) {
            const Chunk chunk = chunk_of(block.segment, index);
            const Stage stage(base, index);
            MmaDecay::fill(block.g, chunk, stage.steps);
            fill<BLOCK_THREADS>(block.k, chunk, stage.k);
            fill<BLOCK_THREADS>(block.v, chunk, stage.v);
        }
        commit_copies();
    };
    MmaDecay sums = { base + STAGES * Stage::BYTES + warp_id() * MmaDecay::BYTES, 0, 0.0f };
    State s = {};
#pragma unroll 1
    for (int i = 0; i < STAGES - 1; ++i) prefetch(i);
#pragma unroll 1
    for (int i = 0; i < block.segment.chunks(); ++i) {
        wait_copies<STAGES - 2>();
        __syncthreads();  // this chunk has come, the last one has been read
        prefetch(i + STAGES - 1);
        const Stage stage(base, i);
        sums.sum<false>(stage.steps, reverse);
        s.advance(stage.k, stage.v, sums, scale_factor, [](const MmaValues&, int) {});
    }

    float* out = state_of(states, block.segment, batches, state / heads % batches, heads, state % heads, (int64)width * value_width);
    s.for_each(width - row, value_width - column, [&](int d, int e, float& x, bool exists) {
        if (exists) out[(int64)(row + d) * value_width + column + e] = x;
    });
}

#define STATE_KERNEL(WIDTH, SLICE) \
    KERNEL __launch_bounds__(2 * SLICE, 256 / SLICE) linear_attention_state_mma_##WIDTH##x##SLICE( \
        const element* k, const element* v, const float* decay, int kind, int64 tokens, int heads, int key_heads, int width, int value_width, int64 batches, \
        int64 segment_tokens, const SegmentRow* cut, int reverse, float scale_factor, float* states) \
    { \
        leave_state<WIDTH, SLICE / 16, 3>(k, v, decay, kind, tokens, heads, key_heads, width, value_width, batches, segment_tokens, cut, reverse, scale_factor, states); \
    }

#if WANTS(linear_attention_state_mma_64x64)
STATE_KERNEL(64, 64)
#endif
#if WANTS(linear_attention_state_mma_64x128)
STATE_KERNEL(64, 128)
#endif
#if WANTS(linear_attention_state_mma_128x64)
STATE_KERNEL(128, 64)
#endif
#if WANTS(linear_attention_state_mma_128x128)
STATE_KERNEL(128, 128)
#endif

// ---- The walk ----

template <int WIDTH, int WARPS, int STAGES> struct WalkStage {
    typedef MmaTile<WIDTH> Keys;
    typedef MmaTile<MmaState<WIDTH, WARPS>::SLICE> Values;
    static constexpr int BYTES = 2 * Keys::BYTES + Values::BYTES + MmaDecay::BYTES;

    Keys q, k;
    Values v;
    unsigned steps;

    __device__ __forceinline__ WalkStage(unsigned base, int index)
        : q{ base + index % STAGES * BYTES }, k{ q.address + Keys::BYTES }, v{ k.address + Keys::BYTES }, steps(v.address + Values::BYTES)
    {
    }
};

// P of a chunk into a tile: factor exp(G_i - G_j) (q_i . k_j) where i sees j.
template <int WIDTH, int WARPS> __device__ __forceinline__ void make_pairs(MmaTile<WIDTH> q, MmaTile<WIDTH> k, const MmaDecay& decay, float factor, MmaTile<TILE> tile)
{
    MmaPairs<WARPS> pairs = {};
    pairs.add(q, k);
    pairs.for_each([&](int row, int column, int i, int n, int h) {
        const float log = decay.from_entry(row);
        const float2 from = decay.pair_from_entry(column);
        const float first = column <= row ? factor * exp2_approximate(log - from.x) * pairs.at[i][n].at[2 * h] : 0.0f;
        const float second = column < row ? factor * exp2_approximate(log - from.y) * pairs.at[i][n].at[2 * h + 1] : 0.0f;
        store_shared(tile.place(row, column / PACK) + column % PACK * 2, pack_bf16(first, second));
    });
}

// Multiplies row i by factor * decay from entry to i.
__device__ __forceinline__ void scale_rows(const MmaDecay& decay, float factor, MmaOutputs& x)
{
#pragma unroll
    for (int block = 0; block < TILE_BLOCKS; ++block)
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            const float f = factor * exp2_approximate(decay.from_entry(block * MMA_ROWS + lane_id() / 4 + 8 * h));
#pragma unroll
            for (int n = 0; n < 2; ++n) x.at[block][n].at[2 * h] *= f, x.at[block][n].at[2 * h + 1] *= f;
        }
}

// x += P v over tokens 16 step .. + 15, which rows from 16 step on see
__device__ __forceinline__ void add_pairs(MmaTile<TILE> pairs, const MmaValues& values, int step, MmaOutputs& x)
{
#pragma unroll
    for (int block = step; block < TILE_BLOCKS; ++block) {
        unsigned left[4];
        load_matrices(pairs.down(block, step), left);
        x.add(left, values.at, block);
    }
}

// body(place, sums) for each block of sums: a thread's own 16 bytes in shared memory.
template <int BLOCK_THREADS, typename Body> __device__ __forceinline__ void for_each_sum(unsigned base, MmaOutputs& x, Body body)
{
#pragma unroll
    for (int i = 0; i < 2 * TILE_BLOCKS; ++i) body(base + (i * BLOCK_THREADS + threadIdx.x) * 16, x.at[i / 2][i % 2].at);
}

// What a block walks. It lies in shared memory: the registers hold the state.
struct WalkBlock {
    HeadColumns q, k, v;  // of its first head; v from its first column
    HeadDecay g;
    Segment segment;
    float* states;        // its first head's entering state; null: zero
    element* out;         // its first column of token 0
    int64 out_stride;     // elements from one token to the next
    int group, turns;     // heads that the block sums; a turn is one chunk of one head
    bool out_packs;

    template <int BLOCK_THREADS, typename Stage> __device__ __forceinline__ void fill_stage(const Stage& stage, int turn, int width, int value_width) const
    {
        const int member = turn % group;
        const Chunk chunk = chunk_of(segment, turn / group);
        MmaDecay::fill({ g.start + member, g.stride, 0, g.decays }, chunk, stage.steps);
        fill<BLOCK_THREADS>(q, chunk, stage.q);
        fill<BLOCK_THREADS>({ k.start + member * width, k.stride, k.columns }, chunk, stage.k);
        fill<BLOCK_THREADS>({ v.start + member * value_width, v.stride, v.columns }, chunk, stage.v);
        commit_copies();
    }
};

// Shared memory: STAGES stages of 128 (2 WIDTH + SLICE) + 256 bytes, 512 bytes a warp, 8 KiB, and with Hk > Hq, which takes a SLICE of 64, 16 KiB more.
// One block per (segment, b, q head, SLICE columns of E), the last fastest. Entering states lie as [E, D] with transposed = 1; null: zero. With Hk > Hq they are there and are overwritten.
template <int WIDTH, int WARPS, int STAGES> __device__ __forceinline__ void walk(
    const element* q, const element* k, const element* v, const float* decay, int kind, int64 tokens, int q_heads, int k_heads, int width, int value_width, int64 batches,
    int64 segment_tokens, const SegmentRow* cut, int reverse, float k_scale, float out_scale, float* entering, int transposed, element* out)
{
    typedef MmaState<WIDTH, WARPS> State;
    typedef WalkStage<WIDTH, WARPS, STAGES> Stage;
    constexpr int BLOCK_THREADS = WARPS * WARP;
    constexpr bool GROUPS = State::SLICE == 64;
    extern __shared__ __align__(128) unsigned char shared[];
    __shared__ WalkBlock block;
    const unsigned base = shared_address(shared);
    const MmaTile<TILE> pairs = { base + STAGES * Stage::BYTES + 2 * WARPS * MmaDecay::BYTES };
    const unsigned group_sums = pairs.address + MmaTile<TILE>::BYTES;

    if (threadIdx.x == 0) {
        const int slices = (value_width + State::SLICE - 1) / State::SLICE, column = blockIdx.x % slices * State::SLICE;
        const int unit = blockIdx.x / slices;  // (segment, b, q head)
        const int q_head = unit % q_heads, batch = unit / q_heads % (int)batches, index = unit / q_heads / (int)batches;
        const int heads = q_heads > k_heads ? q_heads : k_heads, group = GROUPS && k_heads > q_heads ? k_heads / q_heads : 1;
        const int head = q_head * group, k_head = head / (heads / k_heads);
        block.segment = segment_of(index, segment_tokens, cut, tokens, reverse);
        block.states = state_of(entering, block.segment, batches, batch, heads, head, (int64)width * value_width);
        block.group = group, block.turns = block.segment.chunks() * group;
        block.q = head_columns(q, batch, tokens, q_heads, q_head, width, 0);
        block.k = head_columns(k, batch, tokens, k_heads, k_head, width, 0);
        block.v = head_columns(v, batch, tokens, k_heads, k_head, value_width, column);
        block.g = head_decay(decay, kind, batch, tokens, heads, head, width);
        block.out = out + ((batch * tokens * q_heads + q_head) * value_width + column), block.out_stride = (int64)q_heads * value_width;
        block.out_packs = packs_fit(value_width, out);
    }
    __syncthreads();

    State s;
    // body(element of the head's state in memory, in registers) for those that exist
    const auto exchange = [&](int member, auto body) {
        float* const state = block.states + (int64)member * width * value_width;
        const int column = value_width - block.v.columns, d_stride = transposed ? 1 : value_width, e_stride = transposed ? width : 1;
        s.for_each(width, block.v.columns, [&](int d, int e, float& x, bool exists) { body(state + d * d_stride + (column + e) * e_stride, x, exists); });
    };
    const auto enter = [&](int member) {
        const bool any = block.states;
        exchange(member, [any](float* at, float& x, bool exists) { x = exists && any ? *at : 0.0f; });
    };
    const unsigned tables = base + STAGES * Stage::BYTES + 2 * warp_id() * MmaDecay::BYTES;
    MmaDecay sums = { tables, tables + MmaDecay::BYTES, 0.0f };
    if (STAGES > 1) block.fill_stage<BLOCK_THREADS>(Stage(base, 0), 0, width, value_width);
    if (!GROUPS || block.group == 1) enter(0);
#pragma unroll 1
    for (int turn = 0; turn < block.turns; ++turn) {
        const int group = GROUPS ? block.group : 1, member = turn % group;
        if (STAGES == 1) {
            __syncthreads();  // the last turn's operands have been read
            block.fill_stage<BLOCK_THREADS>(Stage(base, turn), turn, width, value_width);
        }
        if (group > 1) enter(member);
        wait_copies<0>();
        __syncthreads();  // this turn's operands have come, those of the last have been read
        if (STAGES > 1 && turn + 1 < block.turns) block.fill_stage<BLOCK_THREADS>(Stage(base, turn + 1), turn + 1, width, value_width);

        const Stage stage(base, turn);
        MmaOutputs output = {};
        sums.sum<true>(stage.steps, reverse);
        make_pairs<WIDTH, WARPS>(stage.q, stage.k, sums, k_scale * out_scale, pairs);
        output.read(stage.q, s);
        scale_rows(sums, out_scale, output);
        __syncthreads();  // the pairs of all rows are there
        s.advance(stage.k, stage.v, sums, k_scale, [&](const MmaValues& values, int step) { add_pairs(pairs, values, step, output); });

        if (member > 0) for_each_sum<BLOCK_THREADS>(group_sums, output, [](unsigned place, float (&x)[4]) {
            const float4 sum = load_float4(place);
            x[0] += sum.x, x[1] += sum.y, x[2] += sum.z, x[3] += sum.w;
        });
        if (member + 1 < group) for_each_sum<BLOCK_THREADS>(group_sums, output, [](unsigned place, float (&x)[4]) { store_shared(place, make_float4(x[0], x[1], x[2], x[3])); });
        else output.store(chunk_of(block.segment, turn / group), block.v.columns, block.out_packs, block.out_stride, block.out);
        if (group > 1) exchange(member, [](float* at, float& x, bool exists) { if (exists) *at = x; });
    }
}

#define WALK_KERNEL(WIDTH, SLICE, STAGES, RESIDENT) \
    KERNEL __launch_bounds__(2 * SLICE, RESIDENT) linear_attention_walk_mma_##WIDTH##x##SLICE( \
        const element* q, const element* k, const element* v, const float* decay, int kind, int64 tokens, int q_heads, int k_heads, int width, int value_width, int64 batches, \
        int64 segment_tokens, const SegmentRow* cut, int reverse, float k_scale, float out_scale, float* entering, int transposed, element* out) \
    { \
        walk<WIDTH, SLICE / 16, STAGES>(q, k, v, decay, kind, tokens, q_heads, k_heads, width, value_width, batches, segment_tokens, cut, reverse, k_scale, out_scale, entering, transposed, out); \
    }

#if WANTS(linear_attention_walk_mma_64x64)
WALK_KERNEL(64, 64, 2, 4)
#endif
#if WANTS(linear_attention_walk_mma_64x128)
WALK_KERNEL(64, 128, 2, 2)
#endif
#if WANTS(linear_attention_walk_mma_128x64)
WALK_KERNEL(128, 64, 2, 3)
#endif
#if WANTS(linear_attention_walk_mma_128x128)
WALK_KERNEL(128, 128, 2, 2)
#endif
#if WANTS(linear_attention_walk_mma_256x64)
WALK_KERNEL(256, 64, 1, 2)
#endif

#endif
