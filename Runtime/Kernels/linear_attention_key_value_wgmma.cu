// Gradients of keys and values in one walk: key_value_walk.cuh.
// Launch: 384 threads, one block per (segment, b, h), h fastest; D and E are 64 or 128 by the kernel's name;
// shared memory stages (D + E) 256 bytes, D E 2 bytes for the copy, and 3 KiB.
#include "key_value_walk.cuh"

#if LASP_ELEMENT_BF16 && __CUDA_ARCH_FEAT_SM90_ALL

#define KEY_VALUE_KERNEL(D, E) \
    KERNEL __launch_bounds__(KeyValueWalk<D, E, false>::THREADS_OF_BLOCK, 1) linear_attention_bwd_key_value_##D##_##E( \
        const element* q, const element* k, const element* v, const element* dO, const float* decay, int kind, int64 tokens, int heads, int width, int value_width, int64 batches, \
        int64 segment_tokens, const SegmentRow* cut, float scale, const float* leaving, element* dk, element* dv) \
    { \
        key_value_segment<D, E>(q, k, v, dO, decay, kind, tokens, heads, width, value_width, batches, segment_tokens, cut, scale, leaving, dk, dv); \
    }

#if WANTS(linear_attention_bwd_key_value_64_64)
KEY_VALUE_KERNEL(64, 64)
#endif
#if WANTS(linear_attention_bwd_key_value_64_128)
KEY_VALUE_KERNEL(64, 128)
#endif
#if WANTS(linear_attention_bwd_key_value_128_64)
KEY_VALUE_KERNEL(128, 64)
#endif
#if WANTS(linear_attention_bwd_key_value_128_128)
KEY_VALUE_KERNEL(128, 128)
#endif

#endif
