// Producers and consumers within a block (Hopper, sm_90a): some warps fill stages of shared memory, others read them, and mbarriers hand a stage over without stopping anybody else.
//     producer:  wait_turn(empty, use ^ 1)   copy_panels(..)   publish_copies()   arrive(full)
//     consumer:  wait_turn(full, use)        products(..)      wait_products()    arrive(empty)
// `use` is the parity of how often the stage has been used. Registers move from the warpgroup that only copies to those that compute.
#ifndef LASP_STAGES
#define LASP_STAGES
#include "wgmma.cuh"

#if __CUDA_ARCH_FEAT_SM90_ALL

// ---- Barriers in shared memory: complete when `arrivals` threads have arrived, then start over with the other parity ----

typedef unsigned long long Barrier;

__device__ __forceinline__ void init_barrier(Barrier& barrier, int arrivals)
{
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(&barrier)), "r"(arrivals) : "memory");
}

__device__ __forceinline__ void arrive(Barrier& barrier)
{
    asm volatile("{ .reg .b64 state; mbarrier.arrive.shared::cta.b64 state, [%0]; }" ::"r"(shared_address(&barrier)) : "memory");
}

// For the whole warp, after all its lanes have come here.
__device__ __forceinline__ void arrive_warp(Barrier& barrier)
{
    __syncwarp();
    if (threadIdx.x % WARP == 0) arrive(barrier);
}

// Until the phase of this parity (0 is the first) has completed; parity 1 passes on a barrier that nothing has arrived at.
__device__ __forceinline__ void wait_turn(Barrier& barrier, int parity)
{
    const unsigned address = shared_address(&barrier);
    int done;
    do {
        asm volatile("{ .reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2; selp.b32 %0, 1, 0, p; }" : "=r"(done) : "r"(address), "r"(parity) : "memory");
    } while (!done);
}

// ---- Registers, by all warps of a warpgroup ----

template <int COUNT> __device__ __forceinline__ void take_registers() { asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(COUNT)); }

template <int COUNT> __device__ __forceinline__ void give_registers() { asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(COUNT)); }

// ---- Copies ----

// ROWS rows of 64 PANELS bf16, `stride` apart and 16-byte aligned, into panels; rows from `rows` on become zero. By THREADS threads, this one number `thread`.
template <int ROWS, int PANELS, int THREADS> __device__ __forceinline__ void copy_panels(unsigned to, const bf16* from, int64 stride, int rows, int thread)
{
    constexpr int PACKS = PANEL / PACK * PANELS, AT_ONCE = THREADS / PACKS;
    const int pack = thread % PACKS, first = thread / PACKS;
    const bf16* source = from + first * stride + pack * PACK;
    to += pack / 8 * ROWS * PANEL_ROW;
    if (rows >= ROWS) {
#pragma unroll 4
        for (int row = first; row < ROWS; row += AT_ONCE, source += AT_ONCE * stride) copy16_async(to + panel_offset(row, pack % 8), source, 16);
    } else {
#pragma unroll 1
        for (int row = first; row < ROWS; row += AT_ONCE, source += AT_ONCE * stride)
            copy16_async(to + panel_offset(row, pack % 8), row < rows ? source : from, row < rows ? 16 : 0);
    }
}

// Waits for this thread's copies and shows them to the products; an arrival must follow.
__device__ __forceinline__ void publish_copies()
{
    commit_copies();
    wait_copies<0>();
    publish_to_products();
}

#endif

#endif
