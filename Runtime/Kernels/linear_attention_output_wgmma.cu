// Outputs of linear attention (o; dq; dk and dv of ungrouped heads) by the walk of output_walk.cuh.
// Launch: 128 + 2 E threads (E = 64 or 128 by the kernel's name), one block per (segment, b, q head), the last fastest;
// shared memory stages (2 D + E) 128 bytes, E 128 bytes for P^T, and 6 KiB.
#include "output_walk.cuh"

#if LASP_ELEMENT_BF16 && __CUDA_ARCH_FEAT_SM90_ALL

#define OUTPUT_KERNEL(D, E) \
    KERNEL __launch_bounds__(OutputWalk<D, E, false>::THREADS_OF_BLOCK, OutputWalk<D, E, false>::BLOCKS) linear_attention_output_##D##_##E( \
        const element* q, const element* k, const element* v, const float* decay, int kind, int64 tokens, int q_heads, int k_heads, int width, int value_width, int64 batches, \
        int64 segment_tokens, const SegmentRow* cut, int reverse, float k_scale, float out_scale, const float* entering, int transposed, element* out) \
    { \
        walk_segment<D, E>(q, k, v, decay, kind, tokens, q_heads, k_heads, width, value_width, batches, segment_tokens, cut, reverse, k_scale, out_scale, entering, transposed, out); \
    }

#if WANTS(linear_attention_output_64_64)
OUTPUT_KERNEL(64, 64)
#endif
#if WANTS(linear_attention_output_64_128)
OUTPUT_KERNEL(64, 128)
#endif
#if WANTS(linear_attention_output_128_64)
OUTPUT_KERNEL(128, 64)
#endif
#if WANTS(linear_attention_output_128_128)
OUTPUT_KERNEL(128, 128)
#endif

#endif
