// Left products of linear attention between two runs on mma.sync (sm_80 and newer, bf16, heads of up to 128 channels in whole packs of 8); everything else runs linear_attention_block.cu.
//     out_x += scale w_x . sum_y (a_x . b_y) u_y c_y
// is that file's equation once weights per channel have been multiplied into the operands they belong to (linear_attention_block_weigh): what is left are factors u per token, of y, and weights w of
// the output, per token or per channel. Factors of a token leave the product alone, so o, dq, dk and dv are the same walk. null counts as 1.
// a [B, X, Ha, inner]; b [B, Y, Hb, inner]; c [B, Y, Hc, width], bf16, 16-byte aligned; each has H heads or a divisor of H, and head h reads h / (H / Ha) and so on.
// x_weights [B, X, H, x_channels], x_channels 1 or width; y_weights [B, Y, H]; out [B, X, H, width] fp32, per query head, added to.
// A block makes 128 tokens x of one head, a warp 32 of them: their rows of a, the products of 16 tokens y and the output stay in registers. The next 64 tokens y are copied while these are computed.
// fp32 sums, y ascending: deterministic. The products times u are rounded to bf16 for their product with c.
#include "attention_units.cuh"
#include "mma_panels.cuh"

#if LASP_ELEMENT_BF16

constexpr int WARPS = 4;
constexpr int THREADS = WARPS * WARP;
constexpr int STRIPS = 2;                               // of 16 tokens x, of one warp
constexpr int X_TOKENS = WARPS * 16 * STRIPS;           // of a block
constexpr int Y_TOKENS = 64;                            // of a stage
constexpr int Y_STEP = 16;                              // whose products a warp holds

// One head's rows in a tensor [B, N, Hx, columns].
struct HeadRows {
    const bf16* start;
    int64 stride;
    int columns;

    static __device__ __forceinline__ HeadRows of(const bf16* x, int64 batch, int64 tokens, int heads, int own_heads, int head, int columns)
    {
        return { x + (batch * tokens * own_heads + head / (heads / own_heads)) * columns, (int64)own_heads * columns, columns };
    }

    // Starts copying ROWS rows from `token` on, of which `rows` exist, into a tile of WIDTH columns; what does not exist becomes zero.
    template <int ROWS, int WIDTH> __device__ __forceinline__ void copy(int64 token, int rows, unsigned to) const
    {
        const int pack = threadIdx.x % (WIDTH / PACK);
        copy_panels<ROWS, WIDTH / PANEL, THREADS>(to, start + token * stride, stride, pack * PACK < columns ? rows : 0, threadIdx.x);
    }
};

// What a block walks over. It lies in shared memory and is read where it is needed: registers are scarce. Aligned, so that no wide read of it begins or ends in what is written meanwhile.
struct alignas(16) Walk {
    HeadRows b, c;
    const float* factors;  // of y, `factor_stride` apart, or null
    int64 factor_stride, tokens;
};

struct Call {
    const bf16 *a, *b, *c;
    const float* x_weights;
    int x_channels;
    const float* y_weights;
    int64 x_tokens, y_tokens;
    int heads, a_heads, b_heads, c_heads, inner, width;
    int64 batches;
    float scale;
};

// out [rows, columns of D] += scale w . sums
template <int D> __device__ __forceinline__ void add_rows(const Call& call, const Unit& unit, const Strip<D>& sums, int first_row, float* out)
{
    const int64 start = (unit.batch * call.x_tokens + unit.token) * call.heads + unit.head;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const int row = first_row + strip_row(half);
        if (row >= unit.rows) continue;
        const int64 at = start + (int64)row * call.heads;
        const bool per_channel = call.x_weights && call.x_channels > 1;
        const float factor = call.x_weights && !per_channel ? call.scale * call.x_weights[at] : call.scale;
#pragma unroll
        for (int b = 0; b < D / 8; ++b) {
            const int column = strip_column(b, 0);
            if (column >= call.width) continue;
            const float2 weight = per_channel ? *(const float2*)(call.x_weights + at * call.width + column) : make_float2(1.0f, 1.0f);
            float2* to = (float2*)(out + at * call.width + column);
            const float2 old = *to;
            *to = make_float2(fmaf(factor * weight.x, sums.at[b].at[2 * half], old.x), fmaf(factor * weight.y, sums.at[b].at[2 * half + 1], old.y));
        }
    }
}

template <int D> __device__ __forceinline__ void multiply_block(const Call& call, float* out)
{
    constexpr unsigned TILE_BYTES = Y_TOKENS * D * 2, STAGE_BYTES = 2 * TILE_BYTES;
    static_assert(X_TOKENS * D * 2 <= STAGE_BYTES, "a lies where the second stage will");
    extern __shared__ unsigned char memory[];
    __shared__ Walk walk;
    __shared__ __align__(16) float factors[2][Y_TOKENS];
    __shared__ __align__(16) Unit unit;
    const unsigned stages = (shared_address(memory) + 1023) & ~1023u;

    if (threadIdx.x == 0) {
        unit = unit_of({ call.x_tokens, (int)call.y_tokens, call.heads, max(call.b_heads, call.c_heads), call.batches }, D, X_TOKENS);
        walk = {
            HeadRows::of(call.b, unit.batch, call.y_tokens, call.heads, call.b_heads, unit.head, call.inner),
            HeadRows::of(call.c, unit.batch, call.y_tokens, call.heads, call.c_heads, unit.head, call.width),
            call.y_weights ? call.y_weights + unit.batch * call.y_tokens * call.heads + unit.head : nullptr, call.heads, call.y_tokens
        };
    }
    if (threadIdx.x < Y_TOKENS) factors[0][threadIdx.x] = factors[1][threadIdx.x] = 1.0f;
    __syncthreads();

    const auto copy_stage = [&](int64 token, int stage) {
        if (token < walk.tokens) {
            const int rows = (int)min((int64)Y_TOKENS, walk.tokens - token), i = threadIdx.x;
            walk.b.copy<Y_TOKENS, D>(token, rows, stages + stage * STAGE_BYTES);
            walk.c.copy<Y_TOKENS, D>(token, rows, stages + stage * STAGE_BYTES + TILE_BYTES);
            if (walk.factors && i < Y_TOKENS) copy4_async(shared_address(factors[stage] + i), walk.factors + (token + (i < rows ? i : 0)) * walk.factor_stride, i < rows ? 4 : 0);
        }
        commit_copies();
    };
    HeadRows::of(call.a, unit.batch, call.x_tokens, call.heads, call.a_heads, unit.head, call.inner).copy<X_TOKENS, D>(unit.token, unit.rows, stages + STAGE_BYTES);
    commit_copies();
    copy_stage(0, 0);
    wait_copies<1>();
    __syncthreads();
    const int first_row = threadIdx.x / WARP * 16 * STRIPS;
    HeldRows<D> a[STRIPS];
    load_rows<X_TOKENS>(stages + STAGE_BYTES, first_row, a);

    Strip<D> sums[STRIPS] = {};
    int stage = 0;
#pragma unroll 1
    for (int64 token = 0; token < walk.tokens; token += Y_TOKENS, stage ^= 1) {
        wait_copies<0>();
        __syncthreads();  // this stage is here, and nobody reads the other one any more
        copy_stage(token + Y_TOKENS, stage ^ 1);
        const unsigned b_tile = stages + stage * STAGE_BYTES;
#pragma unroll 1
        for (int y = 0; y < Y_TOKENS; y += Y_STEP) {
            Strip<Y_STEP> products[STRIPS] = {};
            correlate<Y_TOKENS>(a, b_tile, y, products);
#pragma unroll
            for (int block = 0; block < Y_STEP / 8; ++block) {
                const float2 factor = *(const float2*)(factors[stage] + y + strip_column(block, 0));
#pragma unroll
                for (int s = 0; s < STRIPS; ++s)
#pragma unroll
                    for (int i = 0; i < 4; ++i) products[s].at[block].at[i] *= i % 2 ? factor.y : factor.x;
            }
            multiply<Y_TOKENS>(products, b_tile + TILE_BYTES, y, sums);
        }
    }
    wait_copies<0>();
#pragma unroll
    for (int s = 0; s < STRIPS; ++s) add_rows(call, unit, sums[s], first_row + 16 * s, out);
}

// D is inner and width, rounded up to it. Launch: 128 threads, one block per (128 tokens x, b, h), 1024 + 512 D bytes of dynamic shared memory.
#define LINEAR_ATTENTION_BLOCK(D)                                                                                                                                                    \
    KERNEL __launch_bounds__(THREADS, 2) linear_attention_block_mma_##D(                                                                                                            \
        const bf16* a, const bf16* b, const bf16* c, const float* x_weights, int x_channels, const float* y_weights, int64 x_tokens, int64 y_tokens, int heads, int a_heads,        \
        int b_heads, int c_heads, int inner, int width, int64 batches, float scale, float* out)                                                                                     \
    {                                                                                                                                                                                \
        multiply_block<D>({ a, b, c, x_weights, x_channels, y_weights, x_tokens, y_tokens, heads, a_heads, b_heads, c_heads, inner, width, batches, scale }, out);                  \
    }

LINEAR_ATTENTION_BLOCK(64)
LINEAR_ATTENTION_BLOCK(128)

// y = w . x rounded once: x [B, N, Hx, D], read at head h / (H / Hx); w [B, N, H, D]; y [B, N, H, D]; D whole packs. Launch: one thread per pack, `packs` in all.
KERNEL linear_attention_block_weigh(const bf16* x, const float* weights, int heads, int x_heads, int width, int64 packs, bf16* y)
{
    const int64 i = global_thread();
    if (i >= packs) return;
    const int row_packs = width / PACK;
    const int64 row = i / row_packs, from = (row / heads * x_heads + row % heads / (heads / x_heads)) * width + i % row_packs * PACK;
    Pack<PACK> values = load(x + from, Lanes<PACK>());
    const Pack<PACK> factors = load(weights + i * PACK, Lanes<PACK>());
#pragma unroll
    for (int j = 0; j < PACK; ++j) values.at[j] *= factors.at[j];
    store(values, y + i * PACK);
}

#endif
