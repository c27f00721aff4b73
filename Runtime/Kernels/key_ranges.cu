// Which keys each query of a softmax layer sees, as global indices (first, last), both included, for the tokens first_token .. first_token + count - 1:
//     causal     (first token of its document, the token itself)        both ways     (first token of its document, last token of its document)
// bounds [documents + 1], where each document starts, from 0, and the end of the last; null: one document of `tokens` tokens. ranges [count, 2]. Integers, hence exact.
// Launch: a thread per token.
#include "common.cuh"

KERNEL key_ranges(const int64* bounds, int64 documents, int64 tokens, int64 first_token, int64 count, int causal, int64* ranges)
{
    const int64 i = global_thread();
    if (i >= count) return;
    const int64 token = first_token + i;
    int64 start = 0, end = tokens;
    if (bounds != nullptr) {
        int64 low = 0, high = documents;  // bounds[low] <= token < bounds[high]
        while (high - low > 1) {
            const int64 middle = (low + high) / 2;
            if (bounds[middle] <= token) low = middle;
            else high = middle;
        }
        start = bounds[low];
        end = bounds[high];
    }
    ranges[2 * i] = start;
    ranges[2 * i + 1] = causal ? token : end - 1;
}
