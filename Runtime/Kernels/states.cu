// The pair (A, M) of a run of tokens between ranks: A of a run, and Horner's rule over the runs.
// One thread per element, one fused multiply-add per run in the order given, fp32: every strategy that combines with this kernel gets the same bits.
#include "common.cuh"

// factors[h] = exp(length * decay[h]) for one run; 1 without decay. The product is formed in fp64. Launch: one thread per head.
KERNEL run_decay(const float* decay, int64 length, int heads, float* factors)
{
    const int64 h = global_thread();
    if (h < heads) factors[h] = decay ? (float)exp((double)length * (double)decay[h]) : 1.0f;
}

// P = initial (null: zero); for j = first, first + step, ... (count times): P = fma(factors[j, h], P, states[j]); destination = P.
// states [W, B, H, D, E], factors [W, H], initial and destination [B, H, D, E]; size = D * E, elements = B * H * D * E. Launch: one thread per element.
KERNEL combine_states(
    const float* states, const float* factors, int first, int count, int step, const float* initial, int64 elements, int64 size, int heads, float* destination)
{
    const int64 i = global_thread();
    if (i >= elements) return;
    const int64 head = i / size % heads;
    float p = initial ? initial[i] : 0.0f;
    for (int n = 0; n < count; ++n) {
        const int64 j = first + (int64)n * step;
        p = fmaf(factors[j * heads + head], p, states[j * elements + i]);
    }
    destination[i] = p;
}
