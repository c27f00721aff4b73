// RMS normalisation of rows, with an optional weight [C] and an optional SiLU gate; with a gate it is the output norm of an attention head.
//     forward    r = 1 / sqrt(mean(x^2) + eps)      y = x * r * weight * silu(gate)
//     backward   n = x * r      u = dy * silu(gate)      dx = r * (weight*u - n * mean(weight*u*n))
//                dgate = dy * n * weight * silu'(gate)      dWeight += sum over rows of u * n
// x, gate, y, dy, dx, dgate [rows, C]; inverse_rms [rows] fp32; dWeight [C] fp32. A null weight counts as 1, a null gate as no gate.
// Launch: fwd and bwd one warp per row, blocks of 256; bwd_weight_partial blocks of 32 x 8 threads on a grid (C / 32, slabs), where slab s
// sums its own rows, then bwd_weight adds the slabs, one thread per column. fp32 accumulation (fp64 over slabs), deterministic.
// bwd may write dx over x or dy, so the weight's kernels run before it.
#include "common.cuh"

KERNEL rms_norm_fwd(const element* x, const element* weight, const element* gate, int64 rows, int64 columns, float eps, element* y, float* inverse_rms)
{
    const int64 row = global_thread() / WARP;
    if (row >= rows) return;
    const int lane = threadIdx.x % WARP;
    const int64 start = row * columns;
    const bool packs = packs_fit(columns, x, weight, gate, (const element*)y);
    float squares = 0.0f;
    for_each_column(columns, lane, WARP, packs, [&](int64 c, auto lanes) {
        const auto p = load(x + start + c, lanes);
#pragma unroll
        for (int j = 0; j < lanes.count; ++j) squares = fmaf(p.at[j], p.at[j], squares);
    });
    const float r = 1.0f / sqrtf(warp_reduce(squares, Sum()) / (float)columns + eps);
    if (lane == 0) inverse_rms[row] = r;
    for_each_column(columns, lane, WARP, packs, [&](int64 c, auto lanes) {
        auto p = load(x + start + c, lanes);
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

KERNEL rms_norm_bwd(
    const element* x, const element* weight, const element* gate, const float* inverse_rms, const element* dy, int64 rows, int64 columns, element* dx, element* dgate)
{
    const int64 row = global_thread() / WARP;
    if (row >= rows) return;
    const int lane = threadIdx.x % WARP;
    const int64 start = row * columns;
    const bool packs = packs_fit(columns, x, weight, gate, dy, (const element*)dx, (const element*)dgate);
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
        Pack<lanes.count> w, g;
        if (weight) w = load(weight + c, lanes);
        if (gate) g = load(gate + start + c, lanes);
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
            p.at[j] = r * (u - n * mean);
        }
        store(p, dx + start + c);
        if (gate) store(g, dgate + start + c);
    });
}

constexpr int ROW_LANES = 8;

// partials[slab, c] = sum over the slab's rows of dy * silu(gate) * x * r
KERNEL rms_norm_bwd_weight_partial(
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

KERNEL rms_norm_bwd_weight(const float* partials, int64 slabs, int64 columns, float* d_weight)
{
    const int64 c = global_thread();
    if (c >= columns) return;
    double sum = 0.0;
    for (int64 s = 0; s < slabs; ++s) sum += partials[s * columns + c];
    d_weight[c] += (float)sum;
}
