// Cross-entropy and its gradient as in cross_entropy.cu, each logit read once: a row of up to 131072 fp32 logits is held in the registers of a cluster of eight blocks (Hopper).
//     losses[r] = logsumexp(logits[r]) - logits[r, label]        gradient[r, :] = gradient_scale[0] * (softmax(logits[r]) - onehot(label)), fp32 or bf16
// A negative label gives loss 0 and gradient 0; a label beyond V gives a loss of NaN. The gradient may lie where the logits are, if it is fp32: the row is written when all of it has been read.
// Launch: 8 blocks of 512 threads per row; V a multiple of 8, rows on 16 bytes. fp32, deterministic: sums over threads, warps and blocks in a fixed order.
#include "common.cuh"

#if LASP_ELEMENT_F32 && __CUDA_ARCH__ >= 900

constexpr int BLOCKS = 8, THREADS = 512, HELD = 4;  // blocks of a row, threads of a block, packs of a thread

__device__ __forceinline__ void cluster_arrive() { asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory"); }

__device__ __forceinline__ void cluster_wait() { asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory"); }

// The float at this address of shared memory in another block of the cluster.
__device__ __forceinline__ float of_block(const float* x, int block)
{
    unsigned address;
    float value;
    asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(address) : "r"((unsigned)__cvta_generic_to_shared(x)), "r"(block));
    asm volatile("ld.shared::cluster.f32 %0, [%1];" : "=f"(value) : "r"(address) : "memory");
    return value;
}

// sum of exp(x - maximum) over what a thread, a block or a cluster has seen
struct Exponentials { float maximum, sum; };

__device__ __forceinline__ float rescaled(Exponentials x, float maximum) { return x.sum == 0.0f ? 0.0f : x.sum * __expf(x.maximum - maximum); }

__device__ __forceinline__ Exponentials over_cluster(Exponentials own, float* scratch, Exponentials* shared)
{
    const float block_maximum = block_reduce(own.maximum, -INFINITE, scratch, Maximum());
    const float block_sum = block_reduce(rescaled(own, block_maximum), 0.0f, scratch, Sum());
    if (threadIdx.x == 0) *shared = { block_maximum, block_sum };
    cluster_arrive();
    cluster_wait();
    Exponentials all[BLOCKS], row = { -INFINITE, 0.0f };
#pragma unroll
    for (int block = 0; block < BLOCKS; ++block) {
        all[block] = { of_block(&shared->maximum, block), of_block(&shared->sum, block) };
        row.maximum = fmaxf(row.maximum, all[block].maximum);
    }
    cluster_arrive();  // what `shared` holds has been read; waited for before the block ends
#pragma unroll
    for (int block = 0; block < BLOCKS; ++block) row.sum += rescaled(all[block], row.maximum);
    return row;
}

template <typename Out> __device__ __forceinline__ void cross_entropy(
    const float* logits, const int* labels, int64 columns, const float* gradient_scale, float* losses, Out* gradient)
{
    __shared__ float scratch[WARP];
    __shared__ Exponentials shared;
    const int64 row = blockIdx.x / BLOCKS, label = labels[row];
    const float* x = logits + row * columns;
    Out* y = gradient + row * columns;
    const int64 first = (blockIdx.x % BLOCKS * (int64)THREADS + threadIdx.x) * PACK, step = (int64)BLOCKS * THREADS * PACK;
    if (label < 0) {
        for (int64 c = first; c < columns; c += step) store(Pack<PACK>{}, y + c);
        if (first == 0) losses[row] = 0.0f;
        return;
    }

    Stored<float> in[HELD];
#pragma unroll
    for (int k = 0; k < HELD; ++k)
        if (first + k * step < columns) in[k] = fetch(x + first + k * step, Lanes<PACK>());
    const float target = label < columns ? x[label] : __int_as_float(0x7FC00000), scale = *gradient_scale;

    Exponentials own = { -INFINITE, 0.0f };
#pragma unroll
    for (int k = 0; k < HELD; ++k) {
        if (first + k * step >= columns) break;
        const Pack<PACK> p = unpack(in[k]);
#pragma unroll
        for (int j = 0; j < PACK; ++j) own.maximum = fmaxf(own.maximum, p.at[j]);
    }
    const float offset = -own.maximum * LOG2_E;
#pragma unroll
    for (int k = 0; k < HELD; ++k) {
        if (first + k * step >= columns) break;
        Pack<PACK> p = unpack(in[k]);
#pragma unroll
        for (int j = 0; j < PACK; ++j) own.sum += p.at[j] = exp2_approximate(fmaf(p.at[j], LOG2_E, offset));
        pack(p, in[k]);  // from here on the exponentials
    }
    const Exponentials whole = over_cluster(own, scratch, &shared);
    if (first == 0) losses[row] = logf(whole.sum) + whole.maximum - target;

    const float factor = own.sum == 0.0f ? 0.0f : scale / whole.sum * __expf(own.maximum - whole.maximum);
#pragma unroll
    for (int k = 0; k < HELD; ++k) {
        const int64 c = first + k * step;
        if (c >= columns) break;
        Pack<PACK> p = unpack(in[k]);
#pragma unroll
        for (int j = 0; j < PACK; ++j) p.at[j] = fmaf(p.at[j], factor, c + j == label ? -scale : 0.0f);
        store(p, y + c);
    }
    cluster_wait();
}

KERNEL __cluster_dims__(BLOCKS, 1, 1) __launch_bounds__(THREADS, 2) cross_entropy_cluster_to_f32(
    const float* logits, const int* labels, int64 columns, const float* gradient_scale, float* losses, float* gradient)
{
    cross_entropy(logits, labels, columns, gradient_scale, losses, gradient);
}

KERNEL __cluster_dims__(BLOCKS, 1, 1) __launch_bounds__(THREADS, 2) cross_entropy_cluster_to_bf16(
    const float* logits, const int* labels, int64 columns, const float* gradient_scale, float* losses, bf16* gradient)
{
    cross_entropy(logits, labels, columns, gradient_scale, losses, gradient);
}

#endif
