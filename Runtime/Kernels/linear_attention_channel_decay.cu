// Linear attention with a decay per channel on tensor cores: the walk along a segment that makes o, or dv backwards. For one head, per chunk of 64 tokens,
//     from_i = exp(sum of g over the chunk's tokens 0 .. i)      to_j = exp(sum over j + 1 ..)      A = exp(sum over all)      (per channel of D)
//     P_ij = scale sum_d q_i exp(G_i - G_j) k_j for i >= j: of decayed and divided operands in gentle chunks, by levels (channel_decay.cuh) in all others
//     forward     o_i = scale (q_i . from_i) S + sum_j P_ij v_j          S <- A . S + sum_j (k_j . to_j)^T v_j
//     backward    dv_j = (k_j . to_j) D + sum_i P_ij dO_i                D <- A . D + sum_i scale (q_i . from_i)^T dO_i         chunks from last to first, v = dO
// q [B, N, H, D], k [B, N, Hk, D], v [B, N, Hk, E] (dO [B, N, H, E]) bf16, D and E multiples of 8 up to 128, rows at multiples of 16 bytes; decay fp32 [B, N, H, D].
// States are fp32 in registers; a product reads them, and decayed operands, rounded to bf16. Fixed order.
// reached [segments, B, H]: the chunks that linear_attention_channel_gentle has walked; entering [segments, B, H, D, E] fp32: the state with which it has ended.
// chunk_states (null: none) bf16 [chunks, B, H, 128 columns of E, 128 channels]: the state that enters each chunk (leaves it), zero beyond D and E; of each 16 channels, pairs
// 0, 2, 4, 6 stand before pairs 1, 3, 5, 7, so that the products of linear_attention_channel_decay_bwd find a lane's 4 neighbours.
// A chunk is gentle where no channel decays through it by more than GENTLE, none grows, and it has at least 16 rows. The walk begins at the segment's first chunk
// that is not gentle, or not at all.
// Launch, all: 512 threads, one block per (segment, b, h), h fastest; shared memory as Layout of channel_decay_operands.cuh says.
#include "channel_decay_gentle_operands.cuh"
#if LASP_ELEMENT_BF16 && __CUDA_ARCH__ >= 900

// ---- The state, transposed: warp (e, d) of 4 x 4 holds columns 32 e of E by channels 32 d ----

constexpr int STATE_SIDE = 32;

struct State {
    MmaSums at[2][4];  // rows: 16 of E each; columns: 8 channels each

    static __device__ __forceinline__ int first_column() { return warp_of() / 4 * STATE_SIDE; }
    static __device__ __forceinline__ int first_channel() { return warp_of() % 4 * STATE_SIDE; }

    // body(element, channel, column of E)
    template <typename Body> __device__ __forceinline__ void each(Body body)
    {
#pragma unroll
        for (int m = 0; m < 2; ++m)
#pragma unroll
            for (int n = 0; n < 4; ++n)
#pragma unroll
                for (int i = 0; i < 4; ++i) body(at[m][n].at[i], first_channel() + 8 * n + lane_of() % 4 * 2 + i % 2, first_column() + 16 * m + i / 2 * 8 + lane_of() / 4);
    }

    __device__ __forceinline__ void decay(unsigned through)
    {
#pragma unroll
        for (int n = 0; n < 4; ++n) {
            const float2 a = load_float2(through + (first_channel() + 8 * n + lane_of() % 4 * 2) * 4);
#pragma unroll
            for (int m = 0; m < 2; ++m) at[m][n].at[0] *= a.x, at[m][n].at[1] *= a.y, at[m][n].at[2] *= a.x, at[m][n].at[3] *= a.y;
        }
    }

    // + x^T v over the chunk's rows
    __device__ __forceinline__ void add(RowTile x, RowTile v)
    {
#pragma unroll
        for (int row = 0; row < CHUNK; row += MMA_SUMMANDS) {
            unsigned left[2][4];
#pragma unroll
            for (int m = 0; m < 2; ++m) v.left_of_transpose(row, first_column() + 16 * m, left[m]);
#pragma unroll
            for (int n = 0; n < 4; n += 2) {
                unsigned right[4];
                x.right(row, first_channel() + 8 * n, right);
#pragma unroll
                for (int m = 0; m < 2; ++m) {
                    multiply_add(left[m], right[0], right[1], at[m][n]);
                    multiply_add(left[m], right[2], right[3], at[m][n + 1]);
                }
            }
        }
    }

    __device__ __forceinline__ void store(RowTile tile) const
    {
#pragma unroll
        for (int m = 0; m < 2; ++m)
#pragma unroll
            for (int n = 0; n < 4; ++n)
#pragma unroll
                for (int i = 0; i < 2; ++i)
                    tile.store_pair(first_column() + 16 * m, first_channel() + n / 2 * 16, n % 2 * 2 + i, pack_bf16(at[m][n].at[2 * i], at[m][n].at[2 * i + 1]));
    }
};

__device__ __forceinline__ uint4 load_piece(unsigned from)
{
    uint4 x;
    asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w) : "r"(from) : "memory");
    return x;
}

// The state tile to device memory, pairs of channels in the order of chunk_states.
__device__ __forceinline__ void store_chunk_state(RowTile tile, bf16* to)
{
#pragma unroll
    for (int p = threadIdx.x; p < CHUNK_STATE / 16; p += THREADS) {
        const int row = p / (WIDTH / 16), piece = p % (WIDTH / 16) * 2;
        const uint4 a = load_piece(tile.piece(row, piece)), b = load_piece(tile.piece(row, piece + 1));
        uint4* at = (uint4*)(to + row * WIDTH + piece * 8);
        at[0] = make_uint4(a.x, a.z, b.x, b.z);
        at[1] = make_uint4(a.y, a.w, b.y, b.w);
    }
}

// ---- The output of a chunk: warp (e, half) holds 32 rows by 16 columns of E ----

struct Output {
    MmaSums at[2][2] = {};

    static __device__ __forceinline__ int first_row() { return warp_of() % 2 * 32; }
    static __device__ __forceinline__ int first_column() { return warp_of() / 2 * 16; }

    // + x state
    __device__ __forceinline__ void add_inter(RowTile x, RowTile state)
    {
#pragma unroll
        for (int channel = 0; channel < WIDTH; channel += MMA_SUMMANDS) {
            unsigned right[4];
            state.right_of_transpose(first_column(), channel, right);
#pragma unroll
            for (int m = 0; m < 2; ++m) {
                unsigned left[4];
                x.left(first_row() + 16 * m, channel, left);
                multiply_add(left, right[0], right[1], at[m][0]);
                multiply_add(left, right[2], right[3], at[m][1]);
            }
        }
    }

    // + scores v forwards, and the transpose of the scores times v backwards; what lies above the diagonal is not read
    template <bool REVERSE> __device__ __forceinline__ void add_intra(ScoreTile scores, RowTile v)
    {
#pragma unroll
        for (int summand = 0; summand < CHUNK; summand += MMA_SUMMANDS) {
            unsigned right[4];
            v.right(summand, first_column(), right);
#pragma unroll
            for (int m = 0; m < 2; ++m) {
                const int row = first_row() + 16 * m;
                if (REVERSE ? summand < row : summand > row) continue;
                unsigned left[4];
                if (REVERSE) scores.left_of_transpose(summand, row, left);
                else scores.left(row, summand, left);
                multiply_add(left, right[0], right[1], at[m][0]);
                multiply_add(left, right[2], right[3], at[m][1]);
            }
        }
    }

    // Neighbouring lanes exchange pairs, so that each writes 4 columns, and four of them the 32 bytes of a row at once.
    __device__ __forceinline__ void store(bf16* to, int stride, int rows, int columns) const
    {
        const bool odd = lane_of() % 2;
        const int row = first_row() + lane_of() / 4, column = first_column() + lane_of() % 4 / 2 * 4 + (odd ? 8 : 0);
        bf16* at_row = to + row * stride + column;
#pragma unroll
        for (int i = 0; i < 4; ++i, at_row += 8 * stride) {
            const unsigned left = pack_bf16(at[i / 2][0].at[i % 2 * 2], at[i / 2][0].at[i % 2 * 2 + 1]), right = pack_bf16(at[i / 2][1].at[i % 2 * 2], at[i / 2][1].at[i % 2 * 2 + 1]);
            const unsigned other = __shfl_xor_sync(0xFFFFFFFFu, odd ? left : right, 1);
            if (row + 8 * i < rows && column < columns) *(uint2*)at_row = odd ? make_uint2(other, right) : make_uint2(left, other);
        }
    }
};

// ---- The walk along a segment ----

struct Walk {
    Rows q, k, v;
    Decay g;
    int64 first;   // token of the segment
    int64 tokens;  // of it
    float scale;

    __device__ __forceinline__ int chunks() const { return (int)((tokens + CHUNK - 1) / CHUNK); }
    __device__ __forceinline__ int rows(int chunk) const { return tokens - (int64)chunk * CHUNK < CHUNK ? (int)(tokens - (int64)chunk * CHUNK) : CHUNK; }
    __device__ __forceinline__ int64 token(int chunk) const { return first + (int64)chunk * CHUNK; }

    template <bool REVERSE> __device__ __forceinline__ int chunk_at(int i) const { return REVERSE ? chunks() - 1 - i : i; }

    // Begins to fetch what is decayed of chunk i of the walk, with its decay.
    template <bool REVERSE> __device__ __forceinline__ void fetch_operands(unsigned shared, int i) const
    {
        const int chunk = chunk_at<REVERSE>(i);
        q.fetch<THREADS>(token(chunk), rows(chunk), RowTile { shared + Layout::Q });
        k.fetch<THREADS>(token(chunk), rows(chunk), RowTile { shared + Layout::K });
        fetch_decay(g, token(chunk), rows(chunk), shared + Layout::G);
    }

    template <bool REVERSE> __device__ __forceinline__ void fetch_values(unsigned shared, int i) const
    {
        const int chunk = chunk_at<REVERSE>(i);
        v.fetch<THREADS>(token(chunk), rows(chunk), RowTile { shared + Layout::V + i % 2 * ROW_TILE_BYTES });
    }

    // Barriers: the chunk is here; the products of its decays are; its operands are, and the raw ones may be overwritten; its scores are, and the state tile may be overwritten.
    template <bool REVERSE> __device__ __forceinline__ void run(unsigned shared, State& state, int begin, bf16* chunk_states, int64 chunk_stride, bf16* out, int out_stride) const
    {
        typedef Layout At;
        state.store({ shared + At::STATE });
        if (begin < chunks()) fetch_operands<REVERSE>(shared, begin), fetch_values<REVERSE>(shared, begin);
        commit_copies();
#pragma unroll 1
        for (int i = begin; i < chunks(); ++i) {
            const int chunk = chunk_at<REVERSE>(i);
            keep_in_loop(shared);
            const RowTile state_tile = { shared + At::STATE };
            wait_copies<0>();
            __syncthreads();
            if (chunk_states) store_chunk_state(state_tile, chunk_states + token(chunk) / CHUNK * chunk_stride);
            float2 a[GROUP];
            const bool decays = multiply_groups(shared + At::G, shared + At::FACTORS, a);
            if (i + 1 < chunks()) fetch_values<REVERSE>(shared, i + 1);
            bool gentle = __syncthreads_and(decays && rows(chunk) >= ROW_BLOCK);
            const RowTile from = { shared + At::FROM }, to = { shared + At::TO }, near = REVERSE ? to : from, far = { shared + At::LEVEL_16 };
            if (gentle) gentle = __syncthreads_and(weigh_operands<REVERSE>(a, shared + At::FACTORS, { shared + At::Q }, { shared + At::K }, scale, near, far, shared + At::THROUGH));
            if (!gentle) decay_by_levels(shared, scale);
            if (i + 1 < chunks()) fetch_operands<REVERSE>(shared, i + 1);
            commit_copies();
            const RowTile v_tile = { shared + At::V + i % 2 * ROW_TILE_BYTES };
            Output output;
            if (gentle) make_gentle_scores(REVERSE ? far : from, REVERSE ? to : far, { shared + At::SCORES });
            else make_scores(shared, scale);
            output.add_inter(near, state_tile);
            if (!gentle) state.decay(shared + At::THROUGH);
            state.add(gentle ? far : REVERSE ? from : to, v_tile);
            if (gentle) state.decay(shared + At::THROUGH);
            __syncthreads();
            output.add_intra<REVERSE>({ shared + At::SCORES }, v_tile);
            output.store(out + token(chunk) * out_stride, out_stride, rows(chunk), v.columns);
            state.store(state_tile);
        }
    }
};

template <bool REVERSE> __device__ __forceinline__ void walk_segment(
    const bf16* q, const bf16* k, const bf16* v, const float* decay, int64 tokens, int heads, int key_heads, int width, int value_width, int64 batches, int64 segment_tokens,
    float scale, const float* entering, bf16* out, bf16* chunk_states, const int* reached)
{
    extern __shared__ __align__(1024) unsigned char memory[];
    const unsigned shared = shared_address(memory), unit = blockIdx.x;  // (segment, b, h)
    const int64 head = unit % heads, batch = unit / heads % (unsigned)batches, segment = unit / heads / (unsigned)batches, key_head = head / (heads / key_heads);
    const int64 left = tokens - segment * segment_tokens, size = (int64)width * value_width;
    const Walk walk = {
        rows_of(q, batch, tokens, heads, head, width), rows_of(k, batch, tokens, key_heads, key_head, width),
        REVERSE ? rows_of(v, batch, tokens, heads, head, value_width) : rows_of(v, batch, tokens, key_heads, key_head, value_width),
        decay_of(decay, PER_CHANNEL, batch, tokens, heads, head, width), segment * segment_tokens, left < segment_tokens ? left : segment_tokens, scale
    };
    const int begin = reached[unit];
    if (begin == walk.chunks()) return;
    State state;
    state.each([&](float& x, int channel, int column) { x = channel < width && column < value_width ? entering[unit * size + (int64)channel * value_width + column] : 0.0f; });
    walk.run<REVERSE>(
        shared, state, begin, chunk_states ? chunk_states + (batch * heads + head) * CHUNK_STATE : nullptr, batches * heads * CHUNK_STATE,
        out + (batch * tokens * heads + head) * value_width, heads * value_width);
}

#define WALK_PARAMETERS                                                                                                                                                    \
    const bf16 *q, const bf16 *k, const bf16 *v, const float *decay, int64 tokens, int heads, int key_heads, int width, int value_width, int64 batches,                     \
        int64 segment_tokens, float scale, const float *entering, bf16 *out, bf16 *chunk_states, const int *reached
#define WALK_ARGUMENTS q, k, v, decay, tokens, heads, key_heads, width, value_width, batches, segment_tokens, scale, entering, out, chunk_states, reached

// out = o [B, N, H, E]
#if WANTS(linear_attention_channel_output)
KERNEL __launch_bounds__(THREADS, 1) linear_attention_channel_output(WALK_PARAMETERS) { walk_segment<false>(WALK_ARGUMENTS); }
#endif

// v = dO, out = dv [B, N, H, E] of each query head
#if WANTS(linear_attention_channel_bwd_value)
KERNEL __launch_bounds__(THREADS, 1) linear_attention_channel_bwd_value(WALK_PARAMETERS) { walk_segment<true>(WALK_ARGUMENTS); }
#endif

#endif
