// Shared memory as the tensor cores see it: addresses, asynchronous 16-byte copies, matrix loads and stores, barriers of some of a block's warps. Header-free PTX.
#ifndef LASP_SHARED_MEMORY
#define LASP_SHARED_MEMORY
#include "common.cuh"

// A 32-bit address in the shared window: what the instructions below take.
__device__ __forceinline__ unsigned shared_address(const void* x)
{
    unsigned address;
    asm("{ .reg .u64 wide; cvta.to.shared.u64 wide, %1; cvt.u32.u64 %0, wide; }" : "=r"(address) : "l"(x));
    return address;
}

// ---- Copies from global memory that pass no register ----

// 16 bytes, of which the first `bytes` (0 or 16) are read and the others become zero. `from` must be a valid address even where nothing is read.
__device__ __forceinline__ void copy16_async(unsigned to, const void* from, int bytes)
{
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(bytes) : "memory");
}

// 4 bytes, of which the first `bytes` (0 or 4) are read and the others become zero.
__device__ __forceinline__ void copy4_async(unsigned to, const void* from, int bytes)
{
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(to), "l"(from), "r"(bytes) : "memory");
}

// Ends this thread's group of copies; an empty group is legal and complete.
__device__ __forceinline__ void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits until at most PENDING of this thread's groups are under way. Other threads' copies become visible at the next barrier.
template <int PENDING> __device__ __forceinline__ void wait_copies() { asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory"); }

// ---- Four 8 x 8 matrices of bf16: lane l names row l % 8 of matrix l / 8, and holds elements 2 (l % 4) and the next of row l / 4 of each (transposed: of column l / 4) ----

__device__ __forceinline__ void load_matrices(unsigned row, unsigned (&x)[4])
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];" : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3]) : "r"(row) : "memory");
}

__device__ __forceinline__ void load_matrices_transposed(unsigned row, unsigned (&x)[4])
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];" : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3]) : "r"(row) : "memory");
}

#if __CUDA_ARCH__ >= 900
__device__ __forceinline__ void store_matrices(unsigned row, const unsigned (&x)[4])
{
    asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(row), "r"(x[0]), "r"(x[1]), "r"(x[2]), "r"(x[3]) : "memory");
}

__device__ __forceinline__ void store_matrices_transposed(unsigned row, const unsigned (&x)[4])
{
    asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(row), "r"(x[0]), "r"(x[1]), "r"(x[2]), "r"(x[3]) : "memory");
}
#endif

// ---- Accesses by 32-bit addresses ----

__device__ __forceinline__ float load_float(unsigned from)
{
    float x;
    asm volatile("ld.shared.f32 %0, [%1];" : "=f"(x) : "r"(from) : "memory");
    return x;
}

__device__ __forceinline__ unsigned load_unsigned(unsigned from)
{
    unsigned x;
    asm volatile("ld.shared.b32 %0, [%1];" : "=r"(x) : "r"(from) : "memory");
    return x;
}

__device__ __forceinline__ float2 load_float2(unsigned from)
{
    float2 x;
    asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];" : "=f"(x.x), "=f"(x.y) : "r"(from) : "memory");
    return x;
}

__device__ __forceinline__ float4 load_float4(unsigned from)
{
    float4 x;
    asm volatile("ld.shared.v4.f32 {%0, %1, %2, %3}, [%4];" : "=f"(x.x), "=f"(x.y), "=f"(x.z), "=f"(x.w) : "r"(from) : "memory");
    return x;
}

__device__ __forceinline__ void store_shared(unsigned to, unsigned x) { asm volatile("st.shared.b32 [%0], %1;" ::"r"(to), "r"(x) : "memory"); }

__device__ __forceinline__ void store_shared(unsigned to, float2 x) { asm volatile("st.shared.v2.f32 [%0], {%1, %2};" ::"r"(to), "f"(x.x), "f"(x.y) : "memory"); }

__device__ __forceinline__ void store_shared(unsigned to, float4 x)
{
    asm volatile("st.shared.v4.f32 [%0], {%1, %2, %3, %4};" ::"r"(to), "f"(x.x), "f"(x.y), "f"(x.z), "f"(x.w) : "memory");
}

__device__ __forceinline__ void store_shared(unsigned to, uint4 x)
{
    asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(to), "r"(x.x), "r"(x.y), "r"(x.z), "r"(x.w) : "memory");
}

// ---- Pairs of bf16 in a register ----

// Rounds two fp32 numbers to nearest even.
__device__ __forceinline__ unsigned pack_bf16(float low, float high)
{
    unsigned pair;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
}

__device__ __forceinline__ float low_of(unsigned pair) { return __uint_as_float(pair << 16); }

__device__ __forceinline__ float high_of(unsigned pair) { return __uint_as_float(pair & 0xFFFF0000u); }

// ---- Barriers ----

// For `threads` threads (whole warps) of the block; id 1 to 15 (0 is __syncthreads).
__device__ __forceinline__ void sync_threads(int id, int threads) { asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory"); }

#endif
