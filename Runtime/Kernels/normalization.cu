// RMS normalisation of rows that are made of packs (16-byte aligned, C a multiple of 8): every row crosses memory once and waits in registers for its own sum.
// normalization_any.cu has the plain loops for all other rows.
//     rms_norm          h = x + residual (x without one)      r = 1 / sqrt(mean(h^2) + eps)      y = h * r * weight
//                       n = h * r      dx = r * (weight*dy - n * mean(weight*dy*n)) + dh (the gradient of x and of the residual)      dWeight = sum over rows of dy * n
//     gated_head_norm   r = 1 / sqrt(mean(x^2) + eps)      y = x * r * weight * silu(gate)
//                       n = x * r      u = dy * silu(gate)      dx = r * (weight*u - n * mean(weight*u*n))      dgate = dy * n * weight * silu'(gate)      dWeight = sum of u * n
// x, residual, h, gate, y, dy, dh, dx, dgate [rows, C]; inverse_rms [rows] fp32; weight [C]; null weight, residual, gate or dh: 1, 0, none, 0.
// A thread owns 8 columns of a few rows at a time, so in the backward pass it also keeps its columns' share of dWeight; a block leaves the sum over its rows in
// partials [blocks, C], and norm_bwd_weight adds the blocks in order. fp32 accumulation (fp64 over blocks), deterministic. A destination may be a source.
// Launch: rms_norm blocks of C / 8 threads, rounded up to warps, that share a row (C <= 4096, in fp32 2048); gated_head_norm blocks of 256, `lanes` threads per row, the power of
// two that is not below C / 8 (C <= 256). A block takes `slab` rows.
#include "common.cuh"

constexpr int BLOCK_ROWS = 4;
constexpr int HEAD_ROWS = 2;
constexpr int HEAD_ROWS_BWD = 1;
#if LASP_ELEMENT_BF16
constexpr int MAX_THREADS = 512;
constexpr int FORWARD_BLOCKS = 2;  // of MAX_THREADS, at least, at a time: the barrier of one hides behind the loads of the others
#else
constexpr int MAX_THREADS = 256;   // a thread's rows take twice the registers
constexpr int FORWARD_BLOCKS = 0;  // no demand: three of 80 registers
#endif
constexpr int MAX_WARPS = 16;

// Sums of a tile of rows, each shared by the whole block. Lanes take the rows in turn: ROWS sums cost little more shuffles than one.
struct BlockRows {
    static constexpr int rows = BLOCK_ROWS, lanes = WARP / rows;
    float (*scratch)[rows][MAX_WARPS];  // two tiles, used in turn, so that one barrier per tile is enough
    int turn = 0;

    __device__ __forceinline__ void sum(float (&x)[rows])
    {
        const int row = threadIdx.x % WARP / lanes, lane = threadIdx.x % lanes, warp = threadIdx.x / WARP, warps = blockDim.x / WARP;
        const float mine = over_lanes(own_row(x));
        if (lane == 0) scratch[turn][row][warp] = mine;
        __syncthreads();
        float sum = 0.0f;
#pragma unroll
        for (int w = 0; w < MAX_WARPS; w += lanes) sum += w + lane < warps ? scratch[turn][row][w + lane] : 0.0f;
        sum = over_lanes(sum);
#pragma unroll
        for (int k = 0; k < rows; ++k) x[k] = __shfl_sync(0xFFFFFFFFu, sum, k * lanes);
        turn ^= 1;
    }

    // A part of the sum of row lane / lanes: halves of the warp, then quarters, swap what belongs to the other.
    __device__ __forceinline__ static float own_row(const float (&x)[rows])
    {
        const bool upper = threadIdx.x & 16, odd = threadIdx.x & 8;
        float a = (upper ? x[rows / 2] : x[0]) + __shfl_xor_sync(0xFFFFFFFFu, upper ? x[0] : x[rows / 2], 16);
        if (rows == 2) return a;
        const float b = (upper ? x[rows - 1] : x[1]) + __shfl_xor_sync(0xFFFFFFFFu, upper ? x[1] : x[rows - 1], 16);
        return (odd ? b : a) + __shfl_xor_sync(0xFFFFFFFFu, odd ? a : b, 8);
    }

    __device__ __forceinline__ static float over_lanes(float x)
    {
#pragma unroll
        for (int distance = lanes / 2; distance > 0; distance /= 2) x += __shfl_xor_sync(0xFFFFFFFFu, x, distance);
        return x;
    }
};

// Sums of rows that are each shared by `lanes` neighbours of a warp.
template <int ROWS> struct LaneRows {
    static constexpr int rows = ROWS;
    int lanes;

    __device__ __forceinline__ void sum(float (&x)[rows])
    {
        for (int distance = lanes / 2; distance > 0; distance /= 2)
#pragma unroll
            for (int k = 0; k < rows; ++k) x[k] += __shfl_xor_sync(0xFFFFFFFFu, x[k], distance);
    }
};

// What a thread works on, counted from its block's first row: 8 columns of every groups-th row.
struct RowShare {
    int row, rows;  // the first row of its tile; where the block's rows end, 0 for a thread beyond the columns
    int groups, column;
    unsigned columns;

    __device__ __forceinline__ bool has(int k) const { return row + k * groups < rows; }
    __device__ __forceinline__ unsigned at(int k) const { return (row + k * groups) * columns + column; }
};

__device__ __forceinline__ RowShare row_share(int64 rows, int64 columns, int lanes, int64 slab)
{
    const int64 left = rows - blockIdx.x * slab;
    RowShare share;
    share.groups = blockDim.x / lanes;
    share.row = threadIdx.x / lanes;
    share.column = threadIdx.x % lanes * PACK;
    share.columns = (unsigned)columns;
    share.rows = share.column < columns ? (int)(left < slab ? left : slab) : 0;
    return share;
}

template <typename T> __device__ __forceinline__ T* block_rows(T* x, int64 columns, int64 slab) { return x ? x + blockIdx.x * slab * columns : nullptr; }

__device__ __forceinline__ Pack<PACK> weights_of(const element* weight, const RowShare& share)
{
    Pack<PACK> w;
#pragma unroll
    for (int j = 0; j < PACK; ++j) w.at[j] = 1.0f;
    return weight && share.rows > 0 ? load(weight + share.column, Lanes<PACK>()) : w;
}

template <int ROWS> __device__ __forceinline__ void fetch_rows(const element* x, const RowShare& share, Stored<element> (&to)[ROWS])
{
#pragma unroll
    for (int k = 0; k < ROWS; ++k) {
        to[k] = {};
        if (share.has(k)) to[k] = fetch(x + share.at(k), Lanes<PACK>());
    }
}

// ---- Forward ----

// `other` is a residual, or with GATED a gate.
template <bool GATED, typename Sums>
__device__ __forceinline__ void norm_fwd_tile(
    const element* x, const element* other, const Pack<PACK>& w, const RowShare& share, float eps, Sums& sums, element* h, element* y, float* inverse_rms)
{
    Stored<element> in[Sums::rows], second[Sums::rows];
    fetch_rows(x, share, in);
    if (other) fetch_rows(other, share, second);
    float squares[Sums::rows];
#pragma unroll
    for (int k = 0; k < Sums::rows; ++k) {
        Pack<PACK> p = unpack(in[k]);
        if (!GATED && other) {
            const Pack<PACK> q = unpack(second[k]);
#pragma unroll
            for (int j = 0; j < PACK; ++j) p.at[j] += q.at[j];
            pack(p, in[k]);
            p = unpack(in[k]);  // h as others will read it
            if (share.has(k)) put(in[k], h + share.at(k));
        }
        squares[k] = 0.0f;
#pragma unroll
        for (int j = 0; j < PACK; ++j) squares[k] = fmaf(p.at[j], p.at[j], squares[k]);
    }
    sums.sum(squares);
    const float share_of_mean = 1.0f / (float)share.columns;
#pragma unroll
    for (int k = 0; k < Sums::rows; ++k) {
        if (!share.has(k)) continue;
        const float r = rsqrtf(fmaf(squares[k], share_of_mean, eps));
        hold(in[k]);
        if (share.column == 0) inverse_rms[share.row + k * share.groups] = r;
        Pack<PACK> p = unpack(in[k]);
        const Pack<PACK> g = unpack(second[k]);
#pragma unroll
        for (int j = 0; j < PACK; ++j) {
            p.at[j] *= r * w.at[j];
            if (GATED && other) p.at[j] *= silu(g.at[j]);
        }
        store(p, y + share.at(k));
    }
}

template <bool GATED, typename Sums>
__device__ __forceinline__ void norm_fwd(
    const element* x, const element* other, const element* weight, int64 rows, int64 columns, int lanes, int64 slab, float eps, Sums sums, element* h, element* y,
    float* inverse_rms)
{
    RowShare share = row_share(rows, columns, lanes, slab);
    const Pack<PACK> w = weights_of(weight, share);
    const int step = Sums::rows * share.groups;
    for (int64 tile = 0; tile < slab; tile += step, share.row += step)
        norm_fwd_tile<GATED>(
            block_rows(x, columns, slab), block_rows(other, columns, slab), w, share, eps, sums, block_rows(h, columns, slab), block_rows(y, columns, slab),
            inverse_rms + blockIdx.x * slab);
}

KERNEL __launch_bounds__(MAX_THREADS, FORWARD_BLOCKS) rms_norm_fwd(
    const element* x, const element* residual, const element* weight, int64 rows, int64 columns, int64 slab, float eps, element* h, element* y, float* inverse_rms)
{
    __shared__ float scratch[2][BlockRows::rows][MAX_WARPS];
    norm_fwd<false>(x, residual, weight, rows, columns, blockDim.x, slab, eps, BlockRows{ scratch }, h, y, inverse_rms);
}

KERNEL __launch_bounds__(256) gated_head_norm_fwd(
    const element* x, const element* weight, const element* gate, int64 rows, int64 columns, int lanes, int64 slab, float eps, element* y, float* inverse_rms)
{
    norm_fwd<true>(x, gate, weight, rows, columns, lanes, slab, eps, LaneRows<HEAD_ROWS>{ lanes }, nullptr, y, inverse_rms);
}

// ---- Backward ----

// `other` is dh, or with GATED a gate.
template <bool GATED, typename Sums>
__device__ __forceinline__ void norm_bwd_tile(
    const element* x, const element* dy, const element* other, const float* inverse_rms, const Pack<PACK>& w, const RowShare& share, Sums& sums, Pack<PACK>& d_weight,
    element* dx, element* dgate)
{
    Stored<element> in[Sums::rows], d_out[Sums::rows], third[Sums::rows];
    Pack<PACK> sigmoids[Sums::rows];
    float r[Sums::rows], dot[Sums::rows];  // dot: sum of weight * u * x
    fetch_rows(x, share, in);
    fetch_rows(dy, share, d_out);
    if (other) fetch_rows(other, share, third);
#pragma unroll
    for (int k = 0; k < Sums::rows; ++k) r[k] = share.has(k) ? inverse_rms[share.row + k * share.groups] : 0.0f;
#pragma unroll
    for (int k = 0; k < Sums::rows; ++k) {
        const Pack<PACK> p = unpack(in[k]), d = unpack(d_out[k]), g = unpack(third[k]);
        dot[k] = 0.0f;
#pragma unroll
        for (int j = 0; j < PACK; ++j) {
            float u = d.at[j];
            if (GATED && other) {
                sigmoids[k].at[j] = sigmoid(g.at[j]);
                u *= g.at[j] * sigmoids[k].at[j];
            }
            dot[k] = fmaf(u * w.at[j], p.at[j], dot[k]);
        }
    }
    sums.sum(dot);
    const float share_of_mean = 1.0f / (float)share.columns;
#pragma unroll
    for (int k = 0; k < Sums::rows; ++k) {
        if (!share.has(k)) continue;
        const float mean = dot[k] * r[k] * share_of_mean;  // of weight * u * n
        hold(in[k]), hold(d_out[k]), hold(third[k]);
        Pack<PACK> p = unpack(in[k]), d = unpack(d_out[k]), g = unpack(third[k]);
#pragma unroll
        for (int j = 0; j < PACK; ++j) {
            const float n = p.at[j] * r[k];
            float u = d.at[j];
            if (GATED && other) {
                const float s = sigmoids[k].at[j], act = g.at[j] * s;
                g.at[j] = d.at[j] * n * w.at[j] * (s + act * (1.0f - s));
                u *= act;
            }
            d_weight.at[j] = fmaf(u, n, d_weight.at[j]);
            p.at[j] = r[k] * fmaf(-n, mean, u * w.at[j]);
            if (!GATED && other) p.at[j] += g.at[j];
        }
        store(p, dx + share.at(k));
        if (GATED && other) store(g, dgate + share.at(k));
    }
}

template <bool GATED, typename Sums>
__device__ __forceinline__ Pack<PACK> norm_bwd(
    const element* x, const element* weight, const element* other, const float* inverse_rms, const element* dy, int64 columns, int64 slab, RowShare share, Sums sums,
    element* dx, element* dgate)
{
    const Pack<PACK> w = weights_of(weight, share);
    const int step = Sums::rows * share.groups;
    Pack<PACK> d_weight = {};
    for (int64 tile = 0; tile < slab; tile += step, share.row += step)
        norm_bwd_tile<GATED>(
            block_rows(x, columns, slab), block_rows(dy, columns, slab), block_rows(other, columns, slab), inverse_rms + blockIdx.x * slab, w, share, sums, d_weight,
            block_rows(dx, columns, slab), block_rows(dgate, columns, slab));
    return d_weight;
}

KERNEL __launch_bounds__(MAX_THREADS) rms_norm_bwd(
    const element* h, const element* weight, const float* inverse_rms, const element* dy, const element* dh, int64 rows, int64 columns, int64 slab, element* dx, float* partials)
{
    __shared__ float scratch[2][BlockRows::rows][MAX_WARPS];
    const RowShare share = row_share(rows, columns, blockDim.x, slab);
    const Pack<PACK> d_weight = norm_bwd<false>(h, weight, dh, inverse_rms, dy, columns, slab, share, BlockRows{ scratch }, dx, nullptr);
    if (partials && share.rows > 0) store(d_weight, partials + blockIdx.x * columns + share.column);
}

KERNEL __launch_bounds__(256, 4) gated_head_norm_bwd(
    const element* x, const element* weight, const element* gate, const float* inverse_rms, const element* dy, int64 rows, int64 columns, int lanes, int64 slab, element* dx,
    element* dgate, float* partials)
{
    __shared__ float shares[256 * PACK];
    const RowShare share = row_share(rows, columns, lanes, slab);
    const Pack<PACK> d_weight = norm_bwd<true>(x, weight, gate, inverse_rms, dy, columns, slab, share, LaneRows<HEAD_ROWS_BWD>{ lanes }, dx, dgate);
    if (!partials) return;
#pragma unroll
    for (int j = 0; j < PACK; ++j) shares[threadIdx.x * PACK + j] = d_weight.at[j];
    __syncthreads();
    for (int c = threadIdx.x; c < columns; c += blockDim.x) {
        float sum = 0.0f;
        for (int group = 0; group < share.groups; ++group) sum += shares[group * lanes * PACK + c];
        partials[blockIdx.x * columns + c] = sum;
    }
}

// d_weight[c] += sum over the blocks of partials[block, c]. Launch: 32 columns per block of 32 x 32 threads, of which each adds every 32nd block's share.
KERNEL norm_bwd_weight(const float* partials, int64 blocks, int64 columns, float* d_weight)
{
    __shared__ double sums[WARP][WARP + 1];
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    const int64 c = blockIdx.x * (int64)WARP + lane;
    double sum = 0.0;
    if (c < columns) {
#pragma unroll 8
        for (int64 block = warp; block < blocks; block += WARP) sum += partials[block * columns + c];
    }
    sums[warp][lane] = sum;
    __syncthreads();
    sum = warp_reduce(sums[lane][warp], Sum());
    const int64 column = blockIdx.x * (int64)WARP + warp;
    if (lane == 0 && column < columns) d_weight[column] += (float)sum;
}
