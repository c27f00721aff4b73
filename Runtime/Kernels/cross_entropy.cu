// Per row of logits [R, V]:
//     losses[r] = logsumexp(logits[r]) - logits[r, label]        gradient[r, :] = gradient_scale[0] * (softmax(logits[r]) - onehot(label)), in fp32 or bf16; it may overwrite logits of its type
// A negative label gives loss 0 and gradient 0; a label beyond V gives a loss of NaN, for there is no such class.
// Launch: one block per row, of 1024 threads where the row has work for them, with shared memory for its first `kept` columns (a multiple of 8). The second pass, for
// the gradient, finds those there and most others in the cache, as few rows are under way at once. fp32, deterministic.
#include "common.cuh"

constexpr int THREADS = 1024;
constexpr int UNROLL = 4;  // packs that a thread reads before it uses the first

extern __shared__ uint4 kept_row[];  // the first columns of the row, as they are stored

// body(column, stored columns) for this thread's share of the row, N columns at a time; those before `kept` come from shared memory when they are there.
template <int N, typename Body> __device__ __forceinline__ void for_each_pack(const element* x, int64 columns, int64 kept, Body body)
{
    const int64 step = (int64)blockDim.x * N;
    const element* near = (const element*)kept_row;
    for (int64 first = threadIdx.x * N; first < columns; first += step * UNROLL) {
        Stored<element, N> in[UNROLL];
#pragma unroll
        for (int k = 0; k < UNROLL; ++k) {
            const int64 c = first + k * step;
            if (c < columns) in[k] = fetch(c < kept ? near + c : x + c, Lanes<N>());
        }
#pragma unroll
        for (int k = 0; k < UNROLL; ++k)
            if (first + k * step < columns) body(first + k * step, in[k]);
    }
}

template <int N, typename Out> __device__ __forceinline__ void cross_entropy_of_row(
    const element* x, int64 label, int64 columns, int64 kept, float gradient_scale, float* scratch, float* loss, Out* y)
{
    if (label < 0) {
        for (int64 c = threadIdx.x * N; c < columns; c += (int64)blockDim.x * N) store(Pack<N>{}, y + c);
        if (threadIdx.x == 0) *loss = 0.0f;
        return;
    }

    float maximum = -INFINITE, sum = 0.0f;  // sum of exp(x - maximum) over this thread's columns
    for_each_pack<N>(x, columns, 0, [&](int64 c, const Stored<element, N>& stored) {
        if (c < kept) put(stored, (element*)kept_row + c);
        const Pack<N> p = unpack(stored);
        float larger = maximum;
#pragma unroll
        for (int j = 0; j < N; ++j) larger = fmaxf(larger, p.at[j]);
        if (larger > maximum) {
            sum *= __expf(maximum - larger);
            maximum = larger;
        }
        const float offset = -maximum * LOG2_E;
#pragma unroll
        for (int j = 0; j < N; ++j) sum += exp2_approximate(fmaf(p.at[j], LOG2_E, offset));
    });
    const float target = label < columns ? to_float(x[label]) : __int_as_float(0x7FC00000);
    const float row_maximum = block_reduce(maximum, -INFINITE, scratch, Maximum());
    const float own = sum == 0.0f ? 0.0f : sum * __expf(maximum - row_maximum);
    const float row_sum = block_reduce(own, 0.0f, scratch, Sum());
    if (threadIdx.x == 0) *loss = logf(row_sum) + row_maximum - target;

    const float factor = gradient_scale / row_sum, offset = -row_maximum * LOG2_E;
    for_each_pack<N>(x, columns, kept, [&](int64 c, const Stored<element, N>& stored) {
        Pack<N> p = unpack(stored);
#pragma unroll
        for (int j = 0; j < N; ++j) p.at[j] = factor * exp2_approximate(fmaf(p.at[j], LOG2_E, offset));
        if (c <= label && label < c + N) {
#pragma unroll
            for (int j = 0; j < N; ++j)
                if (c + j == label) p.at[j] -= gradient_scale;
        }
        store(p, y + c);
    });
}

template <typename Out> __device__ __forceinline__ void cross_entropy(
    const element* logits, const int* labels, int64 columns, int64 kept, const float* gradient_scale, float* losses, Out* gradient)
{
    __shared__ float scratch[WARP];
    const int64 start = blockIdx.x * columns, label = labels[blockIdx.x];
    const auto run = [&](auto lanes) {
        cross_entropy_of_row<lanes.count>(logits + start, label, columns, kept, *gradient_scale, scratch, losses + blockIdx.x, gradient + start);
    };
    if (packs_fit(columns, logits) && packs_fit(columns, (const Out*)gradient)) run(Lanes<PACK>());
    else run(Lanes<1>());
}

KERNEL __launch_bounds__(THREADS, 1) cross_entropy_to_bf16(
    const element* logits, const int* labels, int64 columns, int64 kept, const float* gradient_scale, float* losses, bf16* gradient)
{
    cross_entropy(logits, labels, columns, kept, gradient_scale, losses, gradient);
}

#if LASP_ELEMENT_F32
KERNEL __launch_bounds__(THREADS, 1) cross_entropy_to_f32(
    const float* logits, const int* labels, int64 columns, int64 kept, const float* gradient_scale, float* losses, float* gradient)
{
    cross_entropy(logits, labels, columns, kept, gradient_scale, losses, gradient);
}
#endif

// reciprocal = 1 / max(1, count[0] * digit + count[1]): the scale of a mean over tokens, from a count in two exact digits. One thread.
KERNEL count_reciprocal(const float* count, double digit, float* reciprocal) { *reciprocal = (float)(1.0 / fmax(1.0, count[0] * digit + count[1])); }
