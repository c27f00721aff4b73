// Hopper's warpgroup matrix product (wgmma, sm_90a): 128 threads that start at a multiple of 128 add a [64, K] times b [K, N] to fp32 sums in registers; b comes from shared memory,
// a from shared memory or registers, both bf16. The products run asynchronously:
//     begin_products();  product(..);  product(..);  commit_products();  ..  wait_products<0>();
// and until they have been waited for neither the sums nor the registers of a may be touched, nor the tiles of b be overwritten.
//
// A panel is rows of 64 bf16 (128 bytes) in shared memory, starting at a multiple of 1024 bytes; the 16-byte packs of a row are permuted (pack p of row r lies where p ^ (r % 8) would), so that
// neither copies nor products meet bank conflicts. A wider tile is panels side by side, `panel_bytes` apart. As an operand a panel is read in one of two ways:
//     along   its rows are rows of a (or columns of b) and its columns are summed over      (K-major)
//     down    its rows are summed over and its columns are rows of a (or columns of b)      (MN-major)
//
// Sums of one thread, lane l of warp w of the warpgroup: at[i] is row 16 w + l / 4 + 8 (i / 2 % 2), column 8 (i / 4) + 2 (l % 4) + i % 2. Two neighbouring blocks of 8 columns, packed to bf16, are
// the registers of a for 16 summands (pack_sums), so the result of one product can be the left operand of the next without touching memory.
#ifndef LASP_WGMMA
#define LASP_WGMMA
#include "shared_memory.cuh"

constexpr int WARPGROUP = 128;    // threads
constexpr int PANEL = 64;         // columns of a panel
constexpr int PANEL_ROW = 128;    // bytes of a panel's row
constexpr int SUMMANDS = 16;      // of one product

// Byte offset of 16-byte pack `pack` (0 to 7) of a panel's row.
__device__ __forceinline__ unsigned panel_offset(int row, int pack) { return row * PANEL_ROW + ((pack ^ (row & 7)) << 4); }

// Makes ordinary and cp.async writes of this thread to shared memory visible to the tensor cores; a barrier must follow before another thread starts a product.
__device__ __forceinline__ void publish_to_products() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

#if __CUDA_ARCH_FEAT_SM90_ALL

// ---- Operands in shared memory ----

typedef unsigned long long Operand;

// The start is added last and in its own 32 bits, so that operands a constant apart cost one uniform addition each.
__device__ __forceinline__ Operand operand(unsigned address, unsigned panel_bytes, unsigned offset)
{
    constexpr unsigned EIGHT_ROWS = 8 * PANEL_ROW >> 4, SWIZZLE = 1u << 30;
    const unsigned low = (address >> 4 | (panel_bytes >> 4) << 16) + (offset >> 4);
    return (unsigned long long)(EIGHT_ROWS | SWIZZLE) << 32 | low;
}

// Rows from `address + offset` on; summands 16 step to 16 step + 15 of the panel's 64 columns.
__device__ __forceinline__ Operand along(unsigned address, int step, unsigned offset = 0) { return operand(address, 16, offset + 2 * SUMMANDS * step); }

// Columns from the panel at `address + offset` on, the next panel panel_bytes further; summands are rows 16 step to 16 step + 15.
__device__ __forceinline__ Operand down(unsigned address, int step, unsigned panel_bytes, unsigned offset = 0)
{
    return operand(address, panel_bytes, offset + SUMMANDS * PANEL_ROW * step);
}

constexpr int ALONG = 0, DOWN = 1;  // how an operand is read, for product<>

// ---- Sums ----

template <int N> struct Sums {
    static constexpr int COLUMNS = N, COUNT = N / 2;
    float at[COUNT];
};

__device__ __forceinline__ int sums_row(int i) { return threadIdx.x % WARPGROUP / WARP * 16 + threadIdx.x % WARP / 4 + 8 * (i / 2 % 2); }

__device__ __forceinline__ int sums_column(int i) { return 8 * (i / 4) + 2 * (threadIdx.x % 4) + i % 2; }

// Columns 16 step to 16 step + 15 of sums as the left operand of a product.
template <int N> __device__ __forceinline__ void pack_sums(const Sums<N>& x, int step, unsigned (&a)[4])
{
#pragma unroll
    for (int i = 0; i < 4; ++i) a[i] = pack_bf16(x.at[8 * step + 2 * i], x.at[8 * step + 2 * i + 1]);
}

// Keeps the compiler from moving accesses to sums across a wait.
template <int N> __device__ __forceinline__ void pin(Sums<N>& x)
{
#pragma unroll
    for (int i = 0; i < Sums<N>::COUNT; ++i) asm volatile("" : "+f"(x.at[i])::"memory");
}

// ---- Order ----

__device__ __forceinline__ void begin_products() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }

__device__ __forceinline__ void commit_products() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

template <int PENDING> __device__ __forceinline__ void wait_products() { asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory"); }

// ---- Products: sums = a b (accumulate 0) or sums += a b (1), 16 summands ----

#define SUMS_32(x) \
    "+f"(x.at[0]), "+f"(x.at[1]), "+f"(x.at[2]), "+f"(x.at[3]), "+f"(x.at[4]), "+f"(x.at[5]), "+f"(x.at[6]), "+f"(x.at[7]), \
    "+f"(x.at[8]), "+f"(x.at[9]), "+f"(x.at[10]), "+f"(x.at[11]), "+f"(x.at[12]), "+f"(x.at[13]), "+f"(x.at[14]), "+f"(x.at[15])

template <int A, int B> __device__ __forceinline__ void product(Operand a, Operand b, int accumulate, Sums<32>& sums)
{
    asm volatile(
        "{ .reg .pred p; setp.ne.b32 p, %18, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n32k16.f32.bf16.bf16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15"
        "}, %16, %17, p, 1, 1, %19, %20; }\n"
        : SUMS_32(sums)
        : "l"(a), "l"(b), "r"(accumulate), "n"(A), "n"(B));
}

template <int B> __device__ __forceinline__ void product(const unsigned (&a)[4], Operand b, int accumulate, Sums<32>& sums)
{
    asm volatile(
        "{ .reg .pred p; setp.ne.b32 p, %21, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n32k16.f32.bf16.bf16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15"
        "}, {%16, %17, %18, %19}, %20, p, 1, 1, %22; }\n"
        : SUMS_32(sums)
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(accumulate), "n"(B));
}

#undef SUMS_32

#define SUMS_64(x) \
    "+f"(x.at[0]), "+f"(x.at[1]), "+f"(x.at[2]), "+f"(x.at[3]), "+f"(x.at[4]), "+f"(x.at[5]), "+f"(x.at[6]), "+f"(x.at[7]), \
    "+f"(x.at[8]), "+f"(x.at[9]), "+f"(x.at[10]), "+f"(x.at[11]), "+f"(x.at[12]), "+f"(x.at[13]), "+f"(x.at[14]), "+f"(x.at[15]), \
    "+f"(x.at[16]), "+f"(x.at[17]), "+f"(x.at[18]), "+f"(x.at[19]), "+f"(x.at[20]), "+f"(x.at[21]), "+f"(x.at[22]), "+f"(x.at[23]), \
    "+f"(x.at[24]), "+f"(x.at[25]), "+f"(x.at[26]), "+f"(x.at[27]), "+f"(x.at[28]), "+f"(x.at[29]), "+f"(x.at[30]), "+f"(x.at[31])

template <int A, int B> __device__ __forceinline__ void product(Operand a, Operand b, int accumulate, Sums<64>& sums)
{
    asm volatile(
        "{ .reg .pred p; setp.ne.b32 p, %34, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
        "}, %32, %33, p, 1, 1, %35, %36; }\n"
        : SUMS_64(sums)
        : "l"(a), "l"(b), "r"(accumulate), "n"(A), "n"(B));
}

template <int B> __device__ __forceinline__ void product(const unsigned (&a)[4], Operand b, int accumulate, Sums<64>& sums)
{
    asm volatile(
        "{ .reg .pred p; setp.ne.b32 p, %37, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
        "}, {%32, %33, %34, %35}, %36, p, 1, 1, %38; }\n"
        : SUMS_64(sums)
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(accumulate), "n"(B));
}

#undef SUMS_64

#define SUMS_128(x) \
    "+f"(x.at[0]), "+f"(x.at[1]), "+f"(x.at[2]), "+f"(x.at[3]), "+f"(x.at[4]), "+f"(x.at[5]), "+f"(x.at[6]), "+f"(x.at[7]), \
    "+f"(x.at[8]), "+f"(x.at[9]), "+f"(x.at[10]), "+f"(x.at[11]), "+f"(x.at[12]), "+f"(x.at[13]), "+f"(x.at[14]), "+f"(x.at[15]), \
    "+f"(x.at[16]), "+f"(x.at[17]), "+f"(x.at[18]), "+f"(x.at[19]), "+f"(x.at[20]), "+f"(x.at[21]), "+f"(x.at[22]), "+f"(x.at[23]), \
    "+f"(x.at[24]), "+f"(x.at[25]), "+f"(x.at[26]), "+f"(x.at[27]), "+f"(x.at[28]), "+f"(x.at[29]), "+f"(x.at[30]), "+f"(x.at[31]), \
    "+f"(x.at[32]), "+f"(x.at[33]), "+f"(x.at[34]), "+f"(x.at[35]), "+f"(x.at[36]), "+f"(x.at[37]), "+f"(x.at[38]), "+f"(x.at[39]), \
    "+f"(x.at[40]), "+f"(x.at[41]), "+f"(x.at[42]), "+f"(x.at[43]), "+f"(x.at[44]), "+f"(x.at[45]), "+f"(x.at[46]), "+f"(x.at[47]), \
    "+f"(x.at[48]), "+f"(x.at[49]), "+f"(x.at[50]), "+f"(x.at[51]), "+f"(x.at[52]), "+f"(x.at[53]), "+f"(x.at[54]), "+f"(x.at[55]), \
    "+f"(x.at[56]), "+f"(x.at[57]), "+f"(x.at[58]), "+f"(x.at[59]), "+f"(x.at[60]), "+f"(x.at[61]), "+f"(x.at[62]), "+f"(x.at[63])

template <int A, int B> __device__ __forceinline__ void product(Operand a, Operand b, int accumulate, Sums<128>& sums)
{
    asm volatile(
        "{ .reg .pred p; setp.ne.b32 p, %66, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
        "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
        "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
        "}, %64, %65, p, 1, 1, %67, %68; }\n"
        : SUMS_128(sums)
        : "l"(a), "l"(b), "r"(accumulate), "n"(A), "n"(B));
}

template <int B> __device__ __forceinline__ void product(const unsigned (&a)[4], Operand b, int accumulate, Sums<128>& sums)
{
    asm volatile(
        "{ .reg .pred p; setp.ne.b32 p, %69, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
        "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
        "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
        "}, {%64, %65, %66, %67}, %68, p, 1, 1, %70; }\n"
        : SUMS_128(sums)
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(accumulate), "n"(B));
}

#undef SUMS_128

#endif

#endif
