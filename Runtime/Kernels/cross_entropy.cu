// Per row of logits [R, V]: losses[r] = logsumexp(logits[r]) - logits[r, label], and in place
//     logits[r, :] = gradient_scale * (softmax(logits[r]) - onehot(label)).
// A negative label gives loss 0 and gradient 0; a label beyond V gives a loss of NaN, for there is no such class.
// Launch: one block of 512 threads per row; one pass for the running maximum and sum, a second one for the gradient. fp32, deterministic.
#include "common.cuh"

KERNEL __launch_bounds__(512) cross_entropy_in_place(element* logits, const int* labels, int64 columns, float gradient_scale, float* losses)
{
    __shared__ float scratch[WARP];
    const int64 row = blockIdx.x;
    const int64 label = labels[row];
    element* x = logits + row * columns;
    const bool packs = packs_fit(columns, (const element*)logits);
    if (label < 0) {
        for_each_column(columns, threadIdx.x, blockDim.x, packs, [&](int64 c, auto lanes) { store(Pack<lanes.count>{}, x + c); });
        if (threadIdx.x == 0) losses[row] = 0.0f;
        return;
    }

    float maximum = -INFINITE, sum = 0.0f;  // sum of exp(x - maximum) over this thread's columns
    for_each_column(columns, threadIdx.x, blockDim.x, packs, [&](int64 c, auto lanes) {
        const auto p = load(x + c, lanes);
        float larger = maximum;
#pragma unroll
        for (int j = 0; j < lanes.count; ++j) larger = fmaxf(larger, p.at[j]);
        if (larger > maximum) {
            sum *= expf(maximum - larger);
            maximum = larger;
        }
#pragma unroll
        for (int j = 0; j < lanes.count; ++j) sum += expf(p.at[j] - maximum);
    });
    const float target = label < columns ? to_float(x[label]) : __int_as_float(0x7FC00000);
    const float row_maximum = block_reduce(maximum, -INFINITE, scratch, Maximum());
    const float own = sum == 0.0f ? 0.0f : sum * expf(maximum - row_maximum);
    const float row_sum = block_reduce(own, 0.0f, scratch, Sum());
    if (threadIdx.x == 0) losses[row] = logf(row_sum) + row_maximum - target;

    const float factor = gradient_scale / row_sum;
    for_each_column(columns, threadIdx.x, blockDim.x, packs, [&](int64 c, auto lanes) {
        auto p = load(x + c, lanes);
#pragma unroll
        for (int j = 0; j < lanes.count; ++j) p.at[j] = factor * expf(p.at[j] - row_maximum) - (c + j == label ? gradient_scale : 0.0f);
        store(p, x + c);
    });
}
