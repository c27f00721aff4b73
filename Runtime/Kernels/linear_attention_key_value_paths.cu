// The walk of linear_attention_key_value_wgmma.cu, launched alike, which also finds the paths of decay_paths.cuh that D has a part in, and those of pairs, for the gradient of a decay per token. The states
// that enter the sub-chunks are as linear_attention_bwd_query_paths left them; each consumer reads its share of the next one while it writes its results.
#include "key_value_walk.cuh"

#if LASP_ELEMENT_BF16 && __CUDA_ARCH_FEAT_SM90_ALL

#define KEY_VALUE_KERNEL(D, E) \
    KERNEL __launch_bounds__(KeyValueWalk<D, E, true>::THREADS_OF_BLOCK, 1) linear_attention_bwd_key_value_paths_##D##_##E( \
        const element* q, const element* k, const element* v, const element* dO, const float* decay, int kind, int64 tokens, int heads, int width, int value_width, int64 batches, \
        int64 segment_tokens, const SegmentRow* cut, float scale, const float* leaving, element* dk, element* dv, uint4* states, ChunkPaths* sums) \
    { \
        key_value_segment<D, E, true>(q, k, v, dO, decay, kind, tokens, heads, width, value_width, batches, segment_tokens, cut, scale, leaving, dk, dv, states, sums); \
    }

#if WANTS(linear_attention_bwd_key_value_paths_64_64)
KEY_VALUE_KERNEL(64, 64)
#endif
#if WANTS(linear_attention_bwd_key_value_paths_64_128)
KEY_VALUE_KERNEL(64, 128)
#endif
#if WANTS(linear_attention_bwd_key_value_paths_128_64)
KEY_VALUE_KERNEL(128, 64)
#endif
#if WANTS(linear_attention_bwd_key_value_paths_128_128)
KEY_VALUE_KERNEL(128, 128)
#endif

#endif
