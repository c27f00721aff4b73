// y[r, :] = table[ids[r], :], zero for an id outside [0, V); and its transpose, dTable[ids[r], :] += dy[r, :] in ascending r.
// ids [R] of 32 or 64 bits, table [V, C], y and dy [R, C], dTable [V, C] fp32.
// Forward: one warp per row, 8 rows per block. Backward: block (g, s) owns the ids that are congruent to g modulo gridDim.x and the
// columns [256 s, 256 s + 256), one per thread; it lists its rows tile by tile in ascending order and adds them, so each element of
// dTable has one writer and one order of summation. fp32 accumulation, deterministic.
#include "common.cuh"

template <typename Id>
__device__ __forceinline__ void embedding_fwd(const Id* ids, const element* table, int64 rows, int64 vocabulary, int64 columns, element* y)
{
    const int64 row = global_thread() / WARP;
    if (row >= rows) return;
    const int64 id = ids[row];
    const bool inside = id >= 0 && id < vocabulary;
    const element* from = table + (inside ? id : 0) * columns;
    element* to = y + row * columns;
    for_each_column(columns, threadIdx.x % WARP, WARP, packs_fit(columns, table, (const element*)y), [&](int64 c, auto lanes) {
        Pack<lanes.count> p = {};
        if (inside) p = load(from + c, lanes);
        store(p, to + c);
    });
}

KERNEL embedding_fwd_i32(const int* ids, const element* table, int64 rows, int64 vocabulary, int64 columns, element* y)
{
    embedding_fwd(ids, table, rows, vocabulary, columns, y);
}

KERNEL embedding_fwd_i64(const int64* ids, const element* table, int64 rows, int64 vocabulary, int64 columns, element* y)
{
    embedding_fwd(ids, table, rows, vocabulary, columns, y);
}

constexpr int THREADS = 256;                       // of a backward block, one column each
constexpr int IDS_PER_THREAD = 4;
constexpr int TILE = THREADS * IDS_PER_THREAD;     // ids examined at once

struct RowList {
    int count[THREADS / WARP];
    int row[TILE];       // within the tile
    int64 id[TILE];
};

// Lists, in ascending order, the rows of one tile whose id belongs to this block; returns how many. All threads call it.
template <typename Id>
__device__ __forceinline__ int list_rows(const Id* ids, int64 rows, int64 vocabulary, int64 tile, RowList& list)
{
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    int64 id[IDS_PER_THREAD];
    int found = 0;
#pragma unroll
    for (int i = 0; i < IDS_PER_THREAD; ++i) {
        const int64 row = tile + threadIdx.x * IDS_PER_THREAD + i;
        id[i] = row < rows ? (int64)ids[row] : -1;
        if (id[i] < 0 || id[i] >= vocabulary || id[i] % gridDim.x != blockIdx.x) id[i] = -1;
        found += id[i] >= 0;
    }
    int before = found;  // inclusive prefix sum over the warp, made exclusive below
#pragma unroll
    for (int lanes = 1; lanes < WARP; lanes *= 2) {
        const int other = __shfl_up_sync(0xFFFFFFFFu, before, lanes);
        if (lane >= lanes) before += other;
    }
    __syncthreads();  // the list of the previous tile has been read
    if (lane == WARP - 1) list.count[warp] = before;
    __syncthreads();
    int total = 0, place = before - found;
#pragma unroll
    for (int w = 0; w < THREADS / WARP; ++w) {
        if (w < warp) place += list.count[w];
        total += list.count[w];
    }
#pragma unroll
    for (int i = 0; i < IDS_PER_THREAD; ++i) {
        if (id[i] >= 0) {
            list.row[place] = threadIdx.x * IDS_PER_THREAD + i;
            list.id[place++] = id[i];
        }
    }
    __syncthreads();
    return total;
}

template <typename Id>
__device__ __forceinline__ void embedding_bwd(const Id* ids, const element* dy, int64 rows, int64 vocabulary, int64 columns, float* d_table, RowList& list)
{
    const int64 column = blockIdx.y * (int64)THREADS + threadIdx.x;
    int64 current = -1;  // the id whose sum is in the register
    float sum = 0.0f;
    for (int64 tile = 0; tile < rows; tile += TILE) {
        const int total = list_rows(ids, rows, vocabulary, tile, list);
        if (column >= columns) continue;
        for (int i = 0; i < total; ++i) {
            if (list.id[i] != current) {
                if (current >= 0) d_table[current * columns + column] = sum;
                current = list.id[i];
                sum = d_table[current * columns + column];
            }
            sum += to_float(dy[(tile + list.row[i]) * columns + column]);
        }
    }
    if (current >= 0 && column < columns) d_table[current * columns + column] = sum;
}

KERNEL __launch_bounds__(THREADS) embedding_bwd_i32(const int* ids, const element* dy, int64 rows, int64 vocabulary, int64 columns, float* d_table)
{
    __shared__ RowList list;
    embedding_bwd(ids, dy, rows, vocabulary, columns, d_table, list);
}

KERNEL __launch_bounds__(THREADS) embedding_bwd_i64(const int64* ids, const element* dy, int64 rows, int64 vocabulary, int64 columns, float* d_table)
{
    __shared__ RowList list;
    embedding_bwd(ids, dy, rows, vocabulary, columns, d_table, list);
}
