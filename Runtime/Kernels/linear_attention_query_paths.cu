// dq by the walk of output_walk.cuh, with dO, v and k in the places of q, k and v; D and E of a kernel's name are the walk's, E and D of the call. It also keeps the states that enter the sub-chunks, and
// the paths that arrive from them, for the gradient of a decay per token (decay_paths.cuh); as many heads as key heads.
// Launch: as linear_attention_output_wgmma.cu, with stages (2 D + 2 E) 128 bytes, and E 16 bytes more.
#include "output_walk.cuh"

#if LASP_ELEMENT_BF16 && __CUDA_ARCH_FEAT_SM90_ALL

#define OUTPUT_KERNEL(D, E) \
    KERNEL __launch_bounds__(OutputWalk<D, E, true>::THREADS_OF_BLOCK, OutputWalk<D, E, true>::BLOCKS) linear_attention_bwd_query_paths_##D##_##E( \
        const element* dO, const element* v, const element* k, const float* decay, int kind, int64 tokens, int heads, int width, int value_width, int64 batches, int64 segment_tokens, \
        float scale, const float* entering, element* dq, const element* q, uint4* states, ChunkPaths* sums) \
    { \
        walk_segment<D, E, true>(dO, v, k, decay, kind, tokens, heads, heads, width, value_width, batches, segment_tokens, nullptr, 0, 1.0f, scale, entering, 1, dq, q, states, sums); \
    }

#if WANTS(linear_attention_bwd_query_paths_64_64)
OUTPUT_KERNEL(64, 64)
#endif
#if WANTS(linear_attention_bwd_query_paths_64_128)
OUTPUT_KERNEL(64, 128)
#endif
#if WANTS(linear_attention_bwd_query_paths_128_64)
OUTPUT_KERNEL(128, 64)
#endif
#if WANTS(linear_attention_bwd_query_paths_128_128)
OUTPUT_KERNEL(128, 128)
#endif

#endif
