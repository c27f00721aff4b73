// The log decay g inside a sub-chunk, for recursions in either direction. Rows are tokens in processing order. Forwards the decay of a row acts before
// the row, S_r = exp(g_r) S_{r-1} + ..; backwards it acts after it, on what is handed to the next row. So with `reverse` = 0 or 1
//     from row s to a later row r     exp(sum of g over rows s + 1 - reverse .. r - reverse)
//     from entry to row r             exp(sum of g over rows 0 .. r - reverse)
//     from row r to exit              exp(sum of g over rows r + 1 - reverse .. last)
// Every exponent is a sum over exactly these rows, or a difference taken in fp64; nothing is divided, so no decay overflows. Sums never span more than 64 tokens.
#ifndef LASP_ATTENTION_DECAY
#define LASP_ATTENTION_DECAY
#include "attention_tiles.cuh"

// How the log decay of a call is stored (DecayKind of the host).
enum DecayKind { NO_DECAY, DECAY_PER_HEAD, DECAY_PER_TOKEN, DECAY_PER_CHANNEL };  // null, [H], [B, N, H], [B, N, H, D]

// The log decay of one head.
struct HeadDecay {
    const float* start;  // token 0, first channel
    int64 stride;        // floats from one token to the next
    int channel_stride;  // and from one channel to the next: 0 or 1
    bool decays;         // otherwise nothing is read

    __device__ __forceinline__ float at(int64 token, int channel) const { return decays ? start[token * stride + channel * channel_stride] : 0.0f; }

    __device__ __forceinline__ HeadDecay from(int channel) const { return { start + channel * channel_stride, stride, channel_stride, decays }; }
};

__device__ __forceinline__ HeadDecay head_decay(const float* decay, int kind, int64 batch, int64 tokens, int heads, int64 head, int width)
{
    const int64 row = batch * tokens * heads + head;
    if (kind == DECAY_PER_CHANNEL) return { decay + row * width, (int64)heads * width, 1, true };
    if (kind == DECAY_PER_TOKEN) return { decay + row, heads, 0, true };
    return { decay + head, 0, 0, kind == DECAY_PER_HEAD };
}

// A sub-chunk's rows as a walk sees them: row r is token first + r * direction().
struct Chunk {
    int64 first;
    int rows, reverse;

    __device__ __forceinline__ int direction() const { return reverse ? -1 : 1; }

    __device__ __forceinline__ int64 token(int row) const { return first + row * direction(); }
};

__device__ __forceinline__ Chunk chunk_of(const Segment& segment, int chunk) { return { segment.token(chunk), segment.rows(chunk), segment.reverse }; }

// ---- One decay for all channels: none, per head, per token ----

struct ChunkDecay {
    double sums[TILE];       // from entry to row r, as a log
    float from_entry[TILE];  // and as a factor
    float to_exit[TILE];
    float through;           // from entry to exit

    // For s <= r.
    __device__ __forceinline__ float between(int s, int r) const { return expf((float)(sums[r] - sums[s])); }
};

// Called by all threads, done by the first warp: a lane takes two rows. The caller synchronises.
__device__ __forceinline__ void load_decay(const HeadDecay& g, const Chunk& chunk, ChunkDecay& decay)
{
    if (threadIdx.x >= WARP) return;
    const int row = 2 * threadIdx.x;
    const double first = row < chunk.rows ? g.at(chunk.token(row), 0) : 0.0, second = row + 1 < chunk.rows ? g.at(chunk.token(row + 1), 0) : 0.0;
    double sum = first + second;  // over rows 0 .. row + 1
#pragma unroll
    for (int lanes = 1; lanes < WARP; lanes *= 2) {
        const double below = __shfl_up_sync(0xFFFFFFFFu, sum, lanes);
        if ((int)threadIdx.x >= lanes) sum += below;
    }
    const double total = __shfl_sync(0xFFFFFFFFu, sum, WARP - 1), before = sum - (first + second);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        const double log = chunk.reverse ? (i ? before + first : before) : (i ? sum : before + first);
        decay.sums[row + i] = log;
        decay.from_entry[row + i] = expf((float)log);
        decay.to_exit[row + i] = expf((float)(total - log));
    }
    if (threadIdx.x == 0) decay.through = expf((float)total);
}

// ---- A decay for every channel: the columns of a tile are channels, as many as `channels`; columns beyond them do not decay ----

// steps[r][c] = the decay of channel c from row r - 1 (or entry) to row r. The caller synchronises.
__device__ __forceinline__ void load_steps(const HeadDecay& g, int channels, const Chunk& chunk, float* steps)
{
#pragma unroll 1
    for (int p = threadIdx.x; p < TILE * TILE; p += THREADS) {
        const int row = p / TILE, channel = p % TILE, from = row - chunk.reverse;
        steps[row * PITCH + channel] = from >= 0 && from < chunk.rows && channel < channels ? expf(g.at(chunk.token(from), channel)) : 1.0f;
    }
}

constexpr int PARTS = THREADS / TILE;      // threads that share a channel
constexpr int PART_ROWS = TILE / PARTS;    // consecutive rows of each

struct ChannelDecay {
    float sums[PARTS][TILE];  // of each part's rows
    float through[TILE];      // from entry to exit
};

// Multiplies row r, column c of the tile by the decay of channel c from row r to exit. The caller synchronises before and after.
__device__ __forceinline__ void weigh_to_exit(const HeadDecay& g, int channels, const Chunk& chunk, float* tile, ChannelDecay& decay)
{
    const int channel = threadIdx.x % TILE, part = threadIdx.x / TILE;
    const auto log = [&](int row) { return row < chunk.rows && channel < channels ? g.at(chunk.token(row), channel) : 0.0f; };
    float sum = 0.0f;
#pragma unroll 1
    for (int i = 0; i < PART_ROWS; ++i) sum += log(part * PART_ROWS + i);
    decay.sums[part][channel] = sum;
    __syncthreads();
    float exponent = 0.0f;
    for (int later = PARTS - 1; later > part; --later) exponent += decay.sums[later][channel];
#pragma unroll 1
    for (int row = (part + 1) * PART_ROWS - 1; row >= part * PART_ROWS; --row) {
        const float after = exponent;
        exponent += log(row);
        tile[row * PITCH + channel] *= expf(chunk.reverse ? exponent : after);
    }
    if (part == 0) decay.through[channel] = expf(exponent);
}

#endif
