// One AdamW step (decoupled weight decay) on the fp32 master weights of all parameters in one launch, elementwise:
//     g = gradient * gradient_scale[0]      m = m + (1-b1) (g - m)      v = v + (1-b2) (g^2 - v)
//     master -= lr * (m * correction1 / (sqrt(v * correction2) + eps) + weight_decay * master)      parameter = master
// correction_i = 1 / (1 - b_i^step). A null gradient_scale is 1; a NaN leaves all as it is. rows [count]: one per parameter, as AdamW.cs makes them. The element type plays no part.
// Launch: one block of THREADS per chunk of CHUNK elements. Bound by memory: a weight in bf16 with an fp32 gradient takes 30 bytes.
#include "common.cuh"

constexpr int THREADS = 256;
constexpr int CHUNK = THREADS * QUAD;  // with more per thread, or blocks that walk over chunks, fewer loads were under way at once: 4 and 10% slower

constexpr int BF16_GRADIENT = 1, BF16_PARAMETER = 2, IS_PACKED = 4;

struct Row {
    const void* gradient;  // [elements] fp32 or bf16
    float *m, *v, *master;
    void* parameter;  // fp32, perhaps the master itself, or bf16
    int64 elements;
    int64 end;  // chunks of this row and those before it
    float weight_decay;
    int flags;
};

struct Step {
    float learning_rate, one_minus_beta1, one_minus_beta2, eps, correction1, correction2, gradient_scale;
};

// By the hardware's square root: a unit in the last place, and zero where the argument is subnormal. The exact one would need a call, and its registers.
__device__ __forceinline__ float sqrt_approximate(float x)
{
    float y;
    asm("sqrt.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

template <int N> __device__ __forceinline__ void update(const Row& row, const Step& step, int64 i, Lanes<N> lanes)
{
    const Pack<N> gradient = row.flags & BF16_GRADIENT ? load((const bf16*)row.gradient + i, lanes) : load((const float*)row.gradient + i, lanes);
    Pack<N> m = load(row.m + i, lanes), v = load(row.v + i, lanes), master = load(row.master + i, lanes);
#pragma unroll
    for (int j = 0; j < N; ++j) {
        const float g = gradient.at[j] * step.gradient_scale;
        m.at[j] = fmaf(step.one_minus_beta1, g - m.at[j], m.at[j]);
        v.at[j] = fmaf(step.one_minus_beta2, g * g - v.at[j], v.at[j]);
        const float change = __fdividef(m.at[j] * step.correction1, sqrt_approximate(v.at[j] * step.correction2) + step.eps);
        master.at[j] -= step.learning_rate * fmaf(row.weight_decay, master.at[j], change);
    }
    store(m, row.m + i);
    store(v, row.v + i);
    store(master, row.master + i);
    if (row.flags & BF16_PARAMETER) store(master, (bf16*)row.parameter + i);
    else if (row.parameter != row.master) store(master, (float*)row.parameter + i);
}

KERNEL __launch_bounds__(THREADS) adamw(
    const Row* rows, int count, float learning_rate, float one_minus_beta1, float one_minus_beta2, float eps, float correction1, float correction2, const float* gradient_scale)
{
    const Step step = { learning_rate, one_minus_beta1, one_minus_beta2, eps, correction1, correction2, gradient_scale ? *gradient_scale : 1.0f };
    if (isnan(step.gradient_scale)) return;
    const int index = row_of_chunk(rows, count, blockIdx.x);
    const Row row = rows[index];
    const int64 first = (blockIdx.x - (index == 0 ? 0 : rows[index - 1].end)) * CHUNK;
    if ((row.flags & IS_PACKED) && first + CHUNK <= row.elements) {
        update(row, step, first + threadIdx.x * QUAD, Lanes<QUAD>());
    } else {
        const int64 end = first + CHUNK < row.elements ? first + CHUNK : row.elements;
        for (int64 i = first + threadIdx.x; i < end; i += THREADS) update(row, step, i, Lanes<1>());
    }
}

// factor = min(1, bound / sqrt(squared_norm)), 1 where bound is 0; NaN where the squared norm or the loss is not finite. One thread.
KERNEL clip_factor(const float* squared_norm, const float* loss, double bound, float* factor)
{
    const double norm = sqrt((double)*squared_norm);
    const bool is_finite = isfinite(*squared_norm) && isfinite(*loss);
    *factor = !is_finite ? __int_as_float(0x7FC00000) : bound == 0.0 || norm <= bound ? 1.0f : (float)(bound / norm);
}
