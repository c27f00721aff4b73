// What all kernels share: the element type, packs of elements moved in 16-byte accesses, and reductions in a fixed order.
// Compiled with LASP_ELEMENT_F32=1 or LASP_ELEMENT_BF16=1, without any toolkit header. bf16 is a storage format: arithmetic is fp32.
// Whole tensors are addressed with 64-bit indices. No kernel uses floating-point atomics, so every run gives the same bits.
#ifndef LASP_COMMON
#define LASP_COMMON

typedef long long int64;
typedef unsigned short bf16;  // the upper 16 bits of an fp32 number

#if LASP_ELEMENT_BF16
typedef bf16 element;
#else
typedef float element;
#endif

#define KERNEL extern "C" __global__ void

// A file whose kernels take the compiler seconds has each of them under "#if WANTS(its name)". It is compiled as a whole, or with LASP_ONE_KERNEL=1 and LASP_KERNEL_<name>=1 for one kernel of it:
// a run needs few of the variants, and several are compiled at once.
#if LASP_ONE_KERNEL
#define WANTS(kernel) LASP_KERNEL_##kernel
#else
#define WANTS(kernel) 1
#endif

constexpr int WARP = 32;
constexpr int PACK = 8;  // elements of one pack: 16 bytes of bf16, 32 bytes of fp32
constexpr int QUAD = 4;  // elements of half a pack: 16 bytes of fp32, for kernels that move mostly that

#define INFINITE __int_as_float(0x7F800000)

// ---- Conversion ----

__device__ __forceinline__ float to_float(float x) { return x; }

__device__ __forceinline__ float to_float(bf16 x) { return __uint_as_float((unsigned)x << 16); }

__device__ __forceinline__ void from_float(float x, float& y) { y = x; }

__device__ __forceinline__ void from_float(float x, bf16& y)  // rounds to nearest even
{
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y) : "f"(x));
}

// ---- Packs: N consecutive elements as fp32. N = PACK and N = QUAD need 16-byte alignment, N = 1 needs none ----

template <int N> struct Lanes { static constexpr int count = N; };

template <int N> struct Pack { float at[N]; };

// N elements as they lie in memory: what a kernel holds between its loads and their use, at half a Pack's registers where they are bf16.
template <typename T, int N = PACK> struct Stored { T value; };

template <> struct Stored<float, PACK> { float4 low, high; };

template <> struct Stored<bf16, PACK> { uint4 bits; };

template <> struct Stored<float, QUAD> { float4 value; };

template <> struct Stored<bf16, QUAD> { uint2 bits; };

template <typename T> __device__ __forceinline__ Stored<T, 1> fetch(const T* x, Lanes<1>) { return { *x }; }

__device__ __forceinline__ Stored<float> fetch(const float* x, Lanes<PACK>) { return { ((const float4*)x)[0], ((const float4*)x)[1] }; }

__device__ __forceinline__ Stored<bf16> fetch(const bf16* x, Lanes<PACK>) { return { *(const uint4*)x }; }

__device__ __forceinline__ Stored<float, QUAD> fetch(const float* x, Lanes<QUAD>) { return { *(const float4*)x }; }

__device__ __forceinline__ Stored<bf16, QUAD> fetch(const bf16* x, Lanes<QUAD>) { return { *(const uint2*)x }; }

template <typename T> __device__ __forceinline__ void put(const Stored<T, 1>& x, T* y) { *y = x.value; }

__device__ __forceinline__ void put(const Stored<float>& x, float* y) { ((float4*)y)[0] = x.low, ((float4*)y)[1] = x.high; }

__device__ __forceinline__ void put(const Stored<bf16>& x, bf16* y) { *(uint4*)y = x.bits; }

__device__ __forceinline__ void put(const Stored<float, QUAD>& x, float* y) { *(float4*)y = x.value; }

__device__ __forceinline__ void put(const Stored<bf16, QUAD>& x, bf16* y) { *(uint2*)y = x.bits; }

template <typename T> __device__ __forceinline__ Pack<1> unpack(const Stored<T, 1>& x) { return { { to_float(x.value) } }; }

__device__ __forceinline__ Pack<PACK> unpack(const Stored<float>& x)
{
    return { { x.low.x, x.low.y, x.low.z, x.low.w, x.high.x, x.high.y, x.high.z, x.high.w } };
}

__device__ __forceinline__ Pack<PACK> unpack(const Stored<bf16>& x)
{
    const unsigned pair[4] = { x.bits.x, x.bits.y, x.bits.z, x.bits.w };
    Pack<PACK> p;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        p.at[2 * i] = __uint_as_float(pair[i] << 16);
        p.at[2 * i + 1] = __uint_as_float(pair[i] & 0xFFFF0000u);
    }
    return p;
}

__device__ __forceinline__ Pack<QUAD> unpack(const Stored<float, QUAD>& x) { return { { x.value.x, x.value.y, x.value.z, x.value.w } }; }

__device__ __forceinline__ Pack<QUAD> unpack(const Stored<bf16, QUAD>& x)
{
    return { { __uint_as_float(x.bits.x << 16), __uint_as_float(x.bits.x & 0xFFFF0000u), __uint_as_float(x.bits.y << 16), __uint_as_float(x.bits.y & 0xFFFF0000u) } };
}

// Makes the compiler forget that it has unpacked x before, so that across a barrier it holds x rather than the Pack.
__device__ __forceinline__ void hold(Stored<float>&) {}

__device__ __forceinline__ void hold(Stored<bf16>& x) { asm volatile("" : "+r"(x.bits.x), "+r"(x.bits.y), "+r"(x.bits.z), "+r"(x.bits.w)); }

template <typename T> __device__ __forceinline__ void pack(const Pack<1>& x, Stored<T, 1>& y) { from_float(x.at[0], y.value); }

__device__ __forceinline__ void pack(const Pack<PACK>& x, Stored<float>& y)
{
    y.low = make_float4(x.at[0], x.at[1], x.at[2], x.at[3]);
    y.high = make_float4(x.at[4], x.at[5], x.at[6], x.at[7]);
}

__device__ __forceinline__ void pack(const Pack<PACK>& x, Stored<bf16>& y)
{
    unsigned pair[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair[i]) : "f"(x.at[2 * i + 1]), "f"(x.at[2 * i]));
    y.bits = make_uint4(pair[0], pair[1], pair[2], pair[3]);
}

__device__ __forceinline__ void pack(const Pack<QUAD>& x, Stored<float, QUAD>& y) { y.value = make_float4(x.at[0], x.at[1], x.at[2], x.at[3]); }

__device__ __forceinline__ void pack(const Pack<QUAD>& x, Stored<bf16, QUAD>& y)
{
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(y.bits.x) : "f"(x.at[1]), "f"(x.at[0]));
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(y.bits.y) : "f"(x.at[3]), "f"(x.at[2]));
}

template <typename T, int N> __device__ __forceinline__ Pack<N> load(const T* x, Lanes<N> lanes) { return unpack(fetch(x, lanes)); }

template <typename T, int N> __device__ __forceinline__ void store(const Pack<N>& x, T* y)
{
    Stored<T, N> stored;
    pack(x, stored);
    put(stored, y);
}

// Whether rows of `row` elements behind these pointers are made of packs (a null pointer has no rows, so it never objects).
template <typename... T> __device__ __forceinline__ bool packs_fit(int64 row, const T*... x)
{
    return row % PACK == 0 && ((((unsigned long long)x & 15) == 0) && ...);
}

// ---- Loops ----

// The thread's place in its block, read anew: what is derived from it is made where it is used, and not kept in registers throughout a loop.
__device__ __forceinline__ int thread_again()
{
    int thread = threadIdx.x;
    asm volatile("" : "+r"(thread));
    return thread;
}

__device__ __forceinline__ int64 global_thread() { return blockIdx.x * (int64)blockDim.x + threadIdx.x; }

// One thread per PACK elements of a flat tensor: body(index, lanes), in packs where they fit, else one by one.
template <typename Body> __device__ __forceinline__ void for_each_element(int64 count, bool packs, Body body)
{
    const int64 first = global_thread() * PACK;
    if (packs && first + PACK <= count) {
        body(first, Lanes<PACK>());
    } else {
        const int64 end = first + PACK < count ? first + PACK : count;
        for (int64 i = first; i < end; ++i) body(i, Lanes<1>());
    }
}

// `threads` threads share the columns of one row: body(column, lanes).
template <typename Body> __device__ __forceinline__ void for_each_column(int64 columns, int thread, int threads, bool packs, Body body)
{
    if (packs) {
        for (int64 c = (int64)thread * PACK; c < columns; c += (int64)threads * PACK) body(c, Lanes<PACK>());
    } else {
        for (int64 c = thread; c < columns; c += threads) body(c, Lanes<1>());
    }
}

// ---- Tables: many tensors in one launch ----

// Chunks are numbered through all rows of a table; row r holds those below its `end` that no row before it holds. The row of a chunk, by bisection:
template <typename Row> __device__ __forceinline__ int row_of_chunk(const Row* rows, int count, int64 chunk)
{
    int first = 0, last = count - 1;
    while (first < last) {
        const int middle = (first + last) / 2;
        if (chunk < rows[middle].end) last = middle;
        else first = middle + 1;
    }
    return first;
}

// ---- Reductions ----

struct Sum {
    template <typename T> __device__ __forceinline__ T operator()(T a, T b) const { return a + b; }
};

struct Maximum {
    __device__ __forceinline__ float operator()(float a, float b) const { return fmaxf(a, b); }
};

// Every lane gets the result.
template <typename T, typename Op> __device__ __forceinline__ T warp_reduce(T x, Op op)
{
#pragma unroll
    for (int lanes = WARP / 2; lanes > 0; lanes /= 2) x = op(x, __shfl_xor_sync(0xFFFFFFFFu, x, lanes));
    return x;
}

// Every thread of the block gets the result. `scratch` holds one value per warp and may be used again right after the call.
template <typename T, typename Op> __device__ __forceinline__ T block_reduce(T x, T identity, T* scratch, Op op)
{
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, warps = blockDim.x / WARP;
    x = warp_reduce(x, op);
    if (lane == 0) scratch[warp] = x;
    __syncthreads();
    x = warp_reduce(lane < warps ? scratch[lane] : identity, op);
    __syncthreads();
    return x;
}

// ---- Exponentials and activations ----

constexpr float LOG2_E = 1.4426950408889634f;

constexpr float GENTLE = 5.42101086e-20f;  // 2^-64: a decay of at least this much may be divided by, quotients and their products stay far from the ends of fp32

// 2^x by the hardware: a few units in the last place, and zero where the result would be subnormal.
__device__ __forceinline__ float exp2_approximate(float x)
{
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// 1 / x by the hardware: one unit in the last place, and zero where the result would be subnormal.
__device__ __forceinline__ float reciprocal_approximate(float x)
{
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// By the hardware's exponential and reciprocal: a few units in the last place of fp32, and a tenth of the instructions, which would bound these maps.
__device__ __forceinline__ float sigmoid(float x) { return __fdividef(1.0f, 1.0f + __expf(-x)); }

__device__ __forceinline__ float silu(float x) { return x * sigmoid(x); }

__device__ __forceinline__ float silu_derivative(float x)
{
    const float s = sigmoid(x);
    return s * (1.0f + x * (1.0f - s));
}

#endif
