// Producers and consumers within a block (Hopper, sm_90a): some warps fill stages of shared memory, others read them, and mbarriers hand a stage over without stopping anybody else.
//     producer:  wait_turn(empty, use ^ 1)   expect_bytes(full, ..)   copy_box_async(..)   arrive(full)
//     consumer:  wait_turn(full, use)        product(..)              wait_products()      arrive(empty)
// `use` is the parity of how often the stage has been used. Registers move from the warpgroup that only orders copies to those that compute.
#ifndef LASP_STAGES
#define LASP_STAGES
#include "wgmma.cuh"

// ---- Copies by many threads ----

// ROWS rows of 64 PANELS bf16, `stride` apart and 16-byte aligned, into panels; rows from `rows` on become zero. By THREADS threads, this one number `thread`.
template <int ROWS, int PANELS, int THREADS> __device__ __forceinline__ void copy_panels(unsigned to, const bf16* from, int64 stride, int rows, int thread)
{
    constexpr int PACKS = PANEL / PACK * PANELS, AT_ONCE = THREADS / PACKS;
    const int pack = thread % PACKS, first = thread / PACKS;
    const bf16* source = from + first * stride + pack * PACK;
    to += pack / 8 * ROWS * PANEL_ROW;
    if (rows >= ROWS) {
#pragma unroll 2
        for (int row = first; row < ROWS; row += AT_ONCE, source += AT_ONCE * stride) copy16_async(to + panel_offset(row, pack % 8), source, 16);
    } else {
#pragma unroll 1
        for (int row = first; row < ROWS; row += AT_ONCE, source += AT_ONCE * stride)
            copy16_async(to + panel_offset(row, pack % 8), row < rows ? source : from, row < rows ? 16 : 0);
    }
}

#if __CUDA_ARCH_FEAT_SM90_ALL

// ---- Barriers in shared memory: complete when `arrivals` threads have arrived, then start over with the other parity ----

typedef unsigned long long Barrier;

__device__ __forceinline__ void init_barrier(Barrier& barrier, int arrivals)
{
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(&barrier)), "r"(arrivals) : "memory");
}

// Orders what this thread alone has done before what others do after their wait: whoever has used a stage arrives, not one thread for its warp.
__device__ __forceinline__ void arrive(Barrier& barrier)
{
    asm volatile("{ .reg .b64 state; mbarrier.arrive.shared::cta.b64 state, [%0]; }" ::"r"(shared_address(&barrier)) : "memory");
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

// Announces bytes that asynchronous copies will bring: the phase completes no earlier. An arrival must follow.
__device__ __forceinline__ void expect_bytes(Barrier& barrier, unsigned bytes)
{
    asm volatile("mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [%0], %1;" ::"r"(shared_address(&barrier)), "r"(bytes) : "memory");
}

// ---- Registers, by all warps of a warpgroup ----

template <int COUNT> __device__ __forceinline__ void take_registers() { asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(COUNT)); }

template <int COUNT> __device__ __forceinline__ void give_registers() { asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(COUNT)); }

// Waits for this thread's copies and shows them to the products; an arrival must follow.
__device__ __forceinline__ void publish_copies()
{
    commit_copies();
    wait_copies<0>();
    publish_to_products();
}

// ---- Copies of boxes of a tensor [B, N, H, D], by one thread and no registers. The host describes tensor and box: 64 columns of bf16 or 32 of fp32, one head, some tokens, the layout of a panel ----

struct alignas(64) TensorMap { unsigned long long opaque[16]; };

struct Box {
    int column, head, token, batch;
};

// Tokens beyond the tensor become zero. All bytes of the box count for the barrier.
__device__ __forceinline__ void copy_box_async(unsigned to, const TensorMap* from, const Box& box, Barrier& barrier)
{
    asm volatile("cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3, %4, %5}], [%6];" ::"r"(to), "l"(from), "r"(box.column),
        "r"(box.head), "r"(box.token), "r"(box.batch), "r"(shared_address(&barrier)) : "memory");
}

// Adds a box of fp32 in shared memory to the tensor; what lies beyond it is left out.
__device__ __forceinline__ void add_box_async(const TensorMap* to, const Box& box, unsigned from)
{
    asm volatile("cp.reduce.async.bulk.tensor.4d.global.shared::cta.add.tile.bulk_group [%0, {%1, %2, %3, %4}], [%5];" ::"l"(to), "r"(box.column), "r"(box.head), "r"(box.token),
        "r"(box.batch), "r"(from) : "memory");
}

__device__ __forceinline__ void commit_additions() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }

// This thread's additions have read their sources; have been performed.
__device__ __forceinline__ void wait_additions_read() { asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory"); }

__device__ __forceinline__ void wait_additions() { asm volatile("cp.async.bulk.wait_group 0;" ::: "memory"); }

#endif

#endif
