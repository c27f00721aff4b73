// Rotary position embedding, alone or after the feature map: the pairs (x[d], x[d + D/2]) of x [B, N, H, D] turn by (first_position + n) * theta^(-2d/D).
//     rope           y = R x                R the rotation, or its inverse
//     silu_rope      y = R silu(x)          dx = silu'(x) * R^-1 dy
// The angle is formed and reduced to [-1, 1] half turns in fp64, so it stays exact for positions in the millions; sine, cosine and rotation are fp32.
// Launch: blocks of 256 threads on a grid (N / TOKENS, D/2 / PAIRS, B); a block makes the table of its angles once, for all heads. y may be x, dx may be x or dy.
#include "common.cuh"

constexpr int TOKENS = 8;
constexpr int PAIRS = 128;

struct AngleTable {
    double half_turns[PAIRS];  // per position
    float2 turn[TOKENS][PAIRS];  // cosine, sine
};

__device__ __forceinline__ void fill_angles(int tokens, int64 first_position, int64 first_pair, int pairs, int64 width, double log2_theta, bool inverse, AngleTable& table)
{
    const double INVERSE_PI = 0.31830988618379067154;
    for (int d = threadIdx.x; d < pairs; d += blockDim.x) table.half_turns[d] = exp2(-2.0 * (double)(first_pair + d) / (double)width * log2_theta) * INVERSE_PI;
    __syncthreads();
    for (int i = threadIdx.x; i < tokens * PAIRS; i += blockDim.x) {
        const int n = i / PAIRS, d = i % PAIRS;
        if (d >= pairs) continue;
        const double turned = (double)(first_position + n) * table.half_turns[d];
        float sine, cosine;
        sincospif((float)fma(-2.0, rint(0.5 * turned), turned), &sine, &cosine);
        table.turn[n][d] = make_float2(cosine, inverse ? -sine : sine);
    }
    __syncthreads();
}

struct RopeShape {
    int64 tokens, heads, width, first_position;
    double log2_theta;
    bool inverse;
};

enum class Op { ROPE, SILU_ROPE, SILU_ROPE_BWD };

template <int N, Op OP> __device__ __forceinline__ void rotate_tile(const element* x, const element* dy, const RopeShape& s, const AngleTable& table, int tokens, int pairs, element* y)
{
    constexpr bool BACKWARD = OP == Op::SILU_ROPE_BWD;
    const int64 half = s.width / 2;
    const int64 start = ((blockIdx.z * s.tokens + blockIdx.x * (int64)TOKENS) * s.heads) * s.width + blockIdx.y * PAIRS;
    const unsigned packs = pairs / N, heads = (unsigned)s.heads, items = tokens * heads * packs;
    for (unsigned item = threadIdx.x; item < items; item += blockDim.x) {
        const unsigned row = item / packs, pair = item % packs * N;
        const int64 i = start + row * s.width + pair;
        const float2* turn = table.turn[row / heads] + pair;
        Pack<N> a = load(x + i, Lanes<N>()), b = load(x + i + half, Lanes<N>());
        Pack<N> from_a = a, from_b = b;
        if (BACKWARD) from_a = load(dy + i, Lanes<N>()), from_b = load(dy + i + half, Lanes<N>());
#pragma unroll
        for (int j = 0; j < N; ++j) {
            const float2 t = turn[j];
            const float p = OP == Op::SILU_ROPE ? silu(a.at[j]) : from_a.at[j], q = OP == Op::SILU_ROPE ? silu(b.at[j]) : from_b.at[j];
            const float slope_a = BACKWARD ? silu_derivative(a.at[j]) : 1.0f, slope_b = BACKWARD ? silu_derivative(b.at[j]) : 1.0f;
            a.at[j] = slope_a * (p * t.x - q * t.y);
            b.at[j] = slope_b * (q * t.x + p * t.y);
        }
        store(a, y + i);
        store(b, y + i + half);
    }
}

template <Op OP> __device__ __forceinline__ void rotate(const element* x, const element* dy, const RopeShape& s, element* y)
{
    __shared__ AngleTable table;
    const int64 half = s.width / 2, first = blockIdx.x * (int64)TOKENS, first_pair = blockIdx.y * (int64)PAIRS;
    const int tokens = s.tokens - first < TOKENS ? (int)(s.tokens - first) : TOKENS, pairs = half - first_pair < PAIRS ? (int)(half - first_pair) : PAIRS;
    fill_angles(tokens, s.first_position + first, first_pair, pairs, s.width, s.log2_theta, s.inverse, table);
    if (packs_fit(half, x, dy, (const element*)y)) rotate_tile<PACK, OP>(x, dy, s, table, tokens, pairs, y);
    else rotate_tile<1, OP>(x, dy, s, table, tokens, pairs, y);
}

KERNEL __launch_bounds__(256, 6) rope(const element* x, int64 tokens, int64 heads, int64 width, int64 first_position, double log2_theta, int inverse, element* y)
{
    rotate<Op::ROPE>(x, nullptr, { tokens, heads, width, first_position, log2_theta, inverse != 0 }, y);
}

KERNEL __launch_bounds__(256, 6) silu_rope_fwd(const element* x, int64 tokens, int64 heads, int64 width, int64 first_position, double log2_theta, element* y)
{
    rotate<Op::SILU_ROPE>(x, nullptr, { tokens, heads, width, first_position, log2_theta, false }, y);
}

KERNEL __launch_bounds__(256, 5) silu_rope_bwd(
    const element* x, const element* dy, int64 tokens, int64 heads, int64 width, int64 first_position, double log2_theta, element* dx)
{
    rotate<Op::SILU_ROPE_BWD>(x, dy, { tokens, heads, width, first_position, log2_theta, true }, dx);
}
