// Elementwise maps over flat tensors of `count` elements; the formula stands above each kernel.
// Launch: one thread per 8 elements, blocks of any size along x. A destination may be the same tensor as a source of its type.
// fp32 arithmetic on `element` storage; no reduction, so the result does not depend on the launch shape.
#include "common.cuh"

// y = value, given as the bits of one element.
template <typename Bits> __device__ __forceinline__ void fill(Bits value, int64 count, Bits* y)
{
    for (int j = 0; j < PACK; ++j) {
        const int64 i = (blockIdx.x * (int64)PACK + j) * blockDim.x + threadIdx.x;
        if (i < count) y[i] = value;
    }
}

KERNEL fill_16(int value, int64 count, unsigned short* y) { fill((unsigned short)value, count, y); }

KERNEL fill_32(int value, int64 count, int* y) { fill(value, count, y); }

KERNEL fill_64(int64 value, int64 count, int64* y) { fill(value, count, y); }

// y = x
template <typename To> __device__ __forceinline__ void cast(const element* x, int64 count, To* y)
{
    for_each_element(count, packs_fit(PACK, x, y), [&](int64 i, auto lanes) { store(load(x + i, lanes), y + i); });
}

KERNEL cast_to_f32(const element* x, int64 count, float* y) { cast(x, count, y); }

KERNEL cast_to_bf16(const element* x, int64 count, bf16* y) { cast(x, count, y); }

// y = a + b
KERNEL add(const element* a, const element* b, int64 count, element* y)
{
    for_each_element(count, packs_fit(PACK, a, b, y), [&](int64 i, auto lanes) {
        auto p = load(a + i, lanes);
        const auto q = load(b + i, lanes);
#pragma unroll
        for (int j = 0; j < lanes.count; ++j) p.at[j] += q.at[j];
        store(p, y + i);
    });
}

// y = factor[0] * x
KERNEL scale(const element* x, const float* factor, int64 count, element* y)
{
    const float alpha = *factor;
    for_each_element(count, packs_fit(PACK, x, y), [&](int64 i, auto lanes) {
        auto p = load(x + i, lanes);
#pragma unroll
        for (int j = 0; j < lanes.count; ++j) p.at[j] *= alpha;
        store(p, y + i);
    });
}

// y += alpha * x
template <typename To> __device__ __forceinline__ void add_scaled(const element* x, float alpha, int64 count, To* y)
{
    for_each_element(count, packs_fit(PACK, x, y), [&](int64 i, auto lanes) {
        const auto p = load(x + i, lanes);
        auto q = load(y + i, lanes);
#pragma unroll
        for (int j = 0; j < lanes.count; ++j) q.at[j] = fmaf(alpha, p.at[j], q.at[j]);
        store(q, y + i);
    });
}

KERNEL add_scaled_to_f32(const element* x, float alpha, int64 count, float* y) { add_scaled(x, alpha, count, y); }

KERNEL add_scaled_to_bf16(const element* x, float alpha, int64 count, bf16* y) { add_scaled(x, alpha, count, y); }

// y = x * sigmoid(x)
KERNEL silu_fwd(const element* x, int64 count, element* y)
{
    for_each_element(count, packs_fit(PACK, x, y), [&](int64 i, auto lanes) {
        auto p = load(x + i, lanes);
#pragma unroll
        for (int j = 0; j < lanes.count; ++j) p.at[j] = silu(p.at[j]);
        store(p, y + i);
    });
}

// dx = dy * silu'(x)
KERNEL silu_bwd(const element* x, const element* dy, int64 count, element* dx)
{
    for_each_element(count, packs_fit(PACK, x, dy, dx), [&](int64 i, auto lanes) {
        const auto p = load(x + i, lanes);
        auto d = load(dy + i, lanes);
#pragma unroll
        for (int j = 0; j < lanes.count; ++j) d.at[j] *= silu_derivative(p.at[j]);
        store(d, dx + i);
    });
}

// y = act(gate) * up, where act is silu (use_silu = 1) or the identity (0)
KERNEL gated_linear_unit_fwd(const element* gate, const element* up, int use_silu, int64 count, element* y)
{
    for_each_element(count, packs_fit(PACK, gate, up, y), [&](int64 i, auto lanes) {
        const auto g = load(gate + i, lanes);
        auto u = load(up + i, lanes);
#pragma unroll
        for (int j = 0; j < lanes.count; ++j) u.at[j] *= use_silu ? silu(g.at[j]) : g.at[j];
        store(u, y + i);
    });
}

// dgate = dy * up * act'(gate)          dup = dy * act(gate)          y as above, unless it is null; each may take the place of a source
KERNEL gated_linear_unit_bwd(const element* gate, const element* up, const element* dy, int use_silu, int64 count, element* dgate, element* dup, element* y)
{
    for_each_element(count, packs_fit(PACK, gate, up, dy, dgate, dup, y), [&](int64 i, auto lanes) {
        auto g = load(gate + i, lanes);
        auto u = load(up + i, lanes);
        auto d = load(dy + i, lanes);
#pragma unroll
        for (int j = 0; j < lanes.count; ++j) {
            const float s = use_silu ? sigmoid(g.at[j]) : 1.0f, act = g.at[j] * s;
            const float product = u.at[j] * act;
            g.at[j] = d.at[j] * u.at[j] * (s + act * (1.0f - s));
            u.at[j] = d.at[j] * act;
            d.at[j] = product;
        }
        store(g, dgate + i);
        store(u, dup + i);
        if (y) store(d, y + i);
    });
}
