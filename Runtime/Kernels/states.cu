// The pair (A, M) of a run of tokens between ranks: A of a run, and Horner's rule over the runs.
// One thread per element, one fused multiply-add per run in the order given, fp32: every strategy that combines with this kernel gets the same bits.
#include "common.cuh"

// factor[b, c] = exp(sum over the run's tokens of the log decay), 1 without decay; the sum is formed in fp64. A column c is a head, or a head's channel.
// decay: null, [columns] (the same for every token), or per token [B, tokens, columns]. factor [B, columns] = elements. Launch: one thread per factor.
KERNEL run_decay(const float* decay, int per_token, int64 tokens, int64 columns, int64 elements, float* factor)
{
    const int64 i = global_thread();
    if (i >= elements) return;
    double sum = 0.0;
    if (per_token) {
        const float* g = decay + i / columns * tokens * columns + i % columns;
        for (int64 n = 0; n < tokens; ++n) sum += (double)g[n * columns];
    } else if (decay) {
        sum = (double)tokens * (double)decay[i % columns];
    }
    factor[i] = (float)exp(sum);
}

// P = initial (null: zero); for j = first, first + step, ... (count times): P = fma(factors[j, g], P, states[j]); destination = P.
// Of a factor of 0 nothing passes, not even an infinity: a document starts there, or the state has decayed to nothing.
// states [W, elements], factors [W, groups], initial and destination [elements]; element i belongs to group g = i / (elements / groups): a head's D * E elements, or a channel's E.
// Launch: one thread per element.
KERNEL combine_states(
    const float* states, const float* factors, int first, int count, int step, const float* initial, int64 elements, int64 groups, float* destination)
{
    const int64 i = global_thread();
    if (i >= elements) return;
    const int64 group = i / (elements / groups);
    float p = initial ? initial[i] : 0.0f;
    for (int n = 0; n < count; ++n) {
        const int64 j = first + (int64)n * step;
        const float factor = factors[j * groups + group], own = states[j * elements + i];
        p = factor == 0.0f ? own : fmaf(factor, p, own);
    }
    destination[i] = p;
}
