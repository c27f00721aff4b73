// RMS normalisation of rows of any width and alignment: the plain loops behind normalization.cu, which has the equations, for rows that do not fit its registers.
// x, residual, h, gate, y, dy, dh, dx, dgate [rows, C]; inverse_rms [rows] fp32; weight [C]; null weight, residual, gate or dh: 1, 0, none, 0.
// Launch: fwd and bwd one warp per row, blocks of 256; bwd_weight blocks of 32 x 8 threads on a grid (C / 32, slabs), where slab s sums its own rows into
// partials [slabs, C], which norm_bwd_weight adds in order. fp32 accumulation, deterministic. bwd may write dx over x or dy, so the weight's kernel runs before it.
#include "common.cuh"

KERNEL norm_any_fwd(
    const element* x, const element* residual, const element* weight, const element* gate, int64 rows, int64 columns, float eps, element* h, element* y, float* inverse_rms)
{
    const int64 row = global_thread() / WARP;
    if (row >= rows) return;
    const int lane = threadIdx.x % WARP;
    const int64 start = row * columns;
    const bool packs = packs_fit(columns, x, residual, weight, gate, (const element*)h, (const element*)y);
    float squares = 0.0f;
    for_each_column(columns, lane, WARP, packs, [&](int64 c, auto lanes) {
        auto p = load(x + start + c, lanes);
        if (residual) {
            const auto q = load(residual + start + c, lanes);
            Stored<element, lanes.count> sum;
#pragma unroll
            for (int j = 0; j < lanes.count; ++j) p.at[j] += q.at[j];
            pack(p, sum);
            put(sum, h + start + c);
            p = unpack(sum);  // h as others will read it
        }
#pragma unroll
        for (int j = 0; j < lanes.count; ++j) squares = fmaf(p.at[j], p.at[j], squares);
    });
    const element* normed = residual ? h : x;
    const float r = 1.0f / sqrtf(warp_reduce(squares, Sum()) / (float)columns + eps);
    if (lane == 0) inverse_rms[row] = r;
    for_each_column(columns, lane, WARP, packs, [&](int64 c, auto lanes) {
        auto p = load(normed + start + c, lanes);
        Pack<lanes.count> w, g;
        if (weight) w = load(weight + c, lanes);
        if (gate) g = load(gate + start + c, lanes);
#pragma unroll
        for (int j = 0; j < lanes.count; ++j) {
            p.at[j] *= r;
            if (weight) p.at[j] *= w.at[j];
            if (gate) p.at[j] *= silu(g.at[j]);
        }
        store(p, y + start + c);
    });
}

KERNEL norm_any_bwd(
    const element* x, const element* weight, const element* gate, const float* inverse_rms, const element* dy, const element* dh, int64 rows, int64 columns, element* dx,
    element* dgate)
{
    const int64 row = global_thread() / WARP;
    if (row >= rows) return;
    const int lane = threadIdx.x % WARP;
    const int64 start = row * columns;
    const bool packs = packs_fit(columns, x, weight, gate, dy, dh, (const element*)dx, (const element*)dgate);
    const float r = inverse_rms[row];
    float dot = 0.0f;  // sum of weight * u * n
    for_each_column(columns, lane, WARP, packs, [&](int64 c, auto lanes) {
        const auto p = load(x + start + c, lanes);
        const auto d = load(dy + start + c, lanes);
        Pack<lanes.count> w, g;
        if (weight) w = load(weight + c, lanes);
        if (gate) g = load(gate + start + c, lanes);
#pragma unroll
        for (int j = 0; j < lanes.count; ++j) {
            float u = d.at[j];
            if (weight) u *= w.at[j];
            if (gate) u *= silu(g.at[j]);
            dot = fmaf(u, p.at[j] * r, dot);
        }
    });
    const float mean = warp_reduce(dot, Sum()) / (float)columns;
    for_each_column(columns, lane, WARP, packs, [&](int64 c, auto lanes) {
        auto p = load(x + start + c, lanes);
        const auto d = load(dy + start + c, lanes);
        Pack<lanes.count> w, g, more;
        if (weight) w = load(weight + c, lanes);
        if (gate) g = load(gate + start + c, lanes);
        if (dh) more = load(dh + start + c, lanes);
#pragma unroll
        for (int j = 0; j < lanes.count; ++j) {
            const float n = p.at[j] * r;
            float u = d.at[j];
            if (weight) u *= w.at[j];
            if (gate) {
                const float ungated = u;
                u *= silu(g.at[j]);
                g.at[j] = ungated * n * silu_derivative(g.at[j]);
            }
            p.at[j] = fmaf(r, u - n * mean, dh ? more.at[j] : 0.0f);
        }
        store(p, dx + start + c);
        if (gate) store(g, dgate + start + c);
    });
}

constexpr int ROW_LANES = 8;

// partials[slab, c] = sum over the slab's rows of dy * silu(gate) * x * r
KERNEL norm_any_bwd_weight(
    const element* x, const element* gate, const float* inverse_rms, const element* dy, int64 rows, int64 columns, int64 slab_rows, float* partials)
{
    __shared__ float sums[ROW_LANES][WARP];
    const int lane = threadIdx.x % WARP, row_lane = threadIdx.x / WARP;
    const int64 c = blockIdx.x * (int64)WARP + lane;
    const int64 first = blockIdx.y * slab_rows;
    const int64 end = first + slab_rows < rows ? first + slab_rows : rows;
    float sum = 0.0f;
    if (c < columns) {
#pragma unroll 4
        for (int64 row = first + row_lane; row < end; row += ROW_LANES) {
            const int64 i = row * columns + c;
            float u = to_float(dy[i]);
            if (gate) u *= silu(to_float(gate[i]));
            sum = fmaf(u, to_float(x[i]) * inverse_rms[row], sum);
        }
    }
    sums[row_lane][lane] = sum;
    __syncthreads();
    if (row_lane == 0 && c < columns) {
        for (int i = 1; i < ROW_LANES; ++i) sum += sums[i][lane];
        partials[blockIdx.y * columns + c] = sum;
    }
}
