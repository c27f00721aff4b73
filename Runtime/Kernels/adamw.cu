// One AdamW step (decoupled weight decay) on fp32 master weights, elementwise:
//     g = gradient * gradient_scale      m = m + (1-b1) (g - m)      v = v + (1-b2) (g^2 - v)
//     master -= lr * (m * correction1 / (sqrt(v * correction2) + eps) + weight_decay * master)      parameter = master
// correction_i = 1 / (1 - b_i^step). gradient, m, v, master [count] fp32; parameter [count] of the element type, or the master itself.
// Launch: one thread per 8 elements.
#include "common.cuh"

KERNEL adamw(
    const float* gradient, float learning_rate, float one_minus_beta1, float one_minus_beta2, float eps, float weight_decay, float correction1, float correction2,
    float gradient_scale, int64 count, float* m, float* v, float* master, element* parameter)
{
    const bool packs = packs_fit(PACK, gradient, (const float*)m, (const float*)v, (const float*)master, (const element*)parameter);
    for_each_element(count, packs, [&](int64 i, auto lanes) {
        const auto g = load(gradient + i, lanes);
        auto first = load(m + i, lanes), second = load(v + i, lanes), weight = load(master + i, lanes);
#pragma unroll
        for (int j = 0; j < lanes.count; ++j) {
            const float x = g.at[j] * gradient_scale;
            first.at[j] = fmaf(one_minus_beta1, x - first.at[j], first.at[j]);
            second.at[j] = fmaf(one_minus_beta2, x * x - second.at[j], second.at[j]);
            const float update = first.at[j] * correction1 / (sqrtf(second.at[j] * correction2) + eps);
            weight.at[j] -= learning_rate * fmaf(weight_decay, weight.at[j], update);
        }
        store(first, m + i);
        store(second, v + i);
        store(weight, master + i);
        store(weight, parameter + i);
    });
}
