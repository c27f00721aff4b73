// What the decay does to left products between runs: weights of tokens towards a run's edges, and the gradient of the log decay g along the paths that cross an edge.
//     weights_n = between * exp(sum_{i<=n} g_i)  from the entry,      between * exp(sum_{i>n} g_i)  towards the end
//     dDecay_n += sum_{i>=n} p_i  for paths from the entry,           sum_{i<n} p_i  for paths towards the end,          p_i = x_i . dx_i
// Both are running sums along whole runs, in fp64. A run is cut into slabs: one pass sums each slab (decay_slab_sums), and a second one lets the slabs walk side by side,
// each starting from the sums of those before it, added in their order. Slabs depend on shapes alone: deterministic.
// Sums run over [B, N, columns], a column being a head or a head's channel; slab sums are [B, slabs, columns].
// Launch of the slab kernels: one thread per slab sum, `count` in all, blocks of 256.
#include "common.cuh"

// What is summed: y [B, N, H, width], or x * y with x [B, N, Hx, width], read at head h / (H / Hx), where x is not null.
struct Terms {
    const element* x;
    const float* y;
    int64 x_stride, y_stride;  // from one token to the next

    __device__ __forceinline__ double at(int64 token) const { return x ? (double)to_float(x[token * x_stride]) * y[token * y_stride] : (double)y[token * y_stride]; }
};

// One thread's slab of one column: tokens [first, end) of the run.
struct Slab {
    int64 batch, index, column, first, end;

    __device__ __forceinline__ Slab(int64 thread, int64 tokens, int64 columns, int64 slab_tokens, int64 slabs)
        : batch(thread / columns / slabs), index(thread / columns % slabs), column(thread % columns), first(index * slab_tokens),
          end(first + slab_tokens < tokens ? first + slab_tokens : tokens)
    {
    }

    __device__ __forceinline__ Terms terms(const element* x, const float* y, int64 tokens, int heads, int x_heads, int width) const
    {
        const int64 head = column / width / (heads / x_heads), y_stride = (int64)heads * width, x_stride = (int64)x_heads * width;
        return { x ? x + batch * tokens * x_stride + head * width + column % width : nullptr, y + batch * tokens * y_stride + column, x_stride, y_stride };
    }

    // The sum over the slabs walked before this one.
    __device__ __forceinline__ double carried(const double* sums, int64 columns, int64 slabs, int reverse) const
    {
        const double* own = sums + batch * slabs * columns + column;
        double sum = 0.0;
        if (reverse) {
            for (int64 s = slabs - 1; s > index; --s) sum += own[s * columns];
        } else {
            for (int64 s = 0; s < index; ++s) sum += own[s * columns];
        }
        return sum;
    }

    // visit(token, sum of the terms walked so far, this token's included or not).
    template <typename Visit> __device__ __forceinline__ void walk(const Terms& terms, int reverse, bool inclusive, double sum, Visit visit) const
    {
        for (int64 i = 0; i < end - first; ++i) {
            const int64 token = reverse ? end - 1 - i : first + i;
            const double term = terms.at(token);
            visit(token, inclusive ? sum + term : sum);
            sum += term;
        }
    }
};

// How often a term counts in a slab's sum.
enum Count { ONCE, FROM_ENTRY, TO_END };  // FROM_ENTRY and TO_END: once per position that a path from the run's entry, or to its end, crosses

KERNEL decay_slab_sums(
    const element* x, const float* y, int64 tokens, int heads, int x_heads, int width, int counted, int64 slab_tokens, int64 slabs, int64 count, double* sums)
{
    const int64 thread = global_thread();
    if (thread >= count) return;
    const Slab slab(thread, tokens, (int64)heads * width, slab_tokens, slabs);
    const Terms terms = slab.terms(x, y, tokens, heads, x_heads, width);
    double sum = 0.0;
#pragma unroll 4
    for (int64 token = slab.first; token < slab.end; ++token) {
        const double times = counted == FROM_ENTRY ? (double)(token + 1) : counted == TO_END ? (double)(tokens - 1 - token) : 1.0;
        sum += times * terms.at(token);
    }
    sums[thread] = sum;
}

// weights [B, N, columns] from a decay of the same shape and the slab sums; between [B, columns] or null: 1.
KERNEL decay_weights_running(
    const float* decay, const float* between, const double* sums, int64 tokens, int heads, int width, int to_end, int64 slab_tokens, int64 slabs, int64 count, float* weights)
{
    const int64 thread = global_thread();
    if (thread >= count) return;
    const int64 columns = (int64)heads * width;
    const Slab slab(thread, tokens, columns, slab_tokens, slabs);
    const double factor = between ? (double)between[slab.batch * columns + slab.column] : 1.0;
    float* to = weights + slab.batch * tokens * columns + slab.column;
    slab.walk(slab.terms(nullptr, decay, tokens, heads, heads, width), to_end, !to_end, slab.carried(sums, columns, slabs, to_end), [&](int64 token, double sum) {
        to[token * columns] = (float)(factor * exp(sum));
    });
}

// weights [B, N, columns] from a decay [columns] that is the same for every token, or null: 0; between [B, columns] or null: 1. Launch: one thread per weight.
KERNEL decay_weights_constant(const float* decay, const float* between, int64 tokens, int64 columns, int to_end, int64 count, float* weights)
{
    const int64 i = global_thread();
    if (i >= count) return;
    const int64 column = i % columns, token = i / columns % tokens, batch = i / columns / tokens;
    const double steps = (double)(to_end ? tokens - 1 - token : token + 1);
    const double factor = between ? (double)between[batch * columns + column] : 1.0;
    weights[i] = (float)(factor * (decay ? exp(steps * decay[column]) : 1.0));
}

// products[b, n, h] = x . dx over the channels; x [B, N, Hx, width], dx [B, N, H, width]. Launch: one warp per product, blocks of 256.
KERNEL decay_path_products(const element* x, const float* dx, int heads, int x_heads, int64 width, int64 count, float* products)
{
    const int64 row = global_thread() / WARP;
    if (row >= count) return;
    const int lane = threadIdx.x % WARP;
    const element* from = x + (row / heads * x_heads + row % heads / (heads / x_heads)) * width;
    float sum = 0.0f;
    for_each_column(width, lane, WARP, packs_fit(width, x) && packs_fit(width, dx), [&](int64 c, auto lanes) {
        const auto a = load(from + c, lanes);
        const auto b = load(dx + row * width + c, lanes);
#pragma unroll
        for (int j = 0; j < lanes.count; ++j) sum = fmaf(a.at[j], b.at[j], sum);
    });
    sum = warp_reduce(sum, Sum());
    if (lane == 0) products[row] = sum;
}

// d_decay [B, N, columns] += running sums of the terms.
KERNEL decay_paths_running(
    const element* x, const float* y, const double* sums, int64 tokens, int heads, int x_heads, int width, int from_entry, int64 slab_tokens, int64 slabs, int64 count, float* d_decay)
{
    const int64 thread = global_thread();
    if (thread >= count) return;
    const int64 columns = (int64)heads * width;
    const Slab slab(thread, tokens, columns, slab_tokens, slabs);
    float* to = d_decay + slab.batch * tokens * columns + slab.column;
    slab.walk(slab.terms(x, y, tokens, heads, x_heads, width), from_entry, from_entry, slab.carried(sums, columns, slabs, from_entry), [&](int64 token, double sum) {
        to[token * columns] += (float)sum;
    });
}

// d_decay[h] += sum of sums [units, heads] over the units (batch, slab). Launch: one warp per head, one per block.
KERNEL decay_paths_per_head(const double* sums, int64 units, int heads, float* d_decay)
{
    double sum = 0.0;
    for (int64 i = threadIdx.x; i < units; i += WARP) sum += sums[i * heads + blockIdx.x];
    sum = warp_reduce(sum, Sum());
    if (threadIdx.x == 0) d_decay[blockIdx.x] += (float)sum;
}
